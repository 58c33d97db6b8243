"""Anomaly scores from reconstruction residuals e = x̂ − x: what is learnt from training residuals, and the scores.

All scores are Σ (W (e − ē))² / p with another W: the identity (and ē = 0) for "plain", 1 / deviation of each
feature's residual for "standardized", a whitening matrix for "mahalanobis". So a usual row scores about 1 with the
last two, whatever the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import ops

SCORINGS = ("plain", "standardized", "mahalanobis")
KEPT = 0.9  # fraction of the training rows, the best reconstructed ones, that ē and W are learnt from
FLOOR = 1e-2  # a feature's residual has at least this fraction of the variance that its input leaves on average
LEAST_SHRINKAGE = 1e-6  # of the residual's correlations: singular ones stay far above the rounding of float32

Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # (scaled rows, residuals), block after block


@dataclass(frozen=True)
class ResidualScore:
    """mean : (p,) float64 ē or None; whitening : None, (p,), or (p, p) lower triangular, float64."""

    mean: np.ndarray | None = None
    whitening: np.ndarray | None = None
    _prepared: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self):  # packed weights belong to the process
        return type(self), (self.mean, self.whitening)

    def __call__(self, e: np.ndarray, backend: Any, n_threads: int) -> np.ndarray:
        """Scores (m,), float64, of residuals (m, p), which are overwritten.

        A row's score doesn't depend on the other rows.
        """
        if self.mean is None or self.whitening is None:
            return _mean_square(e)
        key = (e.dtype, backend.name, getattr(backend, "isa", ""))
        if key not in self._prepared:
            factor = self.whitening.astype(e.dtype)
            if factor.ndim == 1:
                self._prepared[key] = self.mean.astype(e.dtype), factor
            else:
                shift = -(self.whitening * self.mean).sum(axis=1)
                self._prepared[key] = shift.astype(e.dtype), ops.pack(factor, backend=backend, n_threads=n_threads)
        shift, factor = self._prepared[key]
        if self.whitening.ndim == 2:
            return _mean_square(ops.dense(e, factor, shift, n_threads=n_threads))
        e -= shift
        e *= factor
        return _mean_square(e)


def _mean_square(e: np.ndarray) -> np.ndarray:
    squares = e.astype(np.float64)  # so that the sum of one row is in one order, and never overflows
    np.multiply(squares, squares, out=squares)
    return squares.sum(axis=1) / e.shape[1]


def learn(scoring: str, blocks: Blocks, p: int, backend: Any, n_threads: int) -> ResidualScore:
    """ē and W from the residuals that ``blocks()`` yields, each time anew; one or two passes."""
    if scoring == "plain":
        return ResidualScore()
    mean, deviation = _moments(blocks, p)
    if scoring == "standardized":
        return ResidualScore(mean, 1.0 / deviation)
    return ResidualScore(mean, _whitening(blocks, mean, deviation, backend, n_threads))


def _moments(blocks: Blocks, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and floored deviation of each feature's residual, by Chan's update from block to block."""
    n, mean, squares = 0, np.zeros((2, p)), np.zeros((2, p))  # of the input, of the residual
    for pair in blocks():
        m = len(pair[0])
        for i, block in enumerate(pair):
            values = block.astype(np.float64)
            middle = values.mean(axis=0)
            values -= middle
            delta = middle - mean[i]
            squares[i] += np.square(values, out=values).sum(axis=0) + delta**2 * (n * m / (n + m))
            mean[i] += delta * (m / (n + m))
        n += m
    given, left = squares / n
    varies = given > 0
    floor = np.full(p, FLOOR * left.mean())
    if varies.any():
        floor[varies] = FLOOR * (left[varies] / given[varies]).mean() * given[varies]
    variance = np.maximum(left, floor)
    return mean[1], np.sqrt(np.where(variance > 0, variance, 1.0))


def _whitening(blocks: Blocks, mean: np.ndarray, deviation: np.ndarray, backend: Any, n_threads: int) -> np.ndarray:
    """Inverse Cholesky factor of the residuals' covariance, its correlations shrunk towards the identity.

    The intensity is that of Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004), for rows of known mean: b² / d² with d² = ‖R − μI‖²/p and b² = (Σ_i ‖z_i‖⁴ / n − ‖R‖²) / (n p).
    """
    p = len(mean)
    total, fourth, n = np.zeros((p, p)), 0.0, 0
    for _, block in blocks():
        z = (block - mean) / deviation
        # zᵀ z by the compiled product: the same bits for any number of threads
        total += ops.dense_grad(z, z, z, total, need_dx=False, backend=backend, n_threads=n_threads)[1]
        fourth += float(np.square(np.square(z).sum(axis=1)).sum())
        n += len(z)
    correlation = total / n
    size = float(np.square(correlation).sum())
    level = float(np.trace(correlation)) / p
    distance = size / p - level**2  # = ‖R − μI‖² / p
    error = max(fourth / n - size, 0.0) / (n * p)
    shrinkage = min(max(error / distance, LEAST_SHRINKAGE), 1.0) if distance > 0 else 1.0
    correlation *= 1.0 - shrinkage
    correlation.flat[:: p + 1] += shrinkage * (level if level > 0 else 1.0)
    return np.ascontiguousarray(_inverse_factor(correlation) / deviation)


def _inverse_factor(matrix: np.ndarray) -> np.ndarray:
    """L⁻¹ of matrix = L Lᵀ, on one thread of the BLAS, whose results may depend on their number."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return np.tril(np.linalg.inv(np.linalg.cholesky(matrix)))


def tail_threshold(scores: np.ndarray, deviations: float = 3.0) -> float:
    """(median + ``deviations`` · 1.4826 · MAD)³ of the scores' cube roots, lowered to leave out the highest score.

    The cube root of a χ²-like score is nearly Gaussian (Wilson and Hilferty, "The distribution of chi-square", 1931),
    and median and MAD don't see the outliers. Where half of the scores are equal the standard deviation stands in.
    """
    roots = np.cbrt(scores)
    middle = float(np.median(roots))
    spread = 1.4826 * float(np.median(np.abs(roots - middle)))
    if spread <= 1e-9 * middle:
        spread = float(roots.std())
    return below_highest((middle + deviations * spread) ** 3, scores)


def below_highest(threshold: float, scores: np.ndarray) -> float:
    """The threshold, lowered to leave out the highest score, rows that share it too, but not below the median."""
    highest = float(scores.max())
    below = scores[scores < highest]
    if len(below):
        # between the two highest: at one of them rounding would decide which side that row is on when it comes alone
        second = float(below.max())
        between = second + (highest - second) / 2
        threshold = min(threshold, between if between < highest else second)
    return max(threshold, float(np.median(scores)))
