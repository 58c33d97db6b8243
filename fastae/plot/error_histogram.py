"""How the reconstruction error is spread over rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec.options import number
from .display import Display, check_has, classes_of, numbers


class ErrorHistogramDisplay(Display):
    """Histogram of the rows' reconstruction errors, with the median and the 95th and 99th percentile.

    errors : (n,)
    y : (n,) class of each row, for a histogram each, as for normal and abnormal rows; or None
    threshold : error from which a row counts as abnormal, drawn as a line; or None

    The axis is logarithmic where all errors are positive and the largest is fifty times the median or more.
    """

    _artist = "patches.Patch"
    _drawn_by_itself = ("x",)
    _follows_y = ("weights",)

    def __init__(self, errors: Any, *, y: Any = None, threshold: float | None = None):
        self.errors = numbers("errors", errors)
        if self.errors.ndim != 1 or not len(self.errors) or not np.isfinite(self.errors).all():
            raise ValueError(f"errors has shape {self.errors.shape}; wanted finite numbers (n,) with n >= 1")
        self.y = None if y is None else np.asarray(y)
        if self.y is not None and self.y.shape != self.errors.shape:
            raise ValueError(f"y has shape {self.y.shape}; wanted {self.errors.shape}: one class per error")
        if self.y is not None:
            classes_of(self.y)  # raises for what is none
        self.threshold = None if threshold is None else number("threshold", threshold, -math.inf, math.inf)

    @classmethod
    def from_estimator(
        cls, model: Any, X: Any, *, y: Any = None, threshold: float | None = None, ax: Any = None, **options: Any
    ) -> ErrorHistogramDisplay:
        """Of the mean squared errors of the rows of X, −``score_samples(X)``.

        model : fitted, with ``score_samples``; ax, options : as of `plot`
        """
        check_has(model, "score_samples", cls.__name__)
        return cls(-model.score_samples(X), y=y, threshold=threshold).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        errors = self.errors
        low, high, median = errors.min(), errors.max(), np.median(errors)
        bins = options.pop("bins", 50)
        if low > 0 and high > 50 * median:
            ax.set_xscale("log")
            if isinstance(bins, int):
                bins = np.geomspace(low, high, bins + 1)
        if self.y is None:
            ax.hist(errors, bins=bins, **options)
            marks = {"median": median, "95 %": np.quantile(errors, 0.95), "99 %": np.quantile(errors, 0.99)}
            for style, (name, value) in zip(("-", "--", ":"), marks.items(), strict=True):
                ax.axvline(value, color="0.3", linestyle=style, linewidth=1, label=f"{name}: {value:.3g}")
        else:
            edges = np.histogram_bin_edges(errors, bins) if isinstance(bins, (int, str)) else bins
            for value in classes_of(self.y):  # shares, for classes may differ in size
                chosen = errors[self.y == value]
                ax.hist(chosen, bins=edges, weights=np.full(len(chosen), 1 / len(chosen)),
                        **({"alpha": 0.6, "label": f"{value} ({len(chosen):,} rows)"} | options))  # fmt: skip
        if self.threshold is not None:
            ax.axvline(self.threshold, color="C3", linewidth=1.5, label=f"threshold: {self.threshold:.3g}")
        ax.set_xlabel("mean squared reconstruction error of a row")
        ax.set_ylabel("rows" if self.y is None else "share of rows")
        ax.legend()
