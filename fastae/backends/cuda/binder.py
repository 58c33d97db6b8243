"""A plan's records as launches of kernels: which kernels, over how many threads, with which addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ...catalog import FIRST_REGISTERED
from ...plan import schema
from ...plan.plan import Op, Plan
from ...registry import FORMULAS
from .launches import (
    PART,
    Beside,
    Grid,
    Launch,
    Uses,
    Wait,
    ceil_div,
    float_bits,
    in_one_block,
    over_cells,
    over_fours,
    over_rows,
    overlap,
)
from .lt import Matrix, Product
from .record import FORMULA_EXTRA, LAUNCH

PRODUCTS = ("float32", "bfloat16", "tf32")  # what a record's ``bf16`` means

FEW_ROWS = 4096  # of a batch: each operand in bfloat16 has a place of its own, and weight gradients wait for each other
THETA = ""  # the name of all of theta, among names of buffers

# slots that an op reads and does not write: an array that is in no others is what it was
READ = {
    "noise": ("x", "rows"), "dropout": ("x", "rows"), "activation": ("x",), "softmax": ("z",),
    "activation_grad": ("dy", "saved", "rows"), "loss": ("y", "target", "weight"),
    "dense": ("x", "w", "b", "packed", "rows"), "dense_grad": ("dz", "x", "w", "saved", "rows"),
    "encode": ("x", "w", "b", "threshold", "packed", "subset", "n_subset"), "batch_topk": ("x", "w", "b"),
    "decode": ("val", "idx", "count", "w", "b", "groups"), "code_grad": ("dy", "idx", "count", "w", "groups"),
    "by_latent": ("idx", "count"), "latent_grad": ("coef", "start", "entry", "u", "w", "factor", "groups"),
}  # fmt: skip


class Binder:
    """Makes the launches of a plan's ops for batches of m rows over given memory.

    bases : address of each space; work : of the memory that ops share, 0 while nobody knows how much they want
    start : first row of the batch, for arrays of the caller's with a row per row of the run
    formula : index -> address of a formula registered at run time
    both : whether gradients and updates run, so that some may be made together
    """

    def __init__(
        self, plan: Plan, m: int, step: int, bases: list[int], start: int, work: int, driver: Any,
        formula: Callable[[int], int], both: bool = False,
    ):  # fmt: skip
        self.plan, self.m, self.step, self.bases, self.start = plan, m, step, bases, start
        self.formula, self.both = formula, both
        self.n_multiprocessors = driver.n_multiprocessors
        self.cublas = driver.products == "cublas"
        self.driver = driver
        self.launches: list[Any] = []
        self.deferred: list[Launch | Product] = []  # to the update phase
        self.path = self.launches  # those that follow each other, also while `beside` collects others
        self.running: list[tuple[Beside, Uses]] = []
        self.scratch = False  # whether the op at hand has something in the memory that ops share
        self.parts: list[tuple[Any, Uses]] = []  # of a launch that ops share, see `together`
        self.make: Callable[[Binder, list[Any]], Launch] | None = None
        self.op: Op | None = None
        self.bound: Op | None = None  # the plan's, also while the op at hand is another
        self.group: list[Op] = []  # those of the plan that are made at once, the bound one first
        # Copies in bfloat16 of what products read, in the first part of the work memory: at half the distances of arena
        # and theta, where a place is written to again when the buffer there is no longer needed; of few rows each at a
        # place of its own, so that weight gradients need not be made before that.
        self.few = m <= FEW_ROWS
        self.operand_names = self._operand_names()
        self.copies: dict[int, int] = {}  # space → where its copies are
        self.apart: dict[str, int] = {}  # a buffer of the arena → where its copy is
        kept = 0
        for space in (schema.ARENA, schema.THETA) if self.operand_names else ():
            if space == schema.THETA or not self.few:
                self.copies[space] = work + kept
                kept += ceil_div(plan.sizes[space], 512) * 256
        for name in sorted({self.whole(name).name for name in self.operand_names}) if self.few else ():
            buffer = plan.buffers[plan.index[name]]
            if buffer.space == schema.ARENA:
                rows, columns = buffer.shape(m)
                self.apart[name] = work + kept
                kept += ceil_div(2 * rows * columns, 256) * 256
        self.work, self.kept, self.work_bytes = work + kept, kept, kept
        self.written: set[str] = set()  # whole buffers that the phase's launches so far write
        self.current: set[str] = set()  # buffers whose copies are what they are, THETA for all of that space
        self.made: set[str] = set()  # those that the op at hand writes with the buffers

    # ---- buffers ---

    def buffer(self, slot: str) -> Any:
        """The buffer in a slot of the op at hand, None for none."""
        name = self.op.slots.get(slot)  # type: ignore[union-attr]
        return None if name is None else self.plan.buffers[self.plan.index[name]]

    def has(self, slot: str) -> bool:
        return slot in self.op.slots  # type: ignore[union-attr]

    def shape(self, slot: str) -> tuple[int, int]:
        return self.buffer(slot).shape(self.m)

    def locate(self, buffer: Any) -> tuple[int, int]:
        """Address of a buffer's first element, and the distance of its rows in elements."""
        item = self.plan.buffer_dtype(buffer).itemsize
        if buffer.parent is not None:
            address, ld = self.locate(self.plan.buffers[self.plan.index[buffer.parent]])
            return address + buffer.first * item, ld
        address = self.bases[buffer.space] + buffer.offset
        if buffer.space >= schema.EXTERNAL and buffer.rows == schema.BATCH_ROWS:
            address += self.start * buffer.columns * item
        return address, buffer.columns

    def address(self, slot: str) -> int:
        return self.locate(self.buffer(slot))[0]

    def in_parts(self, *buffers: Any) -> bool:
        """Whether all rows of some buffers are whole parts of 16 bytes, on 16 bytes; None for none."""
        item, numbers = self.plan.dtype.itemsize, []
        for buffer in buffers:
            if buffer is not None:
                address, ld = self.locate(buffer)
                numbers += [address, ld * item, buffer.columns * item]
        return not any(number % PART for number in numbers)

    # ---- launches ---

    def registered(self) -> int:
        """Index of the op's formula where it was registered at run time, else 0."""
        ints = self.op.ints  # type: ignore[union-attr]
        index = max(ints.get(name, 0) for name in ("activation", "loss", "penalty"))
        return index if index >= FIRST_REGISTERED else 0

    @contextmanager
    def as_op(self, kind: str, m: int | None = None, **attributes: Any) -> Iterator[Op]:
        """Meanwhile the op at hand is one of another kind, over buffers by name; m : its batch"""
        spec, before = schema.KIND[kind], (self.op, self.m)
        slots = {slot: attributes[slot] for slot in spec.slots if attributes.get(slot) is not None}
        ints = {name: attributes.get(name, -1 if name == "value" else 0) for name in spec.ints}
        self.op = Op(kind, 0, slots, ints, {name: attributes.get(name, 0.0) for name in spec.floats})
        self.m = self.m if m is None else m
        yield self.op
        self.op, self.m = before

    def following(self) -> Iterator[Op]:
        """Ops of the same phase behind the bound one."""
        ops = iter(self.plan.ops)
        for op in ops:
            if op is self.bound:
                break
        return (op for op in ops if op.phase == self.bound.phase)  # type: ignore[union-attr]

    @contextmanager
    def bound_to(self, op: Op) -> Iterator[None]:
        """Meanwhile another op of the plan is the bound one, and at hand."""
        before = self.op, self.bound
        self.op = self.bound = op
        yield
        self.op, self.bound = before

    def record(self, work: int = 0, extra: tuple[int, ...] = ()) -> np.ndarray:
        op, kind = self.op, schema.KIND[self.op.kind]  # type: ignore[union-attr]
        record = np.zeros(1, LAUNCH)
        record["step"], record["m"], record["work"] = self.step, self.m, work
        for i, slot in enumerate(kind.slots):
            buffer = self.buffer(slot)
            if buffer is not None:
                address, ld = self.locate(buffer)
                record["slot"][0, i] = (address, ld, *buffer.shape(self.m))
        record["i"][0, : len(kind.ints)] = [op.ints[name] for name in kind.ints]  # type: ignore[union-attr]
        record["f"][0, : len(kind.floats)] = [op.floats[name] for name in kind.floats]  # type: ignore[union-attr]
        record["extra"][0, : len(extra)] = extra
        if self.registered():
            record["extra"][0, FORMULA_EXTRA] = self.formula(self.registered())
        return record

    def launch(
        self, kernel: str, threads: tuple[Grid, Grid], *, work: int | None = None, work_bytes: int = 0,
        extra: tuple[int, ...] = (), shared: int = 0, strip: dict[str, tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        """Adds a launch.

        work : address of a kernel's memory; work_bytes : so much of the memory that ops share
        strip : slot → (first, number) of the columns that the kernel sees, where these are not all
        """
        if work_bytes:
            self._wait_for(Uses([], [], work=True))
            self.scratch = True
        self.work_bytes = max(self.work_bytes, self.kept + work_bytes)
        record = self.record(self.work if work is None else work, extra)
        for slot, (first, columns) in (strip or {}).items():
            i = schema.KIND[self.op.kind].slots.index(slot)  # type: ignore[union-attr]
            record["slot"]["p"][0, i] += np.uint64(first * self.plan.buffer_dtype(self.buffer(slot)).itemsize)
            record["slot"]["columns"][0, i] = columns
        formula = FORMULAS.get(self.registered())
        linked = formula.index if formula is not None and formula.functions else 0
        self.launches.append(Launch(kernel, *threads, shared, record, linked))

    def matrix(self, slot: str, transposed: bool = False) -> Matrix:
        """A slot's buffer as an operand of `product`."""
        address, ld = self.locate(self.buffer(slot))
        return Matrix(address, ld, transposed)

    def product(
        self, left: Matrix, right: Matrix, out: Matrix, rows: int, columns: int, depth: int, **more: Any
    ) -> None:
        """Adds out = left right by cuBLASLt, in the precision of the op at hand. more : as of `Product`"""
        kind = "float64" if self.plan.dtype == np.float64 else PRODUCTS[self.op.ints.get("bf16", 0)]  # type: ignore[union-attr]
        self.launches.append(Product(kind, left, right, out, rows, columns, depth, **more))

    # ---- work beside other work ---

    def span(self, slot: str) -> tuple[int, int]:
        """First byte of a slot's buffer, and the one behind its last."""
        buffer = self.buffer(slot)
        (address, ld), (rows, columns) = self.locate(buffer), buffer.shape(self.m)
        elements = (rows - 1) * ld + columns if rows and columns else 0
        return address, address + elements * self.plan.buffer_dtype(buffer).itemsize

    def uses(self, slots: Iterable[str] | None = None) -> Uses:
        """What the op at hand does with some of its slots, all where none are named."""
        slots = self.op.slots if slots is None else slots  # type: ignore[union-attr]
        read, values = READ.get(self.op.kind, ()), self.op.ints.get("value", -1) >= 0  # type: ignore[union-attr]
        spans = {slot: self.span(slot) for slot in slots}
        return Uses([spans[s] for s in spans if s in read], [spans[s] for s in spans if s not in read], values)

    def _wait_for(self, uses: Uses | None = None) -> None:
        """Waits for what runs beside and meets with something, or for all of it."""
        ended = [one for one, own in self.running if uses is None or own.meets(uses)]
        if ended:
            self.path.append(Wait(ended))
            self.running = [(one, own) for one, own in self.running if one not in ended]

    def make_way(self, uses: Uses) -> None:
        """Has what meets with something done before it: parts of a shared launch, and what runs beside."""
        if any(own.meets(uses) for _, own in self.parts):
            self._close()
        self._wait_for(uses)

    def together(self, part: Any, uses: Uses, make: Callable[[Binder, list[Any]], Launch], most: int) -> None:
        """Adds a part of a launch that some ops share: make(binder, parts), when one is needed or there are so many."""
        if self.op is not self.bound:
            self.launches.append(make(self, [part]))
            return
        self.make_way(uses)
        if self.make is not make:
            self._close()
        self.parts.append((part, uses))
        self.make = make
        if len(self.parts) == most:
            self._close()

    def _close(self, *, last: bool = False) -> None:
        """The shared launch, beside what follows; last : nothing follows"""
        if not self.parts:
            return
        assert self.make is not None
        made = self.make(self, [part for part, _ in self.parts])
        uses = Uses([span for _, own in self.parts for span in own.reads],
                    [span for _, own in self.parts for span in own.writes])  # fmt: skip
        self.parts = []
        self._wait_for(uses)
        if last:
            self.path.append(made)
        else:
            self.path.append(Beside([made]))
            self.running.append((self.path[-1], uses))

    @contextmanager
    def beside(self, *slots: str) -> Iterator[None]:
        """Meanwhile launches are added that may run beside the op's others, and the ops' that follow.

        slots : those of the op at hand that they use; what they write the op's other launches leave alone. One that is
        done for another (`as_op`) gives what that needs at once.
        """
        if self.op is not self.bound:
            yield
            return
        uses = self.uses(slot for slot in slots if self.has(slot))
        rest = self.uses(slot for slot in self.op.slots if slot not in slots)  # type: ignore[union-attr]
        self.launches, scratch = [], self.scratch
        yield
        made, self.launches = self.launches, self.path
        if overlap(uses.reads, rest.writes):
            self.path += made
        elif made:
            self.path.append(Beside(made))
            self.running.append((self.path[-1], replace(uses, work=self.scratch)))
            self.scratch = scratch

    # ---- operands in bfloat16 ---

    def _operand_names(self) -> set[str]:
        """Names of the buffers that layers' products read in bfloat16."""
        layers = [op for op in self.plan.ops if op.kind in ("dense", "dense_grad")] if self.cublas else []
        products = [op for op in layers if op.ints["bf16"] == 1]
        return {op.slots[slot] for op in products for slot in ("x", "w", "dz") if slot in op.slots}

    def whole(self, name: str) -> Any:
        """The buffer that another is a part of, or that itself."""
        buffer = self.plan.buffers[self.plan.index[name]]
        return buffer if buffer.parent is None else self.whole(buffer.parent)

    def _root(self, name: str) -> str:
        """Name of the whole buffer; one name for all of theta."""
        whole = self.whole(name) if name != THETA else None
        return THETA if whole is None or whole.space == schema.THETA else whole.name

    def _copy_of(self, buffer: Any) -> int | None:
        """Where a buffer's copy is; None for one that is made where it is read."""
        whole = self.whole(buffer.name)
        address = self.locate(buffer)[0]
        if whole.name in self.apart:
            return self.apart[whole.name] + (address - self.locate(whole)[0]) // 2
        if whole.space in self.copies:
            return self.copies[whole.space] + (address - self.bases[whole.space]) // 2
        return None

    def place(self, slot: str) -> tuple[int, int]:
        """Address of a slot's copy, and the distance of its rows in bytes."""
        buffer = self.buffer(slot)
        to = self._copy_of(buffer)
        assert to is not None
        return to, 2 * self.locate(buffer)[1]

    def keeps(self, slot: str) -> bool:
        """Whether a slot's buffer has a copy that outlasts the op."""
        return self._copy_of(self.buffer(slot)) is not None

    def copy(self, slot: str) -> tuple[int, int, int]:
        """What a kernel gets as `extra` that writes a slot's buffer and its copy, where products read one."""
        buffer = self.buffer(slot)
        if buffer.space != schema.ARENA or buffer.name not in self.operand_names:
            return (0, 0, 0)
        self.current.add(buffer.name)
        self.made.add(buffer.name)
        to = self._copy_of(buffer)
        assert to is not None
        self._copy_is_written(buffer, to)
        return (0, 0, to)

    def _copy_is_written(self, buffer: Any, to: int) -> None:
        rows, _ = buffer.shape(self.m)
        self.make_way(Uses([], [(to, to + 2 * rows * self.locate(buffer)[1])]))

    def round(self, address: int, ld: int, rows: int, columns: int, to: int, work_bytes: int = 0) -> None:
        """A launch that rounds a matrix to bfloat16."""
        self.launch("round_bf16", over_fours(rows, columns), work_bytes=work_bytes, extra=(0, 0, to))
        self.launches[-1].record["slot"][0, 0] = (address, ld, rows, columns)

    def _round_theta(self) -> None:
        """Rounds all of theta: beside what the phase launched so far, as that has not written to it."""
        space = schema.THETA
        n, before = self.plan.sizes[space] // self.plan.dtype.itemsize, len(self.path)
        self.round(self.bases[space], n, 1, n, self.copies[space])
        if before and self.launches is self.path and THETA not in self.written:
            rounded = Beside([self.path.pop()])
            self.path.insert(0, rounded)
            self.path.append(Wait([rounded]))

    def operands(self, *slots: tuple[str, bool]) -> list[Matrix]:
        """Buffers, each with whether it is read transposed, as operands in the precision of the op at hand."""
        if self.op.ints.get("bf16", 0) != 1:  # type: ignore[union-attr]
            return [self.matrix(slot, transposed) for slot, transposed in slots]
        out, offset = [], 0
        for slot, transposed in slots:
            buffer = self.buffer(slot)
            (address, ld), (rows, columns), space = self.locate(buffer), self.shape(slot), buffer.space
            place = self._copy_of(buffer)
            if place is not None:
                name, to = THETA if space == schema.THETA else buffer.name, place
                if name == THETA and name not in self.current:
                    self._round_theta()
                elif name not in self.current:
                    self._copy_is_written(buffer, to)
                    self.round(address, ld, rows, columns, to)
                self.current.add(name)
            else:
                to = self.work + offset
                offset += ceil_div(2 * rows * ld, 256) * 256
                self.round(address, ld, rows, columns, to, offset)
            out.append(Matrix(to, ld, transposed))
        return out

    def fours(self, kernel: str, slot: str, **more: Any) -> None:
        """A launch with a thread for every four neighbours of a slot's buffer."""
        self.launch(kernel, over_fours(*self.shape(slot)), **more)

    def cells(self, kernel: str, slot: str, **more: Any) -> None:
        """A launch with a thread for every element of a slot's buffer."""
        self.launch(kernel, over_cells(*self.shape(slot)), **more)

    def rows(self, kernel: str, **more: Any) -> None:
        """A launch with sixteen threads for every row of the batch."""
        self.launch(kernel, over_rows(self.m), **more)

    def valued_rows(self, kernel: str) -> None:
        """The same for an op with a value: the mean of what rows leave in the shared memory, where it is asked for."""
        column = self.op.ints["value"]  # type: ignore[union-attr]
        self.rows(kernel, work_bytes=self.m * 8 * (column >= 0), extra=(int(column >= 0),))
        self.mean_value(column)

    def mean_value(self, column: int) -> None:
        """values[column] += mean of m float64 that the kernel before left in the shared memory."""
        if column >= 0:
            with self.beside():
                self.launch("mean_value", in_one_block(self.m), work_bytes=self.m * 8, extra=(column,))

    def sum_value(self, column: int, n: int, factor: float = 1.0) -> None:
        """values[column] += factor times the sum of n float64 there."""
        if column >= 0:
            extra = (column, n, float_bits(factor))
            self.launch("sum_value", in_one_block(n), work_bytes=n * 8, extra=extra)

    def bind(self, phases: int, kernels: dict[str, Callable[[Binder, Op], None]]) -> list[Any]:
        """The launches of the plan's ops of some phases; those of updates begin with what gradients left to them."""
        self.launches = []
        if phases & schema.UPDATE:
            self.launches, self.deferred = self.deferred, []
        self.path, self.written = self.launches, {THETA} if self.launches else set()  # deferred ones update it
        made: set[int] = set()
        for op in self.plan.ops:
            if op.phase & phases and id(op) not in made:
                self.op = self.bound = op
                self.group = [op]
                self.made, self.scratch = set(), False
                self.make_way(self.uses())
                kernels[op.kind](self, op)
                made |= {id(one) for one in self.group}
                written = {self._root(name) for one in self.group for slot, name in one.slots.items()
                           if slot not in READ.get(one.kind, ())}  # fmt: skip
                self.current -= {name for name in self.current if self._root(name) in written} - self.made
                self.written |= written
        self._close(last=True)
        self._wait_for()
        return self.path
