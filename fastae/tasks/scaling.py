"""Scaling of columns inside a task: (x − center) / scale, learnt once, applied to blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import to_host
from ..models.graph import source_rows
from ..plan.plan import Source
from ..spec.options import unknown

CENTRAL = (0.05, 0.95)  # quantiles of the robust range; sparse columns often have no interquartile range at all
GAUSSIAN_RANGE = 2 * 1.6448536269514722  # what that range is for a standard Gaussian
LIMIT = 1e9  # scaled values are kept within ±LIMIT, so that no square or product overflows, in float32 either
_BLOCK = 2**22  # elements of a block of columns


def _robust(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, center, high = np.quantile(block, (CENTRAL[0], 0.5, CENTRAL[1]), axis=0)
    spread = _unless_constant((high - low) / GAUSSIAN_RANGE, np.maximum(abs(low), abs(high)))
    if (spread == 0).any():  # nearly always the same value: the deviation sees the rare ones
        spread = np.where(spread == 0, _standard(block)[1], spread)
    return center, spread


def _standard(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return block.mean(axis=0), _unless_constant(block.std(axis=0), abs(block).max(axis=0))


def _minmax(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = block.min(axis=0), block.max(axis=0)
    return low, _unless_constant(high - low, np.maximum(abs(low), abs(high)))


def _maxabs(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(block.shape[1]), abs(block).max(axis=0)


def _unless_constant(spread: np.ndarray, size: np.ndarray) -> np.ndarray:
    """0 where a spread is only the rounding of numbers of that size."""
    return np.where(spread > 8 * np.finfo(np.float64).eps * size, spread, 0.0)


_KINDS = {"robust": _robust, "standard": _standard, "minmax": _minmax, "maxabs": _maxabs}
SPARSE = (None, "maxabs")  # kinds that keep zeros zero


@dataclass(frozen=True)
class Scaling:
    """center, scale : (p,) float64, scale 1 for constant columns; both None for input that is taken as it is."""

    center: np.ndarray | None
    scale: np.ndarray | None

    @classmethod
    def learn(cls, kind: str | None, source: Source) -> Scaling:
        """Of the source's columns; no temporary is larger than a few columns."""
        if kind is None:
            return cls(None, None)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise unknown("scaling", kind, (*_KINDS, "None"))
        p = source.columns
        center, scale = np.zeros(p), np.ones(p)
        if source.indices is not None:  # maxabs, the only kind for sparse rows
            scale = np.zeros(p)
            np.maximum.at(scale, source.indices, np.abs(source.data.astype(np.float64)))
            return cls(center, np.where(scale > 0, scale, 1.0))
        width = max(1, _BLOCK // source.n_rows)
        for j in range(0, p, width):
            block = np.array(to_host(source.data[:, j : j + width]), dtype=np.float64, order="F")
            # exact powers of two keep squares and differences finite, whatever the column's unit
            exponent = np.frexp(abs(block).max(axis=0))[1]
            middle, spread = _KINDS[kind](np.ldexp(block, -exponent))
            center[j : j + width] = np.ldexp(middle, exponent)
            scale[j : j + width] = np.where(spread > 0, np.ldexp(spread, exponent), 1.0)
        return cls(center, np.where(scale > 0, scale, 1.0))

    def rows(self, source: Source, rows: Any, dtype: np.dtype) -> np.ndarray:
        """Scaled rows, a slice or ids, dense (m, p) in ``dtype``."""
        raw = source_rows(source)[rows] if source.indptr is None else _csr(source, source.data)[rows].toarray()
        if self.scale is None:
            return raw.astype(dtype)
        block = raw.astype(np.float64)
        with np.errstate(over="ignore"):
            block -= self.center
            block /= self.scale
        return np.clip(block, -LIMIT, LIMIT, out=block).astype(dtype, copy=False)

    def whole(self, source: Source, dtype: np.dtype, block: int) -> Any:
        """All rows scaled, in ``dtype``: an array, or a CSR array for sparse rows. Unscaled input isn't copied."""
        if source.indptr is not None:
            if self.scale is None:
                return _csr(source, source.data)
            return _csr(source, (source.data / self.scale[source.indices]).astype(dtype))
        if self.scale is None:
            return source.data
        out = np.empty((source.n_rows, source.columns), dtype)
        for start in range(0, source.n_rows, block):
            out[start : start + block] = self.rows(source, slice(start, start + block), dtype)
        return out


def _csr(source: Source, values: np.ndarray) -> Any:
    from scipy.sparse import csr_array

    return csr_array((values, source.indices, source.indptr), shape=(source.n_rows, source.columns))
