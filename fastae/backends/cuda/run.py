"""Runs a plan's launches step by step: memory in, a graph or single launches per step, memory out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...plan import schema
from ...plan.plan import Job, Plan
from . import blocks
from .binder import Binder
from .blocks import Rows, on_device, read_externals, row_bytes, written_externals
from .formulas import Formulas
from .launches import Launch
from .memory import DeviceSpaces, JobSpaces, too_large
from .record import LAUNCH, MAX_SOURCES, STEP

_PROGRESS_SECONDS = 0.1
_BOTH = schema.GRADIENT | schema.UPDATE
_MOST_GRAPHS = 8  # kept of a plan: for the sizes of its batches, and memory that moved


class Program:
    """A plan and what the device keeps of it between runs."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.work: Any = None  # memory that ops share, one after another
        self.work_bytes = 0
        self.formulas = Formulas(plan.dtype)
        self.external = {b.space - schema.EXTERNAL: b for b in plan.buffers
                         if b.space >= schema.EXTERNAL and b.parent is None}  # fmt: skip
        self.read, self.written = read_externals(plan), written_externals(plan)
        self.state: Any = None  # the step that runs, at one place for all runs, as graphs have its address
        self.graphs: dict[tuple, Any] = {}
        self.lock = threading.Lock()  # what is kept serves one run at a time
        # launches read addresses that move from step to step where a caller's array has a row per row of the batch
        self.moving = any(b.rows == schema.BATCH_ROWS for b in self.external.values())


def bind(
    program: Program, driver: Any, kernels: dict, m: int, step: int, bases: list[int], start: int, phases: int
) -> dict[int, list]:
    """Launches of each of some phases for batches of m rows."""
    asked = [phase for phase in schema.PHASES.values() if phase & phases]
    formula = partial(program.formulas.address, driver)
    while True:
        work = 0 if program.work is None else driver.address(program.work)
        both = phases & _BOTH == _BOTH
        binder = Binder(program.plan, m, step, bases, start, work, driver, formula, both)
        launches = {phase: binder.bind(phase, kernels) for phase in asked}
        if binder.work_bytes <= program.work_bytes:
            return launches
        program.work, program.work_bytes = driver.empty(binder.work_bytes), binder.work_bytes


def control(name: str, step: int) -> Launch:
    """A kernel of the run itself: ``check`` or ``advance``."""
    record = np.zeros(1, LAUNCH)
    record["step"] = step
    return Launch(name, (1, 1, 1), (32, 1, 1), 0, record)


class Externals:
    """The caller's arrays: by address where they lie on the device, else copied there, whole or block by block."""

    def __init__(self, program: Program, driver: Any, arrays: list):
        self.program, self.driver, self.arrays = program, driver, arrays
        self.whole = {i: self._in(i, array) for i, array in enumerate(arrays)
                      if not on_device(array) and not self._by_rows(i)}  # fmt: skip
        self.slots = (driver.slot(), driver.slot())
        self.turn = 0

    def _by_rows(self, i: int) -> bool:
        buffer = self.program.external.get(i)
        return buffer is not None and buffer.rows == schema.BATCH_ROWS

    def _in(self, i: int, array: np.ndarray) -> Any:
        """Device memory for an array, with its numbers where some op reads them."""
        buffer = self.program.external.get(i)
        if buffer is not None and buffer.name not in self.program.read:
            return self.driver.empty(array.nbytes)
        return self.driver.upload(array)

    @property
    def by_blocks(self) -> bool:
        return any(self._by_rows(i) and not on_device(a) for i, a in enumerate(self.arrays))

    def bases(self, first: int, last: int) -> list[int]:
        """Address of each array as if all its rows were there, for steps over the rows [first, last)."""
        self.turn += 1
        self.held: dict[int, Any] = {}
        out = []
        for i, array in enumerate(self.arrays):
            if on_device(array):
                out.append(self.driver.address(array))
            elif i in self.whole:
                out.append(self.driver.address(self.whole[i]))
            else:
                self.held[i] = self._in(i, array[first:last])
                row = array.dtype.itemsize * (array.shape[1] if array.ndim == 2 else 1)
                out.append(self.driver.address(self.held[i]) - first * row)
        return out

    def back(self, first: int, last: int) -> None:
        """Has the rows [first, last) of what the steps wrote copied back, at the latest by `finish`."""
        slot = self.slots[self.turn % 2]
        self.slots[(self.turn + 1) % 2].retire()
        slot.fetch([(self.held[i], self.arrays[i][first:last]) for i in self.held if self._written(i)])

    def finish(self) -> None:
        for slot in self.slots:
            slot.retire()
        for i, buffer in self.whole.items():
            if self._written(i):
                self.driver.download(buffer, self.arrays[i])

    def _written(self, i: int) -> bool:
        buffer = self.program.external.get(i)
        return (buffer is None or buffer.name in self.program.written) and self.arrays[i].flags.writeable


class Run:
    """One job: its state on the device, and the steps block by block."""

    def __init__(self, program: Program, driver: Any, kernels: dict, job: Job):
        self.program, self.driver, self.kernels, self.job = program, driver, kernels, job
        plan = program.plan
        if isinstance(job.spaces, JobSpaces):
            self.spaces, arrays = job.spaces.parts()
        elif isinstance(job.spaces, DeviceSpaces):
            self.spaces, arrays = job.spaces, []
        else:  # memory on the host: a copy for this run
            self.spaces, arrays = DeviceSpaces(driver, plan.sizes), list(job.spaces[schema.EXTERNAL :])
            for i in range(schema.EXTERNAL):
                self.spaces[i] = job.spaces[i]
        self.copied = not isinstance(job.spaces, (JobSpaces, DeviceSpaces))
        driver.join()
        self.external = Externals(program, driver, arrays)
        self.values = np.zeros((job.n_steps, max(plan.n_values, 1)))
        self.device_values = driver.upload(self.values)
        self.held = [driver.upload(a) for a in (job.order, job.scalars) if a is not None]
        addresses = iter(self.held)
        state = np.zeros(1, STEP)
        state["start"], state["first"], state["batch"] = job.first_batch * plan.batch, -1, plan.batch
        state["n_values"], state["n_scalars"] = plan.n_values, plan.n_scalars
        state["order"] = 0 if job.order is None else driver.address(next(addresses))
        state["scalars"] = 0 if job.scalars is None else driver.address(next(addresses))
        state["values"] = driver.address(self.device_values)
        state["seed"], state["epoch"], state["first_row"] = job.seed, job.epoch, job.first_row
        assert len(job.sources) <= MAX_SOURCES
        self.rows = Rows(driver, plan, job, 0)
        state["source"][0, : len(job.sources)] = self.rows.records()
        if program.state is None:
            program.state = driver.empty(STEP.itemsize)
        driver.write(program.state, state.view(np.uint8))
        self.step = self.rows.step = driver.address(program.state)
        self.last = time.perf_counter()

    def __call__(self) -> int:
        """Runs the steps; returns how many finished."""
        job, plan, driver = self.job, self.program.plan, self.driver
        bases = self.spaces.addresses(plan)
        size = job.n_steps
        if not self.rows.resident or self.external.by_blocks:
            size = max(1, min(size, blocks.BLOCK_BYTES // (row_bytes(plan, job, self.rows.resident) * plan.batch)))
        done = 0
        while done < job.n_steps:
            count = min(size, job.n_steps - done)
            try:
                self.block(bases, done, count)
            except driver.OutOfMemory:
                if job.phases & schema.UPDATE or count == 1 or self.begun:
                    raise
                size = count // 2
                continue
            done += count
        self.external.finish()
        driver.download(self.device_values, self.values)
        state = np.empty(1, STEP)
        driver.download(self.program.state, state.view(np.uint8))
        if self.copied:
            for i in range(schema.EXTERNAL):
                if self.job.spaces[i].flags.writeable:
                    _ = self.spaces[i]  # brings the host's array up to date
        if job.values is not None:
            job.values[: job.n_steps, : plan.n_values] = self.values[:, : plan.n_values]
        return int(state["number"][0])

    def block(self, bases: list[int], first: int, count: int) -> None:
        """``count`` steps from step ``first`` of the job on."""
        job, plan, driver = self.job, self.program.plan, self.driver
        self.begun = False  # whether a step of the block has run: none can run twice
        start = (job.first_batch + first) * plan.batch
        stop = min(job.n_rows, start + count * plan.batch)
        bases = [*bases, *self.external.bases(start, stop)]
        enter = self.rows.block(start, stop)
        if enter is not None:
            self.launch([enter])
        if first == 0 and job.phases & schema.PREPARE:
            m = min(plan.batch, stop - start)
            prepare = bind(self.program, driver, self.kernels, m, self.step, bases, start, schema.PREPARE)
            self.launch(prepare[schema.PREPARE])
        rest = (stop - start) % plan.batch
        if rest and count > 1 and not job.phases & schema.UPDATE:
            self.replay(bases, rest, stop - rest)  # few rows may want more of the memory that ops share, found in time
        for number in range(first, first + count):
            self.run_step(bases, number)
        self.rows.done()
        self.external.back(start, stop)

    def run_step(self, bases: list[int], number: int) -> None:
        job, plan = self.job, self.program.plan
        start = (job.first_batch + number) * plan.batch
        replay = self.replay(bases, min(plan.batch, job.n_rows - start), start)
        self.begun = True
        replay()
        if job.progress is not None and time.perf_counter() - self.last > _PROGRESS_SECONDS:
            self.driver.synchronize()
            self.last = time.perf_counter()
            job.progress(number + 1)

    def replay(self, bases: list[int], m: int, start: int) -> Callable[[], None]:
        """What runs a step of m rows from row ``start`` on: a graph where no address moves from step to step."""
        job, dtype, graphs = self.job, self.program.plan.dtype, self.program.graphs
        if self.program.moving:
            return partial(self.launch, self.launches(bases, m, start))
        key = (m, job.phases, job.values is not None, self.program.work_bytes, *bases)
        if key not in graphs:
            if len(graphs) >= _MOST_GRAPHS:
                graphs.clear()
            launches = self.launches(bases, m, 0)
            key = (*key[:3], self.program.work_bytes, *bases)
            graphs[key] = self.driver.capture(dtype, launches)
        return graphs[key]

    def launch(self, launches: list[Any]) -> None:
        for launch in launches:
            self.driver.launch(self.program.plan.dtype, launch)

    def launches(self, bases: list[int], m: int, start: int) -> list[Any]:
        """What a step launches."""
        job, plan = self.job, self.program.plan
        phases = job.phases & ~schema.PREPARE
        bound = bind(self.program, self.driver, self.kernels, m, self.step, bases, start, phases)
        out = bound.get(schema.GRADIENT, [])
        if plan.n_values and job.values is not None:
            out = [*out, control("check", self.step)]
        return [*out, *bound.get(schema.UPDATE, []), control("advance", self.step)]


def run(program: Program, driver: Any, kernels: dict, job: Job) -> int:
    """Runs the job's steps; returns how many finished."""
    if not job.n_steps:
        return 0
    with program.lock:
        try:
            return Run(program, driver, kernels, job)()
        except driver.OutOfMemory as error:
            driver.settle()
            raise too_large(driver, program.plan.sizes, program.work_bytes, error) from error
        except BaseException:
            driver.settle()  # the run's memory goes now, and copies may still be on their way
            raise
