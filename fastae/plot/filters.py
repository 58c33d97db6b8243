"""Weights as images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec.options import number
from .display import Display, bare, check_model, image_shape, matrix, mosaic


class FilterDisplay(Display):
    """Weight vectors as images, each on a scale of its own: white is 0, red positive, blue negative.

    weights : (n, p), one vector per image
    shape : (height, width) of the images; None takes squares
    columns : images in a row, or None
    """

    _artist = "image.AxesImage"
    _drawn_by_itself = ("X",)

    def __init__(self, weights: Any, *, shape: tuple[int, int] | None = None, columns: int | None = None):
        self.weights = matrix("weights", weights)
        self.shape = image_shape(shape, self.weights.shape[1], "weights")
        n = len(self.weights)
        if columns is None:
            columns = int(np.ceil((n * self.shape[0] / self.shape[1]) ** 0.5))
        self.columns = min(n, number("columns", columns, 1, math.inf, integer=True))

    @property
    def _size(self) -> tuple[float, float]:  # type: ignore[override]
        rows = -(-len(self.weights) // self.columns)
        height = rows * self.shape[0] / (self.columns * self.shape[1])
        return 6.0, min(max(6.0 * height, 1.0), 12.0)

    @classmethod
    def from_estimator(
        cls, model: Any, *, which: str = "encoder", n_filters: int = 64, shape: tuple[int, int] | None = None,
        ax: Any = None, **options: Any,
    ) -> FilterDisplay:  # fmt: skip
        """Of the first ``n_filters`` units: what the first layer looks for, or what the last one adds to the output.

        which : "encoder": rows of the first W; "decoder": columns of the last W, one per unit before it
        model : fitted and dense; ax, options : as of `plot`
        """
        check_model(model, cls.__name__)
        if which not in ("encoder", "decoder"):
            raise ValueError(f"which={which!r} must be 'encoder' or 'decoder'")
        weights = model.weights_[0][0] if which == "encoder" else model.weights_[-1][0].T
        n_filters = number("n_filters", n_filters, 1, math.inf, integer=True)
        return cls(weights[:n_filters], shape=shape).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        size = np.abs(self.weights).max(axis=1, keepdims=True)
        scaled = self.weights / np.where(size == 0, 1, size)
        canvas = mosaic(scaled.reshape(-1, *self.shape), self.columns)
        from matplotlib import colormaps

        style = {"cmap": colormaps["RdBu_r"].with_extremes(bad="0.7"), "vmin": -1, "vmax": 1}
        ax.imshow(canvas, **(style | {"interpolation": "nearest"} | options))
        bare(ax)
