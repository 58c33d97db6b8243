"""Blocks of rows from anything that holds more rows than memory does.

`open_rows` takes an array, a memory map, a .npy file, a list of them (shards), a CSR matrix, or an iterable of 2-D
blocks, and gives `Rows`: in sequence (`Rows.blocks`) or shuffled (`Rows.shuffled`). Neither depends on how the rows
were cut into files or blocks by whoever made them, and both take memory for a buffer, whatever the number of rows.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..backends import get_backend
from ..validation import FLOATS, readable
from .device import DeviceRows
from .rows import Block, Rows, as_block, check_dtype, check_shape, column_names, count, same_names
from .sequence import Sequence
from .stored import Array, Mapped, Stored, open_file


def open_rows(
    source: Any, n_features: int | None = None, *, n_rows: int | None = None, names: Any = None, backend: Any = "auto"
) -> Rows:
    """Rows of a source of any kind.

    source : array (N, p); np.memmap; path of a .npy file; list of arrays or of such paths, which follow each other;
        scipy sparse matrix; what gives arrays when sliced (h5py, zarr, dask); iterable or iterator of 2-D blocks, what
        NumPy makes 2-D arrays of (Arrow's record batches, data frames) included; or a function that returns a fresh
        iterator, so that several passes are possible, such as ``lambda: ParquetFile(path).iter_batches()``. bfloat16
        files, which NumPy writes as two nameless bytes, need ml_dtypes. Frames must all have the same columns in the
        same order.
    n_features : the width that is wanted, or None for any
    n_rows : number of rows, which an iterable does not tell of itself; training can then plan with it (schedules,
        warm-ups, resampling) as with an array. A pass of another number of rows is an error.
    names : of the columns that frames must have, or None for any
    backend : what looks for NaN and infinity, as of an estimator
    Raises ValueError or TypeError for a source without rows, of another width or dtype, FileNotFoundError for files.
    """
    if n_rows is not None:
        n_rows = count("n_rows", n_rows, 1)
    rows = source if isinstance(source, Rows) else _open(source, n_rows, backend)
    if rows.n_features == 0 or rows.n_rows == 0:
        raise ValueError(f"the source has {rows.n_rows} rows of {rows.n_features} features; wanted one or more of both")
    if n_features is not None and rows.n_features != n_features:
        raise ValueError(f"the source has {rows.n_features} features; wanted {n_features}; give rows of that width")
    if n_rows is not None and rows.n_rows != n_rows:
        raise ValueError(f"the source has {rows.n_rows} rows; wanted n_rows={n_rows}; give the number of its rows")
    if names is not None and rows.names is not None and rows.names != list(names):
        raise ValueError(
            f"The feature names should match those that were passed during fit: the source has {rows.names}; wanted "
            f"{list(names)}, in this order"
        )
    return rows


def _open(source: Any, n_rows: int | None, backend: Any) -> Rows:
    if isinstance(source, (str, os.PathLike)):
        return Stored([open_file(source)], backend)
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("the source is an empty list; give .npy files or 2-D arrays")
        parts = [open_file(item) if isinstance(item, (str, os.PathLike)) else Array(as_block((i, item)))
                 for i, item in enumerate(source)]  # fmt: skip
        if len({part.sparse for part in parts}) > 1:
            raise TypeError("the source mixes arrays and sparse matrices; give only one kind")
        rows = Stored([part for part in parts if part.n_rows] or parts[:1], backend)
        for i, item in enumerate(source):
            rows.names = same_names(f"part {i} of the source", column_names(item), rows.names)
        return rows
    typed = isinstance(getattr(source, "dtype", None), np.dtype) and hasattr(source, "__getitem__")
    if typed and not isinstance(source, np.ndarray) and not hasattr(source, "tocsr"):  # perhaps larger than memory
        check_shape("the source", source.shape)
        check_dtype("the source", source.dtype)
        return Stored([Array(source)], backend)
    if isinstance(source, np.memmap):
        return Stored([Mapped(source)], backend)
    if hasattr(source, "shape"):
        rows = Stored([Array(as_block((None, source)))], backend)
        rows.names = column_names(source)
        return rows
    if callable(source):
        return Sequence(iter(source()), lambda: iter(source()), n_rows, backend)
    try:
        iterator = iter(source)
    except TypeError:
        raise TypeError(
            f"the source is a {type(source).__name__}; wanted an array, a .npy path, a list of them, a sparse matrix, "
            "an iterable of 2-D blocks, or a function that returns one"
        ) from None
    return Sequence(iterator, None if iterator is source else lambda: iter(source), n_rows, backend)


def check_finite(
    block: Block, first_row: int = 0, ids: np.ndarray | None = None, *, backend: Any = "auto", allow_nan: bool = False
) -> None:
    """Raises ValueError with the row's number for a block with NaN (unless these are allowed) or infinity.

    first_row : number of the block's first row in its source; or ``ids``: the number of every row
    backend : what looks, as of an estimator; allow_nan : whether NaN may be
    """
    dense = isinstance(block, np.ndarray)
    values = readable(block if dense else block.data.reshape(1, -1))
    if values.dtype.name not in FLOATS or get_backend(backend).all_finite(values):
        return
    numbers = values.astype(np.float32) if values.dtype.name == "bfloat16" else values
    wrong = np.isinf(numbers) if allow_nan else ~np.isfinite(numbers)
    if allow_nan and not wrong.any():
        return
    if dense:
        row, column = (int(where) for where in np.argwhere(wrong)[0])
    else:
        place = int(wrong[0].argmax())
        row, column = int(np.searchsorted(block.indptr, place, side="right")) - 1, int(block.indices[place])
    shown = first_row + row if ids is None else int(ids[row])
    value = values[row, column] if dense else values[0, place]
    raise ValueError(
        f"row {shown} of the source has {float(value)} in column {column}; wanted finite numbers; leave such rows out "
        "or fill them in"
    )


__all__ = ["DeviceRows", "Rows", "check_finite", "open_rows"]
