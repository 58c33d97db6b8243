"""A backend that shares gradients between processes, around the backend that computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..backends import get_backend
from ..plan import schema
from ..plan.plan import Job, Plan, Spaces
from .communicator import Communicator

_BOTH = schema.GRADIENT | schema.UPDATE
_SEEDS_APART = 0x9E3779B97F4A7C15


class DataParallel:
    """Runs training steps on every rank's own rows, with the gradients' average over all ranks' rows.

    comm : how ranks add up; the same calls happen in the same order on every rank
    backend, device : what each rank computes with, as of an estimator

    Weights are rank 0's from the first step of every epoch on, and the same bits on all ranks. Reported losses are
    those of all rows. Masks of dropout and noise differ between ranks. Every rank must have as many batches as the
    others, so as many rows. What couples the rows of a batch (batch normalisation, batch_topk, dead latents) sees the
    rank's own; at an epoch's start rank 0's are taken. Everything but training runs on each rank by itself.
    """

    def __init__(self, comm: Communicator, backend: Any = "auto", device: str = "auto"):
        self.comm, self.inner = comm, get_backend(backend, device)

    def __repr__(self) -> str:
        return f"DataParallel({self.inner!r}, rank={self.comm.rank}, size={self.comm.size})"

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "comm"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict) -> DataParallel:
        return self  # scikit-learn's clone; a group of processes is not copied

    def compile(self, plan: Plan) -> tuple[Plan, Any]:
        """The plan, and the inner backend's form of it."""
        return plan, self.inner.compile(plan)

    def run(self, handle: tuple[Plan, Any], job: Job) -> int:
        """Runs the job's steps; returns how many finished, the same number on every rank."""
        plan, inner = handle
        if job.phases & _BOTH != _BOTH or self.comm.size == 1:
            return self.inner.run(inner, job)
        self._agree(job)
        self.comm.broadcast(job.spaces.array(schema.THETA, np.dtype(np.uint8)))
        for i in range(job.n_steps):
            if not self._step(plan, inner, job, i):
                return i
            if job.progress is not None:
                job.progress(i + 1)
        return job.n_steps

    def share(self, spaces: Spaces) -> None:
        """Makes rank 0's weights and optimiser's state those of all ranks."""
        for space in (schema.THETA, schema.STATE):
            self.comm.broadcast(spaces.array(space, np.dtype(np.uint8)))

    def same(self, number: float) -> float:
        """Rank 0's number, on all ranks."""
        held = np.array([number], dtype=np.float64)
        self.comm.broadcast(held)
        return float(held[0])

    def _agree(self, job: Job) -> None:
        """Raises on all ranks where their numbers of steps differ: some would wait for ever."""
        steps = np.zeros(self.comm.size)
        steps[self.comm.rank] = job.n_steps
        self.comm.sum(steps)
        if (steps != steps[0]).any():
            raise ValueError(
                f"ranks have {steps.astype(int).tolist()} batches; each needs as many as the others: give each the "
                "same number of rows"
            )

    def _step(self, plan: Plan, inner: Any, job: Job, i: int) -> bool:
        """One step; False, before a weight is changed, where a rank's values are not finite."""
        first = job.first_batch + i
        m = min(plan.batch, job.n_rows - first * plan.batch)
        rows = np.array([float(m)])
        self.comm.sum(rows)
        share = m / rows[0]
        scalars = None if job.scalars is None else job.scalars[i : i + 1]
        values = np.zeros((1, plan.n_values))
        phases = schema.GRADIENT | (schema.PREPARE if i == 0 else 0)
        seed = (job.seed + self.comm.rank * _SEEDS_APART) % 2**64
        one = replace(job, first_batch=first, n_steps=1, scalars=scalars, progress=None, seed=seed)
        self.inner.run(inner, replace(one, phases=phases & job.phases, values=values))
        gradient = job.spaces.array(schema.GRAD, plan.dtype)
        gradient *= plan.dtype.type(share)
        self.comm.sum(gradient)
        with np.errstate(all="ignore"):
            values *= share
        self.comm.sum(values)
        if job.values is not None:
            job.values[i] = values[0]
        if not np.isfinite(values).all():
            return False
        self.inner.run(inner, replace(one, phases=schema.UPDATE, values=np.zeros_like(values)))
        return True
