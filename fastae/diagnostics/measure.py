"""Numbers that a diagnosis rests on, gathered over blocks of rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..plan.losses import shown_activation
from ..plan.plan import Source
from ..spec import options
from ..spec.network import Layer, Network
from ..validation import extremes

EDGE = 1e-3  # share of an activation's range that counts as its end


def sample(n_rows: int, limit: int) -> np.ndarray:
    """At most ``limit`` row numbers, evenly spread, ascending, int64."""
    n = min(n_rows, limit)
    return np.arange(n, dtype=np.int64) * n_rows // n


def rows_vary(matrix: Any) -> bool:
    """Whether the rows of an array or csr_array are not all the same."""
    if isinstance(matrix, np.ndarray):
        return bool((matrix != matrix[:1]).any())
    return bool((matrix.max(axis=0) - matrix.min(axis=0)).toarray().any())


def data_range(source: Source, missing: float | None = None) -> tuple[float, float]:
    """Smallest and largest observed value of the rows, NaN for none; the zeros that CSR leaves out count."""
    low, high = extremes(source, 0, source.columns, math.nan if missing is None else missing)
    if source.indptr is not None and source.data.size < source.n_rows * source.columns and missing != 0:
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low <= high else (math.nan, math.nan)


def reach(layer: Layer, activation: Any = None) -> tuple[float, float]:
    """Closure of the range of a layer's outputs, with ``activation`` in place of its own.

    (−∞, ∞) where the catalogue does not know it: ELU with alpha=2, maxout, what is added to a skip connection.
    """
    activation = activation or layer.activation
    if layer.residual:
        return -np.inf, np.inf
    if activation.name == "softmax":
        return 0.0, 1.0
    row = getattr(activation, "_row", None)
    if row is None or options.values(activation) != tuple(parameter.default for parameter in row.parameters):
        return -np.inf, np.inf
    return row.low, row.high


class LayerStatistics:
    """Extremes and counts of one layer's outputs."""

    def __init__(self, width: int, ends: tuple[float, float]):
        self.least, self.most = np.full(width, np.inf), np.full(width, -np.inf)  # per unit
        self.total, self.count = 0.0, 0
        self.bounded = bool(np.isfinite(ends).all())
        edge = EDGE * (ends[1] - ends[0])
        self.floor, self.ceiling = ends[0] + edge, ends[1] - edge
        self.at_floor = self.at_ceiling = 0

    def add(self, y: np.ndarray) -> None:
        """y (m, width)"""
        self.least, self.most = np.minimum(self.least, y.min(axis=0)), np.maximum(self.most, y.max(axis=0))
        self.total, self.count = self.total + float(y.sum(dtype=np.float64)), self.count + y.size
        if self.bounded:
            self.at_floor += int(np.count_nonzero(y <= self.floor))
            self.at_ceiling += int(np.count_nonzero(y >= self.ceiling))

    @property
    def dead(self) -> int:
        """Units with the same output for every row."""
        return int(np.count_nonzero(self.most == self.least))

    @property
    def saturated(self) -> float | None:
        return (self.at_floor + self.at_ceiling) / self.count if self.bounded else None


def layer_statistics(network: Network) -> list[LayerStatistics]:
    """One for each layer."""
    *inner, output = network.layers
    return [LayerStatistics(layer.n_out, reach(layer)) for layer in inner] + [
        LayerStatistics(network.target_width, reach(output, shown_activation(network)))
    ]


class FeatureStatistics:
    """Variance of the features, and how much of it a reconstruction leaves; NaN stands for what was not observed."""

    def __init__(self, width: int) -> None:
        self.shift = np.full(width, np.nan)  # the first value of each feature: sums of squares must not cancel
        self.counts = np.zeros(width, dtype=np.int64)
        self.sums, self.squares = np.zeros(width), np.zeros(width)
        self.errors: float | None = 0.0
        self.least, self.most = np.inf, -np.inf

    def add(self, x: np.ndarray, reconstruction: np.ndarray) -> None:
        """x (m, p) float64"""
        observed = ~np.isnan(x)
        first = x[observed.argmax(axis=0), np.arange(x.shape[1])]
        self.shift = np.where(np.isnan(self.shift), first, self.shift)
        moved = np.where(observed, x - self.shift, 0.0)
        self.counts += observed.sum(axis=0)
        self.sums += moved.sum(axis=0)
        self.squares += (moved * moved).sum(axis=0)
        self.least = min(self.least, float(np.fmin.reduce(x, axis=None)))
        self.most = max(self.most, float(np.fmax.reduce(x, axis=None)))
        if self.errors is not None:  # an output of another width is not a reconstruction
            same = x.shape == reconstruction.shape
            self.errors = self.errors + float(np.nansum((x - reconstruction) ** 2)) if same else None

    @property
    def range(self) -> tuple[float, float]:
        return self.least, self.most

    @property
    def spread(self) -> np.ndarray:
        """Sum over the rows of the squared distance to the mean, per feature (p,)."""
        return np.maximum(self.squares - self.sums**2 / np.maximum(self.counts, 1), 0.0)

    @property
    def vary(self) -> bool:
        return bool(self.squares.any())

    def explained(self, network: Network) -> float | None:
        """1 − squared error / variance, over all features; None where there is nothing to compare."""
        total = float(self.spread.sum())
        scaleless = any(isinstance(block.loss, (options.Multinomial, options.CosineLoss)) for block in network.blocks)
        elsewhere = scaleless or network.n_targets is not None
        if self.errors is None or total <= 0 or elsewhere:
            return None
        return 1.0 - self.errors / total
