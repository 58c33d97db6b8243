"""What all sources share: the interface, the shuffle, the checks of a block."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import of_tensor, to_host
from ..backends import get_backend
from ..spec.options import number
from ..validation import READABLE, refuse_masked

CHUNK_ELEMENTS = 2**21  # read at a time when shuffling: 8 MB in float32
BUFFER_ELEMENTS = 2**24  # mixed at a time
MAX_CHUNK_ROWS = 8192
DIGEST_ROWS = 16

Block = Any  # (rows, features): np.ndarray, or scipy's csr_array where the source is sparse


class Rows:
    """Rows of a source, in blocks.

    n_features : int
    n_rows : int, or None where only reading to the end would tell
    dtype : the stored type of the rows, native byte order
    names : of the columns, where the rows come in frames that have names; None elsewhere
    repeatable : whether a second pass is possible
    sequential : whether rows come one after the other only, as those of an iterable of blocks do
    sparse : whether blocks are csr_array
    """

    n_features: int
    n_rows: int | None
    dtype: np.dtype
    names: list[str] | None = None
    repeatable = True
    sequential = False
    sparse = False
    _density = 1.0  # stored elements a row, per feature
    _backend: Any = "auto"

    def blocks(self, rows_per_block: int, start: int = 0) -> Iterator[Block]:
        """Rows from number ``start`` on, ``rows_per_block`` at a time; the last block has what is left.

        Blocks may share memory with the source, and are the caller's until the next one is asked for.
        Raises ValueError for blocks that do not fit together, or a source that was used up.
        """
        raise NotImplementedError

    def first(self, n: int) -> Block:
        """The first rows, n of them if there are as many; the next pass gives them again."""
        raise NotImplementedError

    def digest(self) -> str:
        """A hash by which sources of one shape are told apart: of the first rows and, where all are at hand, of the
        middle and the last one.
        """
        others = () if self.sequential or self.n_rows is None else (self.n_rows // 2, self.n_rows - 1)
        return hash_of([self.first(DIGEST_ROWS), *map(self._row, others)])

    def _row(self, row: int) -> Block:
        """One row (1, features) where all are at hand."""
        return next(self.blocks(1, row))

    def _buffers(self, key: int, chunk: int, buffer: int, skip: int) -> Iterator[tuple[int, Block, np.ndarray, int]]:
        """Number, rows, row ids and how many mixed rows to leave out, of each buffer in turn."""
        raise NotImplementedError

    def shuffled(
        self, seed: int, epoch: int, rows_per_block: int, start_block: int = 0, *, chunk_rows: int | None = None,
        buffer_rows: int | None = None,
    ) -> Iterator[tuple[Block, np.ndarray]]:  # fmt: skip
        """Blocks (rows, row ids int64) in an order that is a function of (seed, epoch), and of the two sizes.

        Blocks have ``rows_per_block`` rows, the last one fewer.
        Chunks of ``chunk_rows`` contiguous rows (None: 2²¹ elements, at most 8192 rows) are visited in random order;
        the rows of as many chunks as make ``buffer_rows`` (None: 2²⁴ elements) are mixed. An iterator's rows come as
        they come and are only mixed within the buffer. The order is the same on every backend, and is none that `fit`
        uses for arrays. With ``start_block`` the blocks before are left out, unread where the source allows.
        """
        size = count("rows_per_block", rows_per_block, 1)
        skip = size * count("start_block", start_block, 0)
        row = max(1, int(self.n_features * self._density))
        if chunk_rows is None:
            chunk_rows = min(MAX_CHUNK_ROWS, max(1, CHUNK_ELEMENTS // row))
        if buffer_rows is None:
            buffer_rows = max(1, BUFFER_ELEMENTS // row)
        chunk = count("chunk_rows", chunk_rows, 1)
        buffer = count("buffer_rows", buffer_rows, 1)
        key = _key(number("seed", seed, 0, 2**64 - 1, integer=True), count("epoch", epoch, 0))
        return self._shuffled(size, self._buffers(key, chunk, buffer, skip), key)

    def _shuffled(self, size: int, buffers: Iterator, key: int) -> Iterator[tuple[Block, np.ndarray]]:
        held: list[tuple[Block, np.ndarray]] = []
        rows = 0
        for which, data, ids, skip in buffers:
            order = self._permutation(key, which + 1, len(ids))
            while skip < len(ids):
                chosen = order[skip : skip + size - rows]
                held.append((data[chosen], ids[chosen]))
                rows, skip = rows + len(chosen), skip + len(chosen)
                if rows == size:
                    yield join([block for block, _ in held]), np.concatenate([part for _, part in held])
                    held, rows = [], 0
        if rows:
            yield join([block for block, _ in held]), np.concatenate([part for _, part in held])

    def _permutation(self, key: int, which: int, n: int) -> np.ndarray:
        return get_backend(self._backend).permutation(key, which, n)


def count(name: str, value: Any, low: int) -> int:
    return number(name, value, low, math.inf, integer=True)


def _key(seed: int, epoch: int) -> int:
    """64 bits that stand for (seed, epoch): a seed of their own, so that no permutation of `training` comes again."""
    text = b"fastae.stream" + seed.to_bytes(8, "little") + epoch.to_bytes(16, "little")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


# ---- blocks ---


def as_block(item: tuple[int | None, Any]) -> Block:
    """A checked block of rows: (number or None for the whole source, what came)."""
    which, value = item
    name = "the source" if which is None else f"block {which} of the source"
    if hasattr(value, "tocsr"):
        from scipy.sparse import csr_array

        block = csr_array(value)
        check_dtype(name, block.dtype)
        return block
    refuse_masked(name, value)
    array = np.asarray(of_tensor(value))
    check_shape(name, array.shape)
    return array.view(check_dtype(name, array.dtype))


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {shape}; wanted 2 dimensions (rows, features); a single row is x[None, :]")
    if any(n != n for n in shape):  # NaN
        raise ValueError(f"{name} has shape {shape}, a size that is not known; of a dask array call "
                         "compute_chunk_sizes() first")  # fmt: skip


def column_names(value: Any) -> list[str] | None:
    """Names of a frame's columns, where all are strings (as scikit-learn has it); None of anything else."""
    names = getattr(value, "column_names", getattr(value, "columns", None))
    names = [] if names is None else list(names)
    return names if names and all(isinstance(name, str) for name in names) else None


def same_names(name: str, found: list[str] | None, names: list[str] | None) -> list[str] | None:
    """The names of the columns so far and of one more part, which may have none; ValueError where they differ."""
    if found is not None and names is not None and found != names:
        raise ValueError(f"{name} has columns {found}, those before {names}; give the same columns in the same order")
    return found if names is None else names


def check_dtype(name: str, dtype: np.dtype) -> np.dtype:
    """The dtype, bfloat16 by its name; raises TypeError for what no kernel reads."""
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise ImportError(f"{name} holds bfloat16, for which ml_dtypes is needed: pip install ml_dtypes") from None
        return np.dtype(bfloat16)
    if dtype.name not in READABLE:
        raise TypeError(f"{name} has dtype {dtype}; wanted real numbers of 64 bits or less; convert with astype")
    return dtype


def check_alike(name: str, n_features: int, dtype: np.dtype, rows: Rows) -> None:
    if n_features != rows.n_features:
        raise ValueError(f"{name} has {n_features} features, the first has {rows.n_features}; all must be of one width")
    if dtype.newbyteorder("=") != rows.dtype.newbyteorder("="):
        raise TypeError(f"{name} has dtype {dtype}, the first has {rows.dtype}; convert them to one with astype")


def hash_of(blocks: list[Block]) -> str:
    """Of the numbers in blocks of rows."""
    found = hashlib.sha256()
    for block in blocks:
        dense = block.toarray() if hasattr(block, "toarray") else to_host(block)
        found.update(np.ascontiguousarray(dense, dense.dtype.newbyteorder("<")).view(np.uint8).data)
    return f"sha256:{found.hexdigest()}"


def join(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    if isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    from scipy.sparse import vstack

    return vstack(blocks, format="csr")
