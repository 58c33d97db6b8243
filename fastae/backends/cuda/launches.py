"""Launches: a kernel with its grid and record, what may run beside others, and where they would meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

THREADS, LANES, COLUMNS = 256, 16, 32
PART = 16  # bytes that a thread reads or writes at a time: Part of device.cuh
MOST_ASIDE = 65535  # blocks of a grid along y or z
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One kernel over a grid of blocks, with its record."""

    kernel: str
    grid: Grid
    block: Grid
    shared: int
    record: np.ndarray
    formula: int = 0  # index of one whose Python functions the kernel is linked with
    held: Any = None  # memory of the device that the record points to


@dataclass(frozen=True, eq=False)
class Beside:
    """Launches, one after another, that may run beside those that follow them, until some `Wait` is for them."""

    launches: list[Any]


@dataclass(frozen=True)
class Wait:
    """What ran beside and is done before what follows."""

    ended: list[Beside]


@dataclass(frozen=True)
class Uses:
    """Where what runs beside and the rest must not meet: bytes of buffers, memory that ops share, the step's values."""

    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]
    values: bool = False
    work: bool = False

    def meets(self, other: Uses) -> bool:
        """Whether one has to be done before the other."""
        return (
            (self.values and other.values) or (self.work and other.work) or overlap(self.writes, other.writes)
            or overlap(self.writes, other.reads) or overlap(self.reads, other.writes)
        )  # fmt: skip


def overlap(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def float_bits(x: float) -> int:
    """A float64 as the integer of its bits."""
    return int(np.float64(x).view(np.int64))


def power(n: int, low: int, high: int) -> int:
    """The smallest power of two that is not below n, within bounds that are powers themselves."""
    return min(high, max(low, 1 << max(n - 1, 0).bit_length()))


def over_cells(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for ``each_cell``: threads over columns first, so that memory is read in rows."""
    x = power(columns, 1, THREADS)
    y = power(rows, 1, THREADS // x)
    return (max(1, min(ceil_div(rows, y), 16384)), max(1, min(ceil_div(columns, x), MOST_ASIDE)), 1), (x, y, 1)


def over_fours(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for ``each_four``."""
    return over_cells(rows, ceil_div(columns, 4))


def over(n: int) -> tuple[Grid, Grid]:
    """Grid and block for ``each``."""
    threads = power(n, 32, THREADS)
    return (max(1, min(ceil_div(n, threads), 16384)), 1, 1), (threads, 1, 1)


def over_rows(rows: int) -> tuple[Grid, Grid]:
    """Grid and block for ``each_row``: sixteen threads a row, whole warps."""
    y = power(rows, 2, THREADS // LANES)
    return (max(1, min(ceil_div(rows, y), 16384)), 1, 1), (LANES, y, 1)


def in_one_block(n: int) -> tuple[Grid, Grid]:
    """Grid and block for a sum of n numbers by ``block_sum``; more threads would add zeros."""
    return (1, 1, 1), (power(n, 32, 1024), 1, 1)


def over_columns(columns: int) -> tuple[Grid, Grid]:
    """Grid and block for ``each_column``: sixteen threads a column, for sums over rows."""
    return (max(1, min(ceil_div(columns, COLUMNS), 16384)), 1, 1), (COLUMNS, LANES, 1)
