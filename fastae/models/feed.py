"""Rows for training that come in blocks: opened, checked, in blocks of whole batches, from any step on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from ..arrays import on_device
from ..backends import get_backend
from ..plan.plan import Source
from ..schedules import ConstantRate, ReduceOnPlateau, Schedule, StepDecay
from ..stream import DeviceRows, Rows, check_finite, open_rows
from ..stream.rows import BUFFER_ELEMENTS, CHUNK_ELEMENTS, MAX_CHUNK_ROWS
from ..training import Block
from ..validation import check_rows, computing_dtype

MAPPED_BYTES = 1 << 30  # a memory map with more is read in blocks, one with less as an array
_BLOCK_ELEMENTS = 1 << 22  # of a block of rows
_DEVICE_STEPS = 64  # of a block of rows that lie on a GPU


def is_stream(X: Any) -> bool:
    """Whether rows come in blocks, and not as an array, matrix, frame or nested list that lies in memory.

    That is: from files, memory maps of more than 1 GiB, datasets in chunks (h5py, zarr, dask), or an iterable of
    blocks.
    """
    if isinstance(X, (Rows, str, os.PathLike)) or callable(X):
        return True
    if isinstance(X, (list, tuple)):
        return bool(X) and (isinstance(X[0], (str, os.PathLike)) or len(getattr(X[0], "shape", ())) == 2)
    if isinstance(X, np.memmap):
        return X.nbytes > MAPPED_BYTES
    if hasattr(X, "chunks") and isinstance(getattr(X, "dtype", None), np.dtype):
        return True
    return not hasattr(X, "shape") and not hasattr(X, "__array__") and hasattr(X, "__iter__")


def source_of(block: Any) -> Source:
    """A block of rows, dense or CSR, as kernels read it."""
    if isinstance(block, np.ndarray):
        return Source(block, columns=block.shape[1])
    return Source(block.data, block.indptr, block.indices, block.shape[1])


def rows_of(source: Source) -> Any:
    """What `open_rows` takes: the array, or the CSR matrix."""
    if source.indptr is None:
        return source.data
    from scipy.sparse import csr_array

    return csr_array((source.data, source.indices, source.indptr), (source.n_rows, source.columns))


def as_fit_reads(model: Any, source: Any) -> Any:
    """Rows that are not numbers by their dtype as numbers: frames, whose names are checked, nested lists, objects."""
    numeric = hasattr(source, "tocsr") or getattr(getattr(source, "dtype", None), "kind", "O") != "O"
    if numeric or is_stream(source) or not hasattr(model, "get_params"):
        return source
    return rows_of(check_rows(model, source, reset=False, backend=get_backend())[0])


def names_of(model: Any) -> Any:
    """Names of the columns that a model was fitted on, or None."""
    return getattr(model, "feature_names_in_", None)


def without_names(model: Any) -> Any:
    """The same fitted model for blocks of rows, which have no names of features: scikit-learn would warn of each."""
    if "feature_names_in_" not in getattr(model, "__dict__", ()):
        return model
    other = object.__new__(type(model))
    other.__dict__.update({name: value for name, value in model.__dict__.items() if name != "feature_names_in_"})
    return other


def open_checked(estimator: Any, X: Any, *, reset: bool, backend: Any, precision: str) -> tuple[Rows, np.dtype, bool]:
    """Rows of X, the dtype to compute in, and whether blocks must still be looked at for NaN and infinity.

    Sets (``reset``) or checks n_features_in_ and feature_names_in_ of the estimator.
    """
    if not is_stream(X):
        source, dtype = check_rows(estimator, X, reset=reset, backend=backend, precision=precision)
        if on_device(source.data):
            return DeviceRows(source.data, backend), dtype, False
        return open_rows(rows_of(source), backend=backend), dtype, False
    known = {} if reset else {"n_features": estimator.n_features_in_, "names": names_of(estimator)}
    rows = open_rows(X, backend=backend, **known)
    if reset:
        estimator.n_features_in_ = rows.n_features
        estimator.__dict__.pop("feature_names_in_", None)
        if rows.names is not None:
            estimator.feature_names_in_ = np.array(rows.names, dtype=object)
    return rows, computing_dtype(rows.dtype, precision), True


def on_one_side(*rows: Rows | None) -> tuple[Any, ...]:
    """Rows of which all lie on a GPU, or all in the host's memory: blocks have one order."""
    if all(part is None or isinstance(part, DeviceRows) for part in rows):
        return rows
    return tuple(open_rows(part.first(part.array.shape[0]), backend=part._backend) if isinstance(part, DeviceRows)
                 else part for part in rows)  # fmt: skip


def check_repeatable(rows: Rows, passes: int) -> None:
    """Raises unless as many passes over the rows are possible."""
    if not rows.repeatable and passes > 1:
        raise ValueError(
            f"max_iter={passes} passes over an iterator that gives its rows once; set max_iter=1, or "
            "give a function that returns a fresh iterator"
        )


def check_timing(rows: Rows, settings: dict[str, bool]) -> None:
    """Raises for settings, name → whether in use, that depend on a number of rows that is not known beforehand."""
    if rows.n_rows is None and any(settings.values()):
        name = next(name for name, wanted in settings.items() if wanted)
        raise ValueError(
            f"{name} depends on the length of training, which an iterable of blocks does not tell; say it with "
            "fastae.stream.open_rows(blocks, n_rows=…), or give an array, .npy files, or a constant setting"
        )


def changes_within_epochs(schedule: Schedule) -> bool:
    """Whether a learning rate depends on how far an epoch has come."""
    return not isinstance(schedule, (ConstantRate, StepDecay, ReduceOnPlateau))


@dataclass
class Feed:
    """Blocks of rows (and of targets) in the order of an epoch."""

    x: Rows
    y: Rows | None
    batch: int
    shuffle: bool
    seed: int
    backend: Any
    unchecked: bool
    allow_nan: bool = False
    _begun: tuple[int, Block, Iterator[Block]] | None = field(default=None, repr=False)

    @property
    def steps_per_epoch(self) -> int | None:
        return None if self.x.n_rows is None else -(-self.x.n_rows // self.batch)

    @property
    def passed(self) -> int:
        """Rows of an epoch, when one was gone through."""
        return self.x.passed if self.x.n_rows is None else self.x.n_rows  # type: ignore[attr-defined]

    @property
    def block_rows(self) -> int:
        """Rows of a block: whole batches."""
        if isinstance(self.x, DeviceRows):
            return self.batch * _DEVICE_STEPS
        return self.batch * max(1, _BLOCK_ELEMENTS // (self.x.n_features * self.batch))

    @property
    def _whole(self) -> tuple[Source, ...]:
        """All rows (and targets) that lie on a GPU."""
        parts = [rows.array for rows in (self.x, self.y) if isinstance(rows, DeviceRows)]
        return tuple(Source(array, columns=array.shape[1]) for array in parts)

    def _rows(self, rows: Rows, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        """Blocks and the rows' numbers from block ``first`` on."""
        size = self.block_rows
        if self.shuffle:
            # targets follow the input's sizes, so that both are mixed alike
            p = self.x.n_features
            return rows.shuffled(self.seed, epoch, size, first, buffer_rows=max(1, BUFFER_ELEMENTS // p),
                                 chunk_rows=min(MAX_CHUNK_ROWS, max(1, CHUNK_ELEMENTS // p)))  # fmt: skip
        blocks = rows.blocks(size, first * size)
        return ((block, np.arange(i * size, i * size + block.shape[0])) for i, block in enumerate(blocks, first))

    def first(self, epoch: int) -> Block:
        """The first block of an epoch, which `blocks` gives again."""
        blocks = self._blocks(epoch, 0)
        self._begun = epoch, next(blocks), blocks
        return self._begun[1]

    def blocks(self, epoch: int, step: int) -> Iterator[Block]:
        """What is left of an epoch after ``step`` steps."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == epoch and not step:
            return chain([begun[1]], begun[2])
        return self._blocks(epoch, step)

    def _blocks(self, epoch: int, step: int) -> Iterator[Block]:
        first, skip = divmod(step * self.batch, self.block_rows)
        parts = [self._rows(rows, epoch, first) for rows in (self.x, self.y) if rows is not None]
        for together in zip_longest(*parts):
            if any(part is None for part in together) or len({part[0].shape[0] for part in together}) > 1:
                raise ValueError("X and y have different numbers of rows; give a row of targets for each row of X")
            if isinstance(self.x, DeviceRows):
                places = together[0][0][skip:]
                skip = 0
                if len(places):
                    yield Block(self._whole, len(places), places)
                continue
            taken = []
            for block, ids in together:
                if self.unchecked:
                    check_finite(block, ids=ids, backend=self.backend, allow_nan=self.allow_nan)
                taken.append(source_of(block[skip:] if skip else block))
            skip = 0
            if taken[0].n_rows:
                yield Block(tuple(taken), taken[0].n_rows)
        passed = getattr(self.x, "passed", None)
        if step and passed is not None and passed <= (step - 1) * self.batch:
            raise ValueError(
                f"X ended after {passed} rows, before step {step}, which was done already; give the same data"
            )
