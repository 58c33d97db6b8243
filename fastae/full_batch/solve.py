"""The run of scipy's optimiser: line searches that come back, iterations, the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..exceptions import NonFiniteLossError
from ..plan import schema
from ..plan.plan import Plan
from ..spec.options import LBFGS, FullBatchOption
from ..threads import one_blas_thread
from ..training import Held, History, Monitor, Settings, State
from .objective import Objective
from .variables import Variables

NEGLIGIBLE = 2.2e-9  # of the objective: scipy's default for a decrease that isn't worth an iteration


@dataclass
class _Point:
    """An evaluated z: the objective that scipy sees with its gradient, and the loss that people see."""

    z: np.ndarray
    value: float
    grad: np.ndarray
    loss: float


class _Search:
    """What scipy calls: evaluations, and the accepted point after each iteration."""

    def __init__(self, objective: Objective, variables: Variables, state: State):
        self.objective, self.variables, self.state = objective, variables, state
        self.evaluations = 0
        self.gain: float | None = None  # decrease of the objective in the last iteration
        self.memory = state.spaces.snapshot(schema.THETA)  # of the accepted point
        self.accepted = self.last = self._evaluate(variables.start(objective.theta))
        if np.isfinite(self.accepted.value):
            self.memory = state.spaces.snapshot(schema.THETA)

    def _evaluate(self, z: np.ndarray) -> _Point:
        self.evaluations += 1
        loss, grad = self.objective(self.variables.theta(z))
        return _Point(z.copy(), *self.variables.lift(z, loss, grad), loss)

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient at z.

        Where they are not finite: those of the parabola along the line from the accepted point that has the slope
        there and its minimum a tenth of the way, so that the line search comes back (infinity would make it NaN).
        """
        if np.array_equal(z, self.last.z):
            return self.last.value, self.last.grad
        old = self.accepted
        new = self.last = self._evaluate(z)
        drop = float(old.grad @ (z - old.z))
        if not np.isfinite(new.value):
            new.value, new.grad = old.value + 4.0 * abs(drop), -9.0 * old.grad
        if self.gain is None:  # what the first step would bring if the objective were a parabola along it
            bend = float(new.grad @ (z - old.z)) - drop
            self.gain = 0.5 * drop * drop / bend if bend > 0 else np.inf
        return new.value, new.grad

    def accept(self, z: np.ndarray) -> None:
        old = self.accepted
        self.accepted = self.last = self.last if np.array_equal(z, self.last.z) else self._evaluate(z)
        self.gain = old.value - self.accepted.value
        self.memory = self.state.spaces.snapshot(schema.THETA)

    def restore(self) -> None:
        """Puts the accepted point's parameters back: what ends a line search leaves its probe."""
        self.state.spaces.restore(schema.THETA, self.memory)

    @property
    def exhausted(self) -> bool:
        """Whether the last iteration brought next to nothing, or, before any, the first step promises as little."""
        return self.gain is not None and self.gain <= NEGLIGIBLE * abs(self.accepted.value)


def _largest_slope(point: _Point, bounds: tuple[np.ndarray, np.ndarray] | None) -> float:
    """Largest element of the projected gradient, as L-BFGS-B defines it."""
    grad = point.grad
    if bounds is not None:
        grad = np.where(grad < 0, np.maximum(point.z - bounds[1], grad), np.minimum(point.z - bounds[0], grad))
    return float(np.abs(grad).max(initial=0.0))


def fit(
    backend: Any, plan: Plan, state: State, held: Held, settings: Settings, *,
    validate: Callable[[], float] | None = None, model: Any = None, history: History | None = None,
    publish: Callable[[], None] | None = None,
) -> History:  # fmt: skip
    """Like `fastae.training.fit` with iterations of the solver for epochs.

    Training has converged when the largest element of the (projected) gradient is at most ``tol`` times what it was
    at the start, when the loss stops improving as for other solvers, or when a line search finds no lower point after
    an iteration that brought less than 2.2e-9 of the objective. Anything else that ends it, except a callback, is a
    ConvergenceWarning.
    """
    from scipy.optimize import Bounds, minimize

    history = History() if history is None else history
    solver = settings.rule
    variables = Variables.of(plan, solver)
    n_rows = held.n_rows
    objective = Objective(backend, plan, state, held.sources, settings, held.rows)
    search = _Search(objective, variables, state)
    if not np.isfinite(search.accepted.value):
        search.restore()
        raise NonFiniteLossError(
            "loss or gradient is NaN or infinite at the starting weights, which were kept; scale X, or start from "
            "smaller weights (initializer)"
        )
    bounds = variables.bounds()
    target = settings.tol * _largest_slope(search.accepted, bounds)
    options: dict[str, Any] = {"maxiter": settings.max_iter, "gtol": target}
    if isinstance(solver, LBFGS):
        options |= {"maxcor": solver.history, "maxfun": 2**62, "ftol": 0.0}
    limit = solver.max_evaluations or np.inf

    def iterated(intermediate_result: Any) -> None:
        search.accept(intermediate_result.x)
        state.epochs += 1
        state.steps += 1
        if monitor.epoch(search.accepted.loss):
            raise StopIteration
        if search.evaluations >= limit:
            history.stopped_by = "max_evaluations"
            raise StopIteration

    with (
        Monitor(settings, state, history, n_rows, n_rows, validate, model, publish) as monitor,
        one_blas_thread() if backend.name == "native" else nullcontext(),
    ):
        try:
            result = minimize(
                search, search.accepted.z, jac=True, method="L-BFGS-B" if isinstance(solver, LBFGS) else "CG",
                bounds=None if bounds is None else Bounds(*bounds), callback=iterated, options=options,
            )  # fmt: skip
        finally:
            search.restore()
    if not history.losses:
        history.losses.append(search.accepted.loss)
    slope = _largest_slope(search.accepted, bounds)
    if history.stopped_by in ("max_iter", "max_evaluations") and slope <= target:  # by the last iteration allowed
        history.stopped_by = "tol"
    if history.stopped_by == "max_iter" and result.status != 1:
        history.stopped_by = "tol" if result.status == 0 or search.exhausted else "line_search"
    _warn(history, solver, settings, search, f"{slope:.3g} ({target:.3g} wanted)")
    return history


def _warn(history: History, solver: FullBatchOption, settings: Settings, search: _Search, slope: str) -> None:
    """ConvergenceWarning where training ended neither by convergence nor by a callback."""
    if history.stopped_by in ("tol", "callback"):
        return
    from sklearn.exceptions import ConvergenceWarning

    why = {
        "max_iter": f"max_iter={settings.max_iter} iterations were done; raise max_iter or tol, or scale X",
        "max_evaluations": f"{search.evaluations} evaluations were done; raise the solver's max_evaluations",
        "line_search": "no lower point was found along its line; use a smooth activation and loss, or scale X",
    }[history.stopped_by]
    warnings.warn(
        f"solver={solver.name!r} did not converge, the largest element of the gradient is {slope}: {why}",
        ConvergenceWarning,
        stacklevel=4,
    )
