"""Runs a plan's launches step by step: memory in, a graph or single launches per step, memory out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...plan import schema
from ...plan.plan import Job, Plan, Source
from .binder import Binder, Launch, ceil_div
from .record import LAUNCH, MAX_SOURCES, STEP

DTYPE_CODES = {
    "float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "uint8": 4, "bool": 4, "int8": 5, "uint16": 6,
    "int16": 7, "uint32": 8, "int32": 9, "uint64": 10, "int64": 11,
}  # fmt: skip


class Program:
    """A plan and what the device keeps of it between runs."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.work: Any = None  # memory that ops share, one after another
        self.work_bytes = 0
        # launches read addresses that move from step to step where a caller's array has a row per row of the batch
        self.moving = any(b.space >= schema.EXTERNAL and b.rows == schema.BATCH_ROWS for b in plan.buffers)


def bind(program: Program, driver: Any, kernels: dict, m: int, step: int, bases: list[int], start: int) -> dict:
    """Launches of each phase for batches of m rows."""
    while True:
        work = 0 if program.work is None else driver.address(program.work)
        binder = Binder(program.plan, m, step, bases, start, work, driver)
        phases = {p: binder.bind(p, kernels) for p in (schema.PREPARE, schema.GRADIENT, schema.UPDATE)}
        if binder.work_bytes <= program.work_bytes:
            return phases
        program.work, program.work_bytes = driver.empty(binder.work_bytes), binder.work_bytes


def control(name: str, step: int) -> Launch:
    """A kernel of the run itself: ``check`` or ``advance``."""
    record = np.zeros(1, LAUNCH)
    record["step"] = step
    return Launch(name, (1, 1, 1), (32, 1, 1), 0, record)


class Upload:
    """Arrays of a job on the device: those that lie there already by address, the others as copies."""

    def __init__(self, driver: Any):
        self.driver = driver
        self.held: list[Any] = []
        self.back: list[tuple[Any, np.ndarray]] = []

    def __call__(self, array: Any, *, out: bool = False) -> int:
        """The address of an array's elements on the device; ``out``: it is copied back at the end."""
        if array is None:
            return 0
        if not isinstance(array, np.ndarray):
            self.held.append(array)
            return self.driver.address(array)
        buffer = self.driver.upload(array)
        self.held.append(buffer)
        if out:
            self.back.append((buffer, array))
        return self.driver.address(buffer)

    def finish(self) -> None:
        for buffer, array in self.back:
            self.driver.download(buffer, array)


def source_record(source: Source, upload: Upload) -> tuple:
    data = source.data
    code = DTYPE_CODES.get(data.dtype.name)
    if code is None:
        raise TypeError(f"source has dtype {data.dtype}; convert it to one of {', '.join(DTYPE_CODES)}")
    if source.indptr is None:
        stride = data.strides[0] // data.itemsize if len(data) else data.shape[1]
        if isinstance(data, np.ndarray):  # a copy has no gaps
            data, stride = np.ascontiguousarray(data), data.shape[1]
        return upload(data), code, stride, data.shape[1], 0, 0, upload(source.weight)
    indptr, indices = np.asarray(source.indptr, np.int64), np.asarray(source.indices, np.int32)
    return upload(data), code, 0, source.columns, upload(indptr), upload(indices), upload(source.weight)


def run(program: Program, driver: Any, kernels: dict, job: Job) -> int:
    """Runs the job's steps; returns how many finished."""
    plan = program.plan
    if not job.n_steps:
        return 0
    upload = Upload(driver)
    values = np.zeros((job.n_steps, max(plan.n_values, 1)))
    state = np.zeros(1, STEP)
    state["number"], state["start"] = 0, job.first_batch * plan.batch
    state["batch"], state["n_values"], state["n_scalars"] = plan.batch, plan.n_values, plan.n_scalars
    state["order"] = upload(job.order)
    state["values"] = upload(values, out=True)
    state["scalars"] = upload(job.scalars)
    state["seed"], state["epoch"] = job.seed, job.epoch
    assert len(job.sources) <= MAX_SOURCES
    for i, source in enumerate(job.sources):
        state["source"][0, i] = source_record(source, upload)
    bases = [upload(space, out=space.flags.writeable) for space in job.spaces]
    step = upload(state.view(np.uint8), out=True)
    for launch in prepare_launches(program, driver, kernels, job, step, bases):
        driver.launch(plan.dtype, launch)
    run_steps(program, driver, kernels, job, step, bases)
    upload.finish()
    done = int(state["number"][0])
    if job.values is not None:
        job.values[: job.n_steps, : plan.n_values] = values[:, : plan.n_values]
    return done


def prepare_launches(program, driver, kernels, job, step, bases) -> list[Launch]:
    if not job.phases & schema.PREPARE:
        return []
    m = min(program.plan.batch, job.n_rows - job.first_batch * program.plan.batch)
    return bind(program, driver, kernels, m, step, bases, 0)[schema.PREPARE]


def step_launches(program, driver, kernels, job, step, bases, m, start) -> list[Launch]:
    bound = bind(program, driver, kernels, m, step, bases, start)
    launches = bound[schema.GRADIENT] if job.phases & schema.GRADIENT else []
    if program.plan.n_values and job.values is not None:
        launches = [*launches, control("check", step)]
    if job.phases & schema.UPDATE:
        launches = [*launches, *bound[schema.UPDATE]]
    return [*launches, control("advance", step)]


def run_steps(program, driver, kernels, job, step, bases) -> None:
    plan = program.plan
    last = time.perf_counter()
    captured: dict[int, Any] = {}
    for number in range(job.n_steps):
        start = (job.first_batch + number) * plan.batch
        m = min(plan.batch, job.n_rows - start)
        if program.moving:
            for launch in step_launches(program, driver, kernels, job, step, bases, m, start):
                driver.launch(plan.dtype, launch)
        else:
            if m not in captured:
                launches = step_launches(program, driver, kernels, job, step, bases, m, 0)
                captured[m] = driver.capture(plan.dtype, launches)
            captured[m]()
        if job.progress is not None and time.perf_counter() - last > 0.004:
            driver.synchronize()
            last = time.perf_counter()
            job.progress(number + 1)


__all__ = ["Program", "ceil_div", "run"]
