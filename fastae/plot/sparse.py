"""How the latents of sparse codes are used, and what sparsity costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .display import Display, numbers


class FiringDensityDisplay(Display):
    """Histogram of the latents' firing frequencies on a log10 axis, the dead ones apart at the left.

    frequency : (n,) share of the rows in which each latent is active, in [0, 1]
    name : shown in the legend, or None
    """

    _artist = "patches.Patch"
    _drawn_by_itself = ("x",)

    def __init__(self, frequency: Any, *, name: str | None = None):
        self.frequency = numbers("frequency", frequency)
        f = self.frequency
        if f.ndim != 1 or not len(f) or not ((f >= 0) & (f <= 1)).all():
            raise ValueError(f"frequency has shape {f.shape}; wanted numbers in [0, 1] (n,) with n >= 1")
        self.name = name

    @classmethod
    def from_report(
        cls, report: Any, *, name: str | None = None, ax: Any = None, **options: Any
    ) -> FiringDensityDisplay:
        """Of a ``report``, a `fastae.metrics.SparseReport`; draws several with ``ax`` and names.

        options : as of `plot`
        """
        if not hasattr(report, "frequency"):
            raise TypeError(f"{cls.__name__} takes a report that has frequency, got {type(report).__name__}")
        return cls(report.frequency, name=name).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        alive = np.log10(self.frequency[self.frequency > 0])
        dead = len(self.frequency) - len(alive)
        label = f"{self.name}, " if self.name else ""
        low = min(float(np.floor(alive.min(initial=0.0))), -1.0)
        bins = options.pop("bins", None)
        edges = np.arange(low, 0.125, 0.25) if bins is None else bins
        style = {"alpha": 0.7, "label": f"{label}{len(alive):,} living"} | options
        *_, bars = ax.hist(alive, bins=edges, **style)
        if dead:
            (bar,) = ax.bar(low - 0.5, dead, width=0.4, color=bars[0].get_facecolor(), edgecolor="C3", hatch="//",
                            label=f"{label}{dead:,} dead")  # fmt: skip
            ax.annotate("dead", (low - 0.5, bar.get_height()), ha="center", va="bottom", fontsize="small")
        ticks = np.arange(np.ceil(low), 1)
        ax.set_xticks(ticks, [f"$10^{{{int(tick)}}}$" for tick in ticks])
        ax.set_xlabel("share of rows in which a latent is active")
        ax.set_ylabel("latents")
        ax.legend()


class FrontierDisplay(Display):
    """Active latents a row against unexplained variance, a point for each model: lower left is better.

    l0, fvu : (models,)
    names : a label for each point, or None
    name : of the whole curve, shown in the legend, or None

    Points are joined in the order of L0. Axes are logarithmic where all values are positive and span a factor of ten.
    """

    def __init__(self, l0: Any, fvu: Any, *, names: Any = None, name: str | None = None):
        self.l0, self.fvu = numbers("l0", l0), numbers("fvu", fvu)
        if self.l0.ndim != 1 or not len(self.l0) or self.l0.shape != self.fvu.shape:
            raise ValueError(
                f"l0 has shape {self.l0.shape} and fvu {self.fvu.shape}; wanted both (models,), one or more"
            )
        if not (np.isfinite(self.l0).all() and np.isfinite(self.fvu).all()):
            raise ValueError("l0 and fvu must be finite; a report without rows has neither")
        if names is not None and not hasattr(names, "__iter__"):
            raise TypeError(f"names={names!r} must be a sequence, one for each point")
        self.names = None if names is None else [str(label) for label in names]
        if self.names is not None and len(self.names) != len(self.l0):
            raise ValueError(f"{len(self.names)} names for {len(self.l0)} models; wanted one each")
        self.name = name

    @classmethod
    def from_reports(cls, reports: Any, *, name: str | None = None, ax: Any = None, **options: Any) -> FrontierDisplay:
        """Of `fastae.metrics.SparseReport` objects; draws several curves with ``ax``.

        reports : a list, or a dict by name; options : as of `plot`
        """
        if not hasattr(reports, "__iter__"):
            raise TypeError(f"{cls.__name__} takes a list or dict of reports, got {type(reports).__name__}")
        found = list(reports.values() if isinstance(reports, Mapping) else reports)
        for report in found:
            if not (hasattr(report, "l0") and hasattr(report, "fvu")):
                raise TypeError(f"{cls.__name__} takes reports that have l0 and fvu, got {type(report).__name__}")
        names = list(reports) if isinstance(reports, Mapping) else None
        return cls([r.l0 for r in found], [r.fvu for r in found], names=names, name=name).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        order = np.argsort(self.l0, kind="stable")
        style = {"marker": "o"} | ({"label": self.name} if self.name else {}) | options
        ax.plot(self.l0[order], self.fvu[order], **style)
        for i, label in enumerate(self.names or ()):
            ax.annotate(label, (self.l0[i], self.fvu[i]), xytext=(4, 4), textcoords="offset points", fontsize="small")
        for values, scale in ((self.l0, ax.set_xscale), (self.fvu, ax.set_yscale)):
            if values.min() > 0 and values.max() > 10 * values.min():
                scale("log")
        ax.set_xlabel("active latents a row (L0)")
        ax.set_ylabel("fraction of variance unexplained")
        if self.name:
            ax.legend()
