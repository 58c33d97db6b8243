"""Runs a plan's records one after another over NumPy views: the executor of the Python backends."""

from __future__ import annotations

import time
from types import ModuleType

import numpy as np

from ..plan import schema
from ..plan.plan import Buffer, Job, Op, Plan, Source, Spaces


def operand(op: Op, array: np.ndarray) -> np.ndarray:
    """What a product reads: the array, rounded to bfloat16 (nearest, ties to even) where the record says so."""
    if not op.ints.get("bf16", 0):
        return array
    words = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + ((words >> 16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), array, rounded.view(np.float32)).astype(array.dtype, copy=False)


class Step:
    """What an op sees of the step that runs: its rows, keys, scalars and the values it adds to."""

    def __init__(self, plan: Plan, job: Job):
        self.plan, self.job = plan, job
        self.index = plan.index
        self.number = self.start = self.m = 0

    def begin(self, number: int) -> None:
        self.number = number
        self.start = (self.job.first_batch + number) * self.plan.batch
        self.m = min(self.plan.batch, self.job.n_rows - self.start)

    @property
    def places(self) -> np.ndarray:
        """Where the batch's rows lie in the sources."""
        stop = self.start + self.m
        return np.arange(self.start, stop) if self.job.order is None else self.job.order[self.start : stop]

    def read(self, source: Source, rows: np.ndarray) -> np.ndarray:
        """Rows of a source as a dense array; duplicates in a CSR row add up."""
        if source.indptr is None or source.indices is None:
            return source.data[rows]
        x = np.zeros((len(rows), source.columns), dtype=np.float64)
        for i, row in enumerate(rows):
            span = slice(source.indptr[row], source.indptr[row + 1])
            np.add.at(x[i], source.indices[span], source.data[span])
        return x

    def view(self, name: str) -> np.ndarray:
        buffer: Buffer = self.plan.buffers[self.index[name]]
        if buffer.parent is not None:
            return self.view(buffer.parent)[:, buffer.first : buffer.first + buffer.columns]
        space = self.job.spaces[buffer.space]
        if buffer.space >= schema.EXTERNAL:
            return space[self.start : self.start + self.m] if buffer.rows == schema.BATCH_ROWS else space
        return self.plan.view(self.job.spaces, name, self.m)

    def add_value(self, op: Op, value: float) -> None:
        if op.ints["value"] >= 0:
            assert self.job.values is not None
            self.job.values[self.number, op.ints["value"]] += value


def run(plan: Plan, job: Job, kernels: dict) -> int:
    """Runs ``job.n_steps`` steps with ``kernels[kind](step, op, views)``; returns how many finished."""
    step = Step(plan, job)
    if job.values is not None:
        job.values[: job.n_steps] = 0.0

    def execute(phases: int) -> None:
        for op in plan.ops:
            if op.phase & phases & job.phases:
                kernels[op.kind](step, op, {slot: step.view(name) for slot, name in op.slots.items()})

    if job.n_steps:
        step.begin(0)
        execute(schema.PREPARE)
    last = time.perf_counter()
    for number in range(job.n_steps):
        step.begin(number)
        execute(schema.GRADIENT)
        if job.values is not None and not np.isfinite(job.values[number]).all():
            return number
        execute(~(schema.PREPARE | schema.GRADIENT))
        if job.progress is not None and time.perf_counter() - last > 0.004:
            last = time.perf_counter()
            job.progress(number + 1)
    return job.n_steps


def kernel_table(*modules: ModuleType) -> dict:
    """Op kind → the function of that name in one of a backend's modules; a missing one fails here, at import."""
    functions = {name: value for module in modules for name, value in vars(module).items() if callable(value)}
    return {kind.name: functions[kind.name] for kind in schema.OP_KINDS}


class Interpreter:
    """Base of the backends that run plans in Python; ``kernels``: op kind → function(step, op, views)."""

    name: str
    kernels: dict
    device = "cpu"

    def allocate(self, plan: Plan) -> Spaces:
        """Memory for a plan."""
        return plan.allocate()

    def place(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Sources where steps read them best: as they are."""
        return sources

    def compile(self, plan: Plan) -> Plan:
        """A plan needs no preparation here."""
        return plan

    def run(self, handle: Plan, job: Job) -> int:
        """Runs the job's steps; returns how many finished (fewer when a step's values were not finite)."""
        with np.errstate(all="ignore"):  # what is not finite is found in the step's values
            return run(handle, job, self.kernels)

    def all_finite(self, array: np.ndarray, n_threads: int = 1) -> bool:
        """Whether an array has neither NaN nor infinity."""
        return bool(np.isfinite(array.astype(np.float32) if array.dtype.name == "bfloat16" else array).all())
