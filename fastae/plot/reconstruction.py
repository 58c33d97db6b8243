"""Rows beside their reconstructions."""

from __future__ import annotations

from math import inf, isqrt
from typing import Any

import numpy as np

from ..spec.options import number
from .display import Display, bare, check_has, image_shape, matrix, mosaic


class ReconstructionDisplay(Display):
    """Rows and their reconstructions: images in two rows (wide ones in two columns), or curves.

    originals, reconstructions : (n, p)
    shape : (height, width) of the images; None takes squares where p is one, else draws each row as a curve
    """

    _drawn_by_itself = ("X",)

    def __init__(self, originals: Any, reconstructions: Any, *, shape: tuple[int, int] | None = None):
        self.originals = matrix("originals", originals)
        self.reconstructions = matrix("reconstructions", reconstructions, self.originals.shape[1])
        if len(self.originals) != len(self.reconstructions):
            raise ValueError(f"got {len(self.originals)} originals and {len(self.reconstructions)} reconstructions")
        p = self.originals.shape[1]
        images = shape is not None or (p > 1 and isqrt(p) ** 2 == p)
        self.shape = image_shape(shape, p, "rows") if images else None

    @property
    def _size(self) -> tuple[float, float]:  # type: ignore[override]
        n = len(self.originals)
        if self.shape is None:
            return 7.0, min(1.0 + 0.7 * n, 12.0)
        aspect = self.shape[0] / self.shape[1]
        if self._wide:
            return 8.0, min(max(8.0 * n * aspect / 2, 0.2 * n), 12.0) + 0.4
        width = min(max(0.9 * n, 3.0), 16.0)
        return width, width / n * 2 * aspect + 0.3

    @property
    def _artist(self) -> str:  # type: ignore[override]
        return "lines.Line2D" if self.shape is None else "image.AxesImage"

    @property
    def _wide(self) -> bool:
        return self.shape is not None and self.shape[1] > 3 * self.shape[0]

    @classmethod
    def from_estimator(
        cls, model: Any, X: Any, *, n_samples: int = 10, shape: tuple[int, int] | None = None, ax: Any = None,
        **options: Any,
    ) -> ReconstructionDisplay:  # fmt: skip
        """Of the first ``n_samples`` rows of X; give a selection to see other ones.

        model : fitted, with ``reconstruct``; ax, options : as of `plot`
        """
        check_has(model, "reconstruct", cls.__name__)
        rows = X[: number("n_samples", n_samples, 1, inf, integer=True)]
        shown = model.reconstruct(rows)
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        return cls(dense, shown, shape=shape).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        if self.shape is None:
            self._draw_curves(ax, options)
            return
        (height, width), columns = self.shape, 2 if self._wide else len(self.originals)
        both = np.stack([self.originals, self.reconstructions], axis=1 if self._wide else 0)
        # one scale for all, that of the originals: what a reconstruction gets wrong must be seen
        scale = {"cmap": "gray_r", "vmin": self.originals.min(), "vmax": self.originals.max()}
        scale |= {"interpolation": "nearest", "aspect": "auto" if self._wide else "equal"}
        ax.imshow(mosaic(both.reshape(-1, height, width), columns), **(scale | options))
        bare(ax)
        labels = ["original", "reconstruction"]
        if self._wide:
            ax.set_xticks([width / 2 - 0.5, 1.5 * width + 0.5], labels)
        else:
            ax.set_yticks([height / 2 - 0.5, 1.5 * height + 0.5], labels)
        ax.tick_params(length=0)

    def _draw_curves(self, ax: Any, options: dict[str, Any]) -> None:
        label = options.pop("label", "reconstruction")
        span = float(self.originals.max() - self.originals.min()) or 1.0
        for i, (row, copy) in enumerate(zip(self.originals, self.reconstructions, strict=True)):
            shift = -1.1 * span * i
            ax.plot(row + shift, color="0.6", label=None if i else "original")
            ax.plot(copy + shift, **({"color": "C1", "linestyle": "--"} | options),
                    label=None if i else label)  # fmt: skip
        ax.set_yticks([])
        ax.set_xlabel("feature")
        ax.legend(loc="upper right")


def save_reconstructions(path: Any, originals: np.ndarray, reconstructions: np.ndarray, shape: tuple[int, int]) -> None:
    """Writes a picture with originals in the upper row and their reconstructions below.

    originals, reconstructions : (n, height · width); shape : (height, width)
    path : of the picture, whose name decides the format
    Raises ImportError without matplotlib.
    """
    ReconstructionDisplay(originals, reconstructions, shape=shape).save(path)
