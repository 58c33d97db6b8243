"""The objective over all rows and its gradient, by a training plan on blocks of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..plan import schema
from ..plan.build import training_plan
from ..plan.plan import Job, Op, Plan, Source
from ..spec.network import Network
from ..training import Settings, State
from .variables import Variables

BLOCK = 1024  # rows; a multiple of the 256-row segments of gradients


def plan(network: Network, n_rows: int, *, weighted: bool) -> Plan:
    """The training plan for blocks of rows, or for all rows at once where some op couples them.

    Raises ValueError for penalties and constraints that the solver cannot keep.
    """
    blocks = training_plan(network, np.float64, min(BLOCK, n_rows), weighted=weighted)
    Variables.of(blocks, network.solver)
    if n_rows <= BLOCK or not _couples_rows(blocks):
        return _with_present_statistics(blocks)
    return _with_present_statistics(training_plan(network, np.float64, n_rows, weighted=weighted))


def _with_present_statistics(plan: Plan) -> Plan:
    """The plan with "running" means and variances of batch normalisation that are those of the last evaluation."""

    def present(op: Op) -> Op:
        return op if op.kind != "batch_norm" else replace(op, floats={**op.floats, "momentum": 1.0})

    return replace(plan, ops=tuple(present(op) for op in plan.ops))


def _couples_rows(plan: Plan) -> bool:
    """Whether the objective over all rows isn't the mean of the objectives over blocks of them.

    Ops on weights alone are the same in every block, so their mean is what they are.
    """

    def couples(op: Op) -> bool:
        if op.phase != schema.GRADIENT:
            return False
        if op.kind == "noise" and schema.NOISE_KINDS[op.ints["kind"]] == "swap":  # takes values of other rows
            return True
        of_rows = any(plan.buffers[plan.index[name]].rows == schema.BATCH_ROWS for name in op.slots.values())
        return of_rows and not schema.KIND[op.kind].row_local

    return any(couples(op) for op in plan.ops)


class Objective:
    """Loss and penalties over all rows and their gradient, as a function of the flat parameters θ (with padding).

    An evaluation leaves θ, and statistics of batch normalisation that go with it, in the state's memory.
    Of penalties with a non-smooth part the value is whole and the gradient is the smooth part's.
    """

    def __init__(self, backend: Any, plan: Plan, state: State, sources: tuple[Source, ...], settings: Settings,
                 rows: np.ndarray | None):  # fmt: skip
        self.backend, self.plan = backend, plan
        self.handle = backend.compile(plan)
        self.spaces = state.spaces
        self.values = np.zeros((1, plan.n_values))
        n_rows = sources[0].n_rows if rows is None else len(rows)
        self.job = Job(
            state.spaces, backend.place(sources), n_rows, rows, values=self.values,
            scalars=np.zeros((1, plan.n_scalars)),
            seed=settings.seed, n_threads=settings.n_threads,
        )  # fmt: skip

    @property
    def theta(self) -> np.ndarray:
        return self.plan.view(self.spaces, "theta")[0]

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; the value is infinite where anything is not finite."""
        self.theta[:] = theta
        value, total = 0.0, np.zeros(theta.shape, self.plan.dtype)
        batch, n_rows = self.plan.batch, self.job.n_rows
        for block, start in enumerate(range(0, n_rows, batch)):
            self.job.first_batch = block
            self.job.phases = schema.GRADIENT if block else schema.PREPARE | schema.GRADIENT
            if self.backend.run(self.handle, self.job) < 1:
                return np.inf, total
            share = min(batch, n_rows - start) / n_rows
            value += share * float(self.values.sum())
            total += share * self.plan.view(self.spaces, "grad")[0]
        finite = np.isfinite(value) and self.backend.all_finite(total.reshape(1, -1))
        return (value if finite else np.inf), total
