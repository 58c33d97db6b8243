"""Rows that come in sequence, in blocks cut by whoever makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from ..validation import readable
from .rows import Block, Rows, as_block, check_alike, column_names, count, join, same_names


class Sequence(Rows):
    """Blocks that an iterator gives; ``again`` makes a fresh one, or is None. n_rows: what each pass must have."""

    sequential = True
    passed: int | None = None  # rows of the last pass that came to its end

    def __init__(self, iterator: Iterator, again: Callable[[], Iterator] | None, n_rows: int | None, backend: Any):
        self._again, self._backend, self.repeatable = again, backend, again is not None
        self.n_rows = n_rows
        read = ((as_block(item), column_names(item[1])) for item in enumerate(iterator))
        first, self.names = next((pair for pair in read if pair[0].shape[0]), (None, None))
        if first is None:
            raise ValueError("the source has no rows; wanted at least one block with a row or more")
        self.n_features, self.dtype = first.shape[1], first.dtype.newbyteorder("=")
        self.sparse = not isinstance(first, np.ndarray)
        if self.sparse:
            self._density = first.nnz / (first.shape[0] * first.shape[1])
        self._begun: Iterator | None = chain([first], iterator)

    def _pass(self) -> Iterator[Block]:
        begun, self._begun = self._begun, None
        if begun is not None:
            return self._checked(begun)
        if self._again is None:
            raise ValueError(
                "the source is an iterator, which gives its rows once, and they were taken already; for a second pass "
                "(another epoch) give a function that returns a fresh iterator, a list of arrays, or a .npy file"
            )
        return self._checked(self._again())

    def first(self, n: int) -> Block:
        blocks, held, rows = self._pass(), [], 0
        while rows < n and (block := next(blocks, None)) is not None:
            rows += block.shape[0]
            held.append(block if rows >= n else block.copy())  # whoever makes the blocks may use the memory again
        self._begun = chain(held, blocks)
        return join(held)[:n]

    def _checked(self, iterator: Iterator) -> Iterator[Block]:
        rows = 0
        for item in enumerate(iterator):
            block = as_block(item)
            rows += block.shape[0]
            name = f"block {item[0]} of the source"
            check_alike(name, block.shape[1], block.dtype, self)
            self.names = same_names(name, column_names(item[1]), self.names)
            if isinstance(block, np.ndarray) is self.sparse:
                raise TypeError(f"{name} is a {type(block).__name__}, unlike the first; give only arrays or only "
                                "sparse matrices")  # fmt: skip
            if self.n_rows is not None and rows > self.n_rows:
                raise ValueError(f"the source has more rows than n_rows={self.n_rows}; give the number of its rows")
            yield readable(block) if isinstance(block, np.ndarray) else block
        self.passed = rows
        if self.n_rows is not None and 0 < rows < self.n_rows:
            raise ValueError(f"the source ended after {rows} rows of n_rows={self.n_rows}; give the number of its rows")
        if not rows:
            raise ValueError(
                "a second pass over the source gave no rows; the function must return a fresh iterator at every call"
            )

    def blocks(self, rows_per_block: int, start: int = 0) -> Iterator[Block]:
        size = count("rows_per_block", rows_per_block, 1)
        return self._cut(size, count("start", start, 0), self._pass())

    def _cut(self, size: int, start: int, blocks: Iterator[Block]) -> Iterator[Block]:
        held: list[Block] = []
        rows = seen = 0
        for block in blocks:
            seen += block.shape[0]
            if seen <= start:
                continue
            block = block[max(0, block.shape[0] - (seen - start)) :]
            while rows + block.shape[0] >= size:
                need = size - rows
                yield join([*held, block[:need]])
                held, rows, block = [], 0, block[need:]
            if block.shape[0]:
                held.append(block.copy())  # whoever makes the blocks may use the memory again
                rows += block.shape[0]
        if seen < start:
            raise ValueError(f"start={start} is beyond the source, which ended after {seen} rows")
        if rows:
            yield join(held)

    def _buffers(self, key: int, chunk: int, buffer: int, skip: int) -> Iterator[tuple[int, Block, np.ndarray, int]]:
        row = 0
        for which, data in enumerate(self.blocks(buffer)):
            n = data.shape[0]
            if skip < n:
                yield which, data, np.arange(row, row + n, dtype=np.int64), skip
            row, skip = row + n, max(0, skip - n)
