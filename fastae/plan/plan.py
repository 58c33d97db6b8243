"""A plan: op records over named buffers, and how they are laid out in memory.

Pure data. A backend reads it, binds it to memory (`Memory`) and runs it; see `fastae.backends`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import schema
from .schema import ARENA, BATCH_ROWS, EXTERNAL, FLOAT16, FLOAT64, GRAD, INT8, INT32, INT64, REAL, STATE, THETA

ALIGNMENT = 64  # bytes; every buffer starts on a cache line
_DTYPES: dict[int, np.dtype] = {
    FLOAT64: np.dtype(np.float64), INT64: np.dtype(np.int64), FLOAT16: np.dtype(np.float16), INT8: np.dtype(np.int8),
    INT32: np.dtype(np.int32),
}  # fmt: skip
_SPACE_NAMES = {ARENA: "arena", THETA: "theta", GRAD: "grad", STATE: "state"}


@dataclass(frozen=True)
class Buffer:
    """A named array of ``rows`` × ``columns`` at ``offset`` bytes into a space.

    ``rows`` is `BATCH_ROWS` for one row per batch row. Rows are contiguous. With a ``parent`` it has no memory of its
    own but is that buffer's columns from ``first`` on.
    """

    name: str
    space: int
    offset: int
    rows: int
    columns: int
    dtype: int = REAL
    parent: str | None = None
    first: int = 0

    def shape(self, batch: int) -> tuple[int, int]:
        return (batch if self.rows == BATCH_ROWS else self.rows), self.columns


@dataclass(frozen=True)
class Op:
    """One record: a kind of `schema.OP_KINDS` with its buffers (names), integers, floats and phase."""

    kind: str
    phase: int
    slots: dict[str, str]
    ints: dict[str, int] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything a backend needs to run a network for any number of steps."""

    dtype: np.dtype
    batch: int
    buffers: tuple[Buffer, ...]
    ops: tuple[Op, ...]
    sizes: tuple[int, ...]  # bytes of arena, theta, grad, state
    n_values: int = 0  # numbers reported per step
    n_scalars: int = 0  # numbers given per step
    n_external: int = 0  # caller's arrays beyond the four spaces
    title: str = "plan"

    @cached_property
    def index(self) -> dict[str, int]:
        """Buffer name → position."""
        return {buffer.name: i for i, buffer in enumerate(self.buffers)}

    @property
    def row_local(self) -> bool:
        """Whether every op leaves the rows of a batch independent and no parameter changes."""
        return all(
            schema.KIND[op.kind].row_local and not {"dw", "db"} & op.slots.keys() and op.ints.get("value", -1) < 0
            for op in self.ops
            if op.phase != schema.PREPARE
        )

    def encode(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Buffers (nb, 7) int64: space, offset, rows, columns, dtype, parent, first; ops (no, 2 + slots + ints) int64;
        floats."""
        index = self.index
        buffers = np.array(
            [(b.space, b.offset, b.rows, b.columns, b.dtype, -1 if b.parent is None else index[b.parent], b.first)
             for b in self.buffers], dtype=np.int64
        ).reshape(-1, 7)  # fmt: skip
        width = 2 + schema.MAX_SLOTS + schema.MAX_INTS
        integers = np.full((len(self.ops), width), -1, dtype=np.int64)
        floats = np.zeros((len(self.ops), schema.MAX_FLOATS))
        for row, op in enumerate(self.ops):
            kind = schema.KIND[op.kind]
            integers[row, :2] = schema.KIND_INDEX[op.kind], op.phase
            for i, slot in enumerate(kind.slots):
                name = op.slots.get(slot)
                integers[row, 2 + i] = -1 if name is None else index[name]
            for i, attribute in enumerate(kind.ints):
                integers[row, 2 + schema.MAX_SLOTS + i] = op.ints[attribute]
            for i, attribute in enumerate(kind.floats):
                floats[row, i] = op.floats[attribute]
        return buffers, integers, floats

    def allocate(self, *, arena: bool = True) -> Spaces:
        """The four spaces as zeroed, cache-line-aligned byte arrays."""
        return Spaces(aligned_bytes(size if arena or i else 0) for i, size in enumerate(self.sizes))

    def view(self, spaces: Any, name: str, batch: int | None = None) -> np.ndarray:
        """A buffer as a NumPy array over its space."""
        buffer = self.buffers[self.index[name]]
        if buffer.parent is not None:
            return self.view(spaces, buffer.parent, batch)[:, buffer.first : buffer.first + buffer.columns]
        rows, columns = buffer.shape(self.batch if batch is None else batch)
        dtype = self.buffer_dtype(buffer)
        raw = spaces[buffer.space].reshape(-1).view(np.uint8)
        end = buffer.offset + rows * columns * dtype.itemsize
        return raw[buffer.offset : end].view(dtype).reshape(rows, columns)

    def buffer_dtype(self, buffer: Buffer) -> np.dtype:
        return self.dtype if buffer.dtype == REAL else _DTYPES[buffer.dtype]

    def flops(self, op: Op) -> int:
        """Floating-point operations of the products in an op at a full batch."""
        shapes = {slot: self.buffers[self.index[name]].shape(self.batch) for slot, name in op.slots.items() if name}
        if op.kind == "dense_int8":
            return 2 * self.batch * shapes["y"][1] * op.ints["depth"]
        if op.kind not in ("dense", "dense_grad"):
            return 0
        n, k = shapes["w"]
        products = 1 if op.kind == "dense" else ("dx" in shapes) + ("dw" in shapes)
        return 2 * self.batch * n * k * products

    def __repr__(self) -> str:
        from .listing import listing

        return listing(self)


class Spaces(list):
    """A plan's memory on the host: arena, theta, grad, state as arrays of bytes.

    Backends with memory of their own have a class with these methods (`fastae.backends.cuda.memory`).
    """

    def snapshot(self, i: int, into: Any = None) -> Any:
        """A copy of a space's present bytes, for `restore`; an earlier one may be written over."""
        if into is None:
            return self[i].copy()
        into[:] = self[i]
        return into

    def restore(self, i: int, saved: Any) -> None:
        self[i][:] = saved

    def take(self, i: int, other: Any) -> None:
        """The first bytes of another memory's space, as many as there are here."""
        self[i][:] = other[i][: len(self[i])]

    def zero(self, i: int) -> None:
        self[i][:] = 0

    def release(self) -> None:
        """Lets go of all memory; what others hold of it stays theirs."""
        self[:] = []

    def finite(self, backend: Any, plan: Plan, name: str | None = None, n_threads: int = 1) -> bool:
        """Whether the parameters are. name : of a buffer, where integers lie beside it; None for all of theta"""
        array = self[THETA].view(plan.dtype).reshape(1, -1) if name is None else plan.view(self, name)
        return backend.all_finite(array, n_threads)

    def array(self, i: int, dtype: np.dtype) -> Any:
        """A space where it is computed with, to be changed in place: on a GPU an array there."""
        return self[i].view(dtype)

    def share(self, i: int) -> np.ndarray:
        """A space for somebody who only reads it: always the same array, brought up to date when it is asked for."""
        return self[i]

    def peek(self, plan: Plan, name: str) -> np.ndarray:
        """A buffer to be read only."""
        return plan.view(self, name)

    def with_arena(self, plan: Plan) -> Spaces:
        """The same parameters and states under another plan's arena."""
        return Spaces([plan.allocate()[ARENA], *self[1:]])


def aligned_bytes(size: int) -> np.ndarray:
    """Zeroed uint8 array that starts on a cache line."""
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


@dataclass(frozen=True)
class Source:
    """Rows that `gather` reads: dense (N, p) of any real dtype with contiguous columns, or CSR.

    ``weight`` (N,) float64 goes with source 0 only.
    """

    data: np.ndarray
    indptr: np.ndarray | None = None
    indices: np.ndarray | None = None
    columns: int = 0
    weight: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1 if self.indptr is not None else len(self.data)

    @property
    def code(self) -> int:
        """Code of the stored element type. Raises TypeError for one that `gather` cannot read."""
        code = schema.source_code(self.data.dtype)
        if code is None:
            raise TypeError(
                f"source has dtype {self.data.dtype}; convert it to one of {', '.join(schema.SOURCE_CODES)}"
            )
        return code


@dataclass
class Job:
    """One call of a backend: which steps of a plan to run over which memory.

    Step ``i`` takes the rows ``order[start : start + plan.batch]``, ``start = (first_batch + i) * plan.batch``; the
    last batch is ragged. ``values`` (n_steps, n_values) float64 is written. A step whose values are not finite ends
    the run before its update phase.
    """

    spaces: Any  # arena, theta, grad, state as bytes, then the external arrays
    sources: tuple[Source, ...] = ()
    n_rows: int = 0
    order: np.ndarray | None = None  # int64; None: rows in sequence
    first_batch: int = 0
    n_steps: int = 1
    phases: int = schema.PREPARE | schema.GRADIENT | schema.UPDATE
    scalars: np.ndarray | None = None  # (n_steps, n_scalars) float64
    values: np.ndarray | None = None
    seed: int = 0
    epoch: int = 0
    n_threads: int = 1
    progress: Callable[[int], object] | None = (
        None  # called with the number of finished steps every few milliseconds; may raise
    )
    first_row: int = 0  # added to the rows' places to make their ids: rows of an epoch that come in several jobs


class PlanBuilder:
    """Collects buffers and ops; lays the arena out by liveness at `build`."""

    def __init__(self, dtype, batch: int, title: str = "plan", *, bf16: int = 0):
        self.dtype = np.dtype(dtype)
        self.bf16 = bf16  # products of all records that can have them in bfloat16
        self.batch = batch
        self.title = title
        self.n_values = self.n_scalars = self.n_external = 0
        self._buffers: dict[str, Buffer] = {}
        self._ops: list[Op] = []
        self._sizes = [0, 0, 0, 0]
        self._streams = 0

    def buffer(self, name: str, rows: int, columns: int, space: int = ARENA, dtype: int = REAL) -> str:
        """Declares a buffer; outside the arena and the external arrays it is placed at once, in order."""
        if name in self._buffers:
            raise ValueError(f"buffer {name!r} is declared twice")
        offset = 0
        if space in (THETA, GRAD, STATE):
            offset = self._sizes[space]
            self._sizes[space] = offset + self._bytes(rows, columns, dtype)
        self._buffers[name] = Buffer(name, space, offset, rows, columns, dtype)
        return name

    def external(self, name: str, rows: int, columns: int, dtype: int = REAL) -> str:
        self.n_external += 1
        return self.buffer(name, rows, columns, EXTERNAL + self.n_external - 1, dtype)

    def columns(self, name: str) -> int:
        return self._buffers[name].columns

    def part(self, parent: str, first: int, count: int) -> str:
        """``count`` columns of a buffer from ``first`` on, as a buffer; the whole one where that is all."""
        of = self._buffers[parent]
        if not 0 <= first < first + count <= of.columns or of.parent is not None:
            raise ValueError(f"buffer {parent!r} has {of.columns} columns; got {first}..{first + count}")
        if count == of.columns:
            return parent
        name = f"{parent}[{first}:{first + count}]"
        self._buffers[name] = Buffer(name, of.space, 0, of.rows, count, of.dtype, parent, first)
        return name

    def flat(self, states: tuple[str, ...]) -> None:
        """Declares ``theta`` and ``grad``, all parameters so far as one row, and a ``state_*`` like it per state."""
        size = self._sizes[THETA]
        if size != self._sizes[GRAD]:
            raise ValueError(f"gradients take {self._sizes[GRAD]} bytes, parameters {size}; declare them alike")
        n = size // self.dtype.itemsize
        for name, space in (("theta", THETA), ("grad", GRAD)):
            self._buffers[name] = Buffer(name, space, 0, 1, n)
        for name in states:
            self.buffer(f"state_{name}", 1, n, STATE)

    def stream(self) -> int:
        """A Philox stream of its own."""
        self._streams += 1
        return self._streams - 1

    def value(self) -> int:
        self.n_values += 1
        return self.n_values - 1

    def scalars(self, n: int) -> int:
        self.n_scalars += n
        return self.n_scalars - n

    def op(self, kind: str, phase: int = schema.GRADIENT, /, **attributes: Any) -> None:
        """Adds a record; attributes are sorted into slots, ints and floats by the schema."""
        spec = schema.KIND[kind]
        unknown = set(attributes) - {*spec.slots, *spec.ints, *spec.floats}
        if unknown:
            raise ValueError(f"op {kind!r} takes no {sorted(unknown)}")
        slots = {name: attributes[name] for name in spec.slots if attributes.get(name) is not None}
        missing = set(slots.values()) - set(self._buffers)
        if missing:
            raise ValueError(f"op {kind!r} names undeclared buffers {sorted(missing)}")
        defaults = {"value": -1, "decay_scalar": -1, "bf16": self.bf16}
        ints = {name: int(attributes.get(name, defaults.get(name, 0))) for name in spec.ints}
        floats = {name: float(attributes.get(name, 0.0)) for name in spec.floats}
        self._ops.append(Op(kind, phase, slots, ints, floats))

    def _bytes(self, rows: int, columns: int, dtype: int) -> int:
        item = (self.dtype if dtype == REAL else _DTYPES[dtype]).itemsize
        rows = self.batch if rows == BATCH_ROWS else rows
        return -(-rows * columns * item // ALIGNMENT) * ALIGNMENT

    def _place(self) -> int:
        """Offsets of the arena's buffers: first fit over lifetimes, longest-lived and largest first."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for i, op in enumerate(self._ops):
            for name in (self._buffers[slot].parent or slot for slot in op.slots.values()):
                if self._buffers[name].space == ARENA:
                    first.setdefault(name, i)
                    last[name] = i
        for op in self._ops:  # where a code is nearly full, what uses its list reads the code itself
            if op.kind == "by_latent" and op.slots["entry"] in last:
                for name in (self._buffers[op.slots[slot]].parent or op.slots[slot] for slot in ("idx", "count")):
                    if name in last:
                        last[name] = max(last[name], last[op.slots["entry"]])
        for i, ops in enumerate(zip(self._ops, self._ops[1:], self._ops[2:], strict=False)):
            if [op.kind for op in ops] == ["decode", "squared_error", "code_grad"]:  # a row may go through all three
                for name in (self._buffers[slot].parent or slot for op in ops for slot in op.slots.values()):
                    if name in last:
                        last[name] = max(last[name], i + 2)
        for op in self._ops:  # what is prepared once lives for ever
            if op.phase == schema.PREPARE:
                for name in op.slots.values():
                    if name in first:
                        first[name], last[name] = 0, len(self._ops)
        size = {name: self._bytes(b.rows, b.columns, b.dtype) for name, b in self._buffers.items() if name in first}
        placed: list[tuple[int, int, str]] = []
        for name in sorted(first, key=lambda n: (-size[n], first[n], n)):
            busy = sorted((o, o + s) for o, s, other in placed
                          if first[other] <= last[name] and first[name] <= last[other])  # fmt: skip
            offset = 0
            for low, high in busy:
                if offset + size[name] <= low:
                    break
                offset = max(offset, high)
            placed.append((offset, size[name], name))
            old = self._buffers[name]
            self._buffers[name] = Buffer(name, ARENA, offset, old.rows, old.columns, old.dtype)
        return max((offset + s for offset, s, _ in placed), default=0)

    def build(self) -> Plan:
        self._sizes[ARENA] = self._place()
        return Plan(
            self.dtype,
            self.batch,
            tuple(self._buffers.values()),
            tuple(self._ops),
            tuple(self._sizes),
            self.n_values,
            self.n_scalars,
            self.n_external,
            self.title,
        )


__all__ = ["INT64", "Buffer", "Job", "Op", "Plan", "PlanBuilder", "Source", "Spaces", "aligned_bytes"]
