"""Rows that lie on a GPU, which steps read there: of these only the numbers are shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import to_host
from .rows import Rows, count
from .stored import visited


class DeviceRows(Rows):
    """An array (N, p) on a GPU. Blocks are the numbers of their rows, int64 (rows,), in the order of an array's.

    array : CuPy's; backend : that of its GPU
    """

    def __init__(self, array: Any, backend: Any):
        self.array, self._backend = array, backend
        self.n_rows, self.n_features = array.shape
        self.dtype = array.dtype

    def blocks(self, rows_per_block: int, start: int = 0) -> Iterator[np.ndarray]:
        size, n_rows = count("rows_per_block", rows_per_block, 1), self.array.shape[0]
        return (np.arange(row, min(row + size, n_rows)) for row in range(start, n_rows, size))

    def _buffers(
        self, key: int, chunk: int, buffer: int, skip: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
        for which, spans, left_out in visited(self, key, chunk, buffer, skip):
            ids = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in spans])
            yield which, ids, ids, left_out

    def first(self, n: int) -> np.ndarray:
        """The first n rows themselves, in the host's memory."""
        return to_host(self.array[:n])

    def _row(self, row: int) -> np.ndarray:
        return to_host(self.array[row : row + 1])
