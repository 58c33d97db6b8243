"""Rows of a job on the device: where they lie already, or block by block through two buffers.

A block is the rows of some consecutive batches. While the kernels work on one, the next is put together in pinned
memory and copied by a stream of its own. Results that have a row per row of the job go back block by block too, so
that neither input nor output need fit the device's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...plan import schema
from ...plan.plan import Job, Plan, Source
from .binder import READ
from .launches import Launch
from .record import LAUNCH, SOURCE

BLOCK_BYTES = 1 << 28  # of rows and results that are in flight at a time

# slots that an op writes without reading them: their arrays need not go to the device first
WRITTEN = {
    "dense": ("y", "z"), "dense_int8": ("y",), "activation": ("y",), "softmax": ("y",), "store_half": ("out",),
    "store_int8": ("out", "scale"), "loss": ("row_value",), "likelihood": ("row_value",), "distribution": ("out",),
    "gather": ("x", "weight", "rows"), "encode": ("val", "pre", "idx", "count"), "decode": ("y",), "restore": ("out",),
    "narrow": ("val_out", "idx_out", "count_out"), "gated_code": ("val",), "dropout": ("y",), "noise": ("y",),
}  # fmt: skip


@dataclass(frozen=True)
class DeviceArray:
    """Rows (N, p) that lie on the device without gaps."""

    buffer: Any
    shape: tuple[int, int]
    dtype: np.dtype

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, int]:
        return self.shape[1] * self.itemsize, self.itemsize


def on_device(array: Any) -> bool:
    """Whether an array lies on a device already."""
    return isinstance(array, DeviceArray) or hasattr(array, "__cuda_array_interface__")


def source_bytes(source: Source) -> int:
    """Bytes of a source's rows."""
    parts = (source.data, source.indptr, source.indices, source.weight)
    return sum(a.shape[0] * (a.shape[1] if a.ndim == 2 else 1) * a.dtype.itemsize for a in parts if a is not None)


def place(driver: Any, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources with their rows on the device, where they take at most half of its free memory."""
    waiting = [source for source in sources if source.indptr is None and not on_device(source.data)]
    if sum(source_bytes(source) for source in waiting) > driver.free_bytes() // 2:
        return sources

    def placed(source: Source) -> Source:
        if all(source is not other for other in waiting):  # `in` would compare arrays
            return source
        data = np.ascontiguousarray(source.data)
        array: Any = DeviceArray(driver.upload(data, aside=True), data.shape, data.dtype)
        return Source(array, columns=source.columns, weight=source.weight)

    return tuple(placed(source) for source in sources)


class Rows:
    """The sources of a job, block by block where they lie on the host."""

    def __init__(self, driver: Any, plan: Plan, job: Job, step: int):
        self.driver, self.plan, self.job, self.step = driver, plan, job, step
        self.resident = all(on_device(s.data) for s in job.sources)
        self.slots = (driver.slot(), driver.slot())
        self.turn = 0
        self.held: list[Any] = []
        self.first, self.last = 0, 0  # positions of the rows that the next steps may read
        mixed = any(on_device(s.data) for s in job.sources)  # X beside labels, of which only one lies there
        if not self.resident and (mixed or any(op.kind in ("take", "neighbour") for op in plan.ops)):
            self._whole()

    def _whole(self) -> None:
        """Steps of a graph between rows read them in any order: all of them have to be there."""
        job = self.job
        wanted = sum(source_bytes(s) for s in job.sources if not on_device(s.data))
        if wanted > self.driver.free_bytes():
            raise MemoryError(
                f"a Laplacian penalty, or labels, are read in any order, so all {wanted} bytes of rows must fit the "
                f"GPU's memory ({self.driver.free_bytes()} bytes free); use device='cpu'"
            )
        self.resident = True

    def records(self) -> np.ndarray:
        """(n,) `SOURCE` records as steps begin; addresses of rows that come in blocks are told by `block`."""
        out = np.zeros(len(self.job.sources), SOURCE)
        for i, source in enumerate(self.job.sources):
            out[i]["dtype"], out[i]["columns"] = source.code, source.columns or source.data.shape[1]
            if not self.resident:
                continue
            data = source.data
            out[i]["data"] = self._keep(data)
            out[i]["weight"] = self._keep(source.weight)
            if source.indptr is not None:
                out[i]["indptr"] = self._keep(np.asarray(source.indptr, np.int64))
                out[i]["indices"] = self._keep(np.asarray(source.indices, np.int32))
            else:
                gaps = on_device(data) and len(data) > 1
                out[i]["row_stride"] = data.strides[0] // data.dtype.itemsize if gaps else data.shape[1]
        return out

    def _keep(self, array: Any) -> int:
        if array is None:
            return 0
        if on_device(array):
            return self.driver.address(array.buffer if isinstance(array, DeviceArray) else array)
        buffer = self.driver.upload(np.ascontiguousarray(array))
        self.held.append(buffer)
        return self.driver.address(buffer)

    def block(self, start: int, stop: int) -> Launch | None:
        """Brings the rows at positions [start, stop) to the device; the launch after which steps read them."""
        if self.resident:
            return None
        slot = self.slots[self.turn % 2]
        self.turn += 1
        ids = np.arange(start, stop) if self.job.order is None else self.job.order[start:stop]
        record = np.zeros(1, LAUNCH)
        record["step"], record["extra"][0, :2] = self.step, (start, len(self.job.sources))
        parts: list[np.ndarray] = []
        for source in self.job.sources:
            parts += _taken(source, ids, self.job.order is None)
        addresses = slot.send(parts)
        for i in range(len(self.job.sources)):
            data, weight, indptr, indices = addresses[4 * i : 4 * i + 4]
            record["slot"][0, 2 * i] = (data, weight, 0, self.job.sources[i].columns or parts[4 * i].shape[-1])
            record["slot"][0, 2 * i + 1] = (indptr, indices, 0, 0)
        return Launch("enter_block", (1, 1, 1), (32, 1, 1), 0, record)

    def done(self) -> None:
        """The steps of the last block are launched: its buffer may be written to after them."""
        if not self.resident:
            self.slots[(self.turn - 1) % 2].used()


def _taken(source: Source, ids: np.ndarray, sequence: bool) -> list[Any]:
    """data, weight, indptr and indices of some rows; None for what there is not."""
    span = slice(ids[0], ids[-1] + 1) if sequence and len(ids) else ids
    weight = None if source.weight is None else source.weight[span]
    if source.indptr is None:
        return [source.data[span], weight, None, None]
    starts, ends = np.asarray(source.indptr)[ids], np.asarray(source.indptr)[ids + 1]
    lengths = ends - starts
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
    return [source.data[entries], weight, indptr, np.asarray(source.indices)[entries].astype(np.int32)]


def row_bytes(plan: Plan, job: Job, resident: bool) -> int:
    """Bytes that a row of a job takes on its way to the device and back."""
    size = sum(b.columns * plan.buffer_dtype(b).itemsize for b in plan.buffers
               if b.space >= schema.EXTERNAL and b.rows == schema.BATCH_ROWS)  # fmt: skip
    if not resident:
        size += sum(source_bytes(s) // max(s.n_rows, 1) + 8 for s in job.sources)
    return max(size, 1)


def read_externals(plan: Plan) -> set[str]:
    """Names of the caller's arrays that some op reads."""
    read, written = set(), set()
    for op in plan.ops:
        for slot, name in op.slots.items():
            owner = plan.buffers[plan.index[name]].parent or name
            if plan.buffers[plan.index[owner]].space < schema.EXTERNAL:
                continue
            if slot in WRITTEN.get(op.kind, ()) and name == owner and op.ints.get("accumulate", 0) <= 0:
                written.add(owner)
            elif owner not in written:
                read.add(owner)
    return read


def written_externals(plan: Plan) -> set[str]:
    """Names of the caller's arrays that an op may write."""
    found = set()
    for op in plan.ops:
        for slot, name in op.slots.items():
            if slot not in READ.get(op.kind, ()):
                found.add(plan.buffers[plan.index[name]].parent or name)
    return {name for name in found if plan.buffers[plan.index[name]].space >= schema.EXTERNAL}
