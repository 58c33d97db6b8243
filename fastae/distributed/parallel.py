"""A backend that shares gradients between processes, around the backend that computes them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backends import get_backend
from ..catalog import FIRST_REGISTERED
from ..plan import schema
from ..plan.plan import Job, Plan, Spaces
from .communicator import Communicator

_BOTH = schema.GRADIENT | schema.UPDATE
_SEEDS_APART = 0x9E3779B97F4A7C15
_TOLD = "_told_to_ranks"  # marks errors that all ranks know of
_DOINGS = ("failed", "begins steps", "has ended", "gives sample weights", "takes a mean over rows",
           "takes rank 0's number", "takes rank 0's weights")  # fmt: skip
_NUMBERS = 3  # that a rank says at most
_CHOICES = ("activation", "kind", "likelihood", "loss", "penalty", "rule")  # integers of records that name a formula


@dataclass(frozen=True)
class _Training:
    """A plan with updates as the inner backend has it, and a digest of what must be alike on all ranks."""

    plan: Plan
    inner: Any
    digest: int


def _digest(plan: Plan) -> int:
    """Of parameters and ops; not of what follows from a rank's batch. Registered formulas are all alike here, as their
    numbers are a process's own.
    """
    held = [(b.name, b.rows, b.columns, b.dtype) for b in plan.buffers if b.space in (schema.THETA, schema.STATE)]
    ops = [(op.kind, op.phase, sorted(op.slots.items()), sorted(op.floats.items()),
            [min(op.ints.get(name, -1), FIRST_REGISTERED) for name in _CHOICES]) for op in plan.ops]  # fmt: skip
    return zlib.crc32(repr((plan.dtype.name, held, ops)).encode())


class DataParallel:
    """Runs training steps on every rank's own rows, with the gradients' average over all ranks' rows.

    comm : how ranks add up; the same calls happen in the same order on every rank
    backend, device : what each rank computes with, as of an estimator

    Weights are rank 0's from the first step of every epoch on, and the same bits on all ranks. Reported losses are
    those of all rows, also of those held out by ``early_stopping``, and sample weights are relative to all rows' mean.
    Masks of dropout and noise differ between ranks.
    Every rank must have as many batches as the others, so as many rows, and an estimator with the same parameters but
    for ``random_state``; a callback that ends training must do so on all ranks. What couples the rows of a batch (batch
    normalisation, batch_topk, dead latents) sees the rank's own; at an epoch's start and end rank 0's are taken.

    An error of one rank is a RuntimeError on the others, unless it comes from the middle of a step, where they wait.
    Ranks that do different things (one has ended, or has sample weights) are a ValueError on all.

    Everything but training runs on each rank by itself, and so does what an estimator learns of its rows before or
    after: a detector's scaling and threshold, a classifier's classes and what "balanced" makes of them.
    Full-batch solvers share nothing and are refused (ValueError).
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

    def compile(self, plan: Plan) -> Any:
        """The inner backend's form of a plan; of one that trains with what sharing it needs."""
        inner = self.inner.compile(plan)
        trains = any(op.phase & schema.UPDATE for op in plan.ops)
        return _Training(plan, inner, _digest(plan)) if trains else inner

    def run(self, handle: Any, job: Job) -> int:
        """Runs the job's steps; returns how many finished, the same number on every rank.

        handle : what `compile` gave
        """
        if not isinstance(handle, _Training):
            return self.inner.run(handle, job)
        if job.phases & _BOTH != _BOTH or self.comm.size == 1:
            return self.inner.run(handle.inner, job)
        self._agree(handle, job)
        try:
            return self._steps(handle, job)
        except BaseException as error:  # the others are in the middle of a sum, where there is no telling them
            error.__dict__[_TOLD] = True
            raise

    def _steps(self, handle: _Training, job: Job) -> int:
        theta = job.spaces.array(schema.THETA, np.dtype(np.uint8))
        self.comm.broadcast(theta)
        for i in range(job.n_steps):
            if not self._step(handle.plan, handle.inner, job, i):
                return i
            if job.progress is not None:
                job.progress(i + 1)
        self.comm.broadcast(theta)  # statistics of batch normalisation lie there too, and each rank has its own
        return job.n_steps

    def share(self, spaces: Spaces) -> None:
        """Makes rank 0's weights and optimiser's state, in the memory ``spaces``, those of all ranks."""
        self._exchange("takes rank 0's weights")
        for space in (schema.THETA, schema.STATE):
            self.comm.broadcast(spaces.array(space, np.dtype(np.uint8)))

    def same(self, number: float) -> float:
        """Rank 0's number, on all ranks."""
        return float(self._exchange("takes rank 0's number", number)[0, 0])

    def mean(self, number: float, rows: int) -> float:
        """Mean of a number over the rows of all ranks, each of which has its own number and so many rows."""
        numbers, counts = self._exchange("takes a mean over rows", number, rows).T
        return float((numbers * counts).sum() / counts.sum())

    def mean_weight(self, mean: float, exponent: int, rows: int) -> float:
        """Mean of the weights of all ranks' rows in units of 2^exponent, as is that of this rank's own ``rows``."""
        means, exponents, counts = self._exchange("gives sample weights", mean, exponent, rows).T
        most = exponents.max()  # in units of which no sum overflows
        together = (np.ldexp(means, (exponents - most).astype(int)) * counts).sum() / counts.sum()
        with np.errstate(over="ignore"):  # weights beside which this rank's are nothing
            return float(np.ldexp(together, int(most) - exponent))

    def failed(self, error: BaseException) -> None:
        """Tells the other ranks, which wait for this one, of an error that is not theirs too."""
        chain: BaseException | None = error
        while chain is not None and _TOLD not in chain.__dict__:
            chain = chain.__cause__
        if chain is None:
            error.__dict__[_TOLD] = True
            self._say("failed")

    def ended(self) -> None:
        """Ends training on all ranks. Raises where one has more to do or has failed."""
        self._exchange("has ended")

    def _say(self, doing: str, *numbers: float) -> np.ndarray:
        """What every rank does and says, (size, 4): of one form, so that whatever ranks say outside of a step meets."""
        said = np.zeros((self.comm.size, 1 + _NUMBERS))
        said[self.comm.rank, : 1 + len(numbers)] = _DOINGS.index(doing), *numbers
        try:
            self.comm.sum(said)
        except BaseException as error:  # where nothing can be said, this cannot
            error.__dict__[_TOLD] = True
            raise
        return said

    def _exchange(self, doing: str, *numbers: float) -> np.ndarray:
        """Every rank's numbers, (size, len(numbers)). Raises on all where one has failed or does something else."""
        said = self._say(doing, *numbers)
        does = [_DOINGS[int(i)] for i in said[:, 0]]
        error: Exception | None = None
        if failed := [rank for rank, what in enumerate(does) if what == "failed"]:
            error = RuntimeError(f"ranks {failed} failed, so that training ends on all; see their errors")
        elif len(set(does)) > 1:
            differ = ", ".join(f"rank {rank} {what}" for rank, what in enumerate(does))
            error = ValueError(f"{differ}; give every rank the same calls, arguments and parameters, and as many rows")
        if error is not None:
            error.__dict__[_TOLD] = True
            raise error
        return said[:, 1 : 1 + len(numbers)]

    def _agree(self, handle: _Training, job: Job) -> None:
        """Raises on all ranks where their steps differ: some would wait for ever, or weights would part in silence."""
        scalars = b"" if job.scalars is None else job.scalars.astype(np.float32).tobytes()
        steps, digests = self._exchange("begins steps", job.n_steps, zlib.crc32(scalars, handle.digest)).T
        if (steps != steps[0]).any():
            raise ValueError(
                f"ranks have {steps.astype(int).tolist()} batches; each needs as many as the others: give each the "
                "same number of rows"
            )
        if (digests != digests[0]).any():
            unlike = np.flatnonzero(digests != digests[0]).tolist()
            raise ValueError(
                f"ranks {unlike} train another model than rank 0, or with other options (learning_rate, solver, loss, "
                "penalties, …); make the estimator with the same parameters, for rows of the same width and dtype, on "
                "every rank"
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
