"""Rows that can be read from anywhere: arrays, matrices and files, one after the other."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..validation import readable
from .rows import Block, Rows, as_block, check_alike, check_dtype, check_shape, count, join


class Array:
    """A part of the rows that is an array, a CSR matrix, or what gives arrays when sliced (h5py, zarr, dask)."""

    def __init__(self, array: Any):
        self.array, self.dtype = array, array.dtype.newbyteorder("=")
        self.n_rows, self.n_features = array.shape
        self.sparse = hasattr(array, "tocsr")

    def read(self, start: int, stop: int) -> Block:
        block = self.array[start:stop]
        return block if self.sparse else readable(np.asarray(block))

    def fill(self, start: int, stop: int, out: np.ndarray) -> None:
        out[...] = self.array[start:stop]


class Mapped(Array):
    """A part of the rows that is a memory map: pages that were read are let go, or they would count as memory."""

    def __init__(self, array: np.memmap):
        super().__init__(as_block((None, array)))
        # only where the pages are the file's own: private ones would lose what was written to them
        self._map: Any = getattr(array, "_mmap", None) if array.mode == "r" else None

    def _let_go(self) -> None:
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def read(self, start: int, stop: int) -> Block:
        self._let_go()
        return super().read(start, stop)

    def fill(self, start: int, stop: int, out: np.ndarray) -> None:
        super().fill(start, stop, out)
        self._let_go()


class File:
    """A part of the rows that is a .npy file in C order.

    Read, not mapped: memory stays what a block takes, and a file cut short is an error instead of a signal.
    """

    sparse = False

    def __init__(self, path: str, mapped: np.memmap, dtype: np.dtype):
        self.path, self.stored, self.offset = path, dtype, mapped.offset
        self.dtype = dtype.newbyteorder("=")
        self.n_rows, self.n_features = mapped.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.n_features), self.dtype)
        self.fill(start, stop, out)
        return out

    def fill(self, start: int, stop: int, out: np.ndarray) -> None:
        raw = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + start * self.n_features * self.dtype.itemsize)
            done = 0
            while done < len(raw):
                got = file.readinto(raw[done:])
                if not got:
                    raise OSError(f"{self.path!r} ends before row {stop} of {self.n_rows}; was it cut short?")
                done += got
        if not self.stored.isnative:
            out.byteswap(inplace=True)


class Stored(Rows):
    """Parts with random access, one after the other."""

    def __init__(self, parts: list, backend: Any):
        first = parts[0]
        self.n_features, self.dtype, self._backend = first.n_features, first.dtype, backend
        for i, part in enumerate(parts):
            check_alike(f"part {i} of the source", part.n_features, part.dtype, self)
        self._parts = parts
        self._ends = list(accumulate(part.n_rows for part in parts))
        self.n_rows, self.sparse = self._ends[-1], first.sparse
        if self.sparse:
            stored = sum(part.array.nnz for part in parts)
            self._density = stored / max(1, self.n_rows * self.n_features)

    def blocks(self, rows_per_block: int, start: int = 0) -> Iterator[Block]:
        size, n_rows = count("rows_per_block", rows_per_block, 1), self._ends[-1]
        if not 0 <= start <= n_rows:
            raise ValueError(f"start={start} must be in [0, {n_rows}], the rows of the source")
        return (self._read(row, min(row + size, n_rows)) for row in range(start, n_rows, size))

    def first(self, n: int) -> Block:
        return self._read(0, min(n, self._ends[-1]))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        i = bisect_right(self._ends, start)
        while start < stop:
            base = self._ends[i - 1] if i else 0
            end = min(stop, self._ends[i])
            yield self._parts[i], start - base, end - base
            start, i = end, i + 1

    def _read(self, start: int, stop: int) -> Block:
        pieces = list(self._pieces(start, stop))
        if self.sparse or len(pieces) == 1:
            return join([part.read(a, b) for part, a, b in pieces])
        return self._filled(pieces, np.empty((stop - start, self.n_features), self.dtype))

    def _filled(self, pieces: list[tuple[Any, int, int]], out: np.ndarray) -> np.ndarray:
        row = 0
        for part, a, b in pieces:
            part.fill(a, b, out[row : row + b - a])
            row += b - a
        return out

    def _buffers(self, key: int, chunk: int, buffer: int, skip: int) -> Iterator[tuple[int, Block, np.ndarray, int]]:
        n_rows = self._ends[-1]
        most = min(n_rows, max(1, buffer // chunk) * chunk)
        space = None if self.sparse else np.empty((most, self.n_features), self.dtype)
        for which, spans, left_out in visited(self, key, chunk, buffer, skip):
            n = sum(b - a for a, b in spans)
            if space is None:
                data = join([self._read(a, b) for a, b in spans])
            else:
                data = self._filled([piece for a, b in spans for piece in self._pieces(a, b)], space[:n])
            yield which, data, np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in spans]), left_out


def visited(rows: Rows, key: int, chunk: int, buffer: int, skip: int) -> Iterator[tuple[int, list, int]]:
    """Number of each buffer, the spans of rows (first, last + 1) that it holds, and how many mixed rows to leave out.

    Buffers of which all is left out don't come.
    """
    n_rows = rows.n_rows
    assert n_rows is not None
    order = rows._permutation(key, 0, -(-n_rows // chunk))
    per_buffer = max(1, buffer // chunk)
    for which in range(-(-len(order) // per_buffer)):
        starts = order[which * per_buffer : (which + 1) * per_buffer] * chunk
        stops = np.minimum(starts + chunk, n_rows)
        n = int((stops - starts).sum())
        if skip >= n:
            skip -= n
            continue
        yield which, list(zip(starts.tolist(), stops.tolist(), strict=True)), skip
        skip = 0


_NPY = b"\x93N"
_OTHERS = {  # by how they begin
    b"PAR1": "Parquet; give lambda: pyarrow.parquet.ParquetFile(path).iter_batches()",
    b"\x89HDF": "HDF5; give one of its datasets, such as h5py.File(path)['activations']",
}


def open_file(path: Any) -> File | Array:
    path = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r}; give a .npy file of shape (rows, features)")
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, how in _OTHERS.items():
        if start.startswith(magic):
            raise ValueError(f"{path!r} is not a .npy file but {how}")
    try:
        if start[:2] not in (_NPY, b"PK", b""):
            raise ValueError(f"it begins with {start!r}")
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.memmap):
            raise ValueError("it is an archive of several arrays")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path!r} is not a .npy file of numbers ({error}); write it with numpy.save") from None
    check_shape(f"{path!r}", mapped.shape)
    dtype = check_dtype(f"{path!r}", mapped.dtype)
    if mapped.flags.c_contiguous:
        return File(path, mapped, dtype)
    return Array(mapped.view(dtype))
