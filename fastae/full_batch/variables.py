"""The variables that scipy sees: bounds for constraints, two parts for weights under L1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..catalog import PENALTIES
from ..plan import schema
from ..plan.plan import Op, Plan
from ..spec.options import LBFGS, FullBatchOption


@dataclass(frozen=True)
class Variables:
    """scipy's variables z for the parameters θ: bounds for constraints, w = u − v for weights under λ|w|.

    u, v ≥ 0 make the penalty λ(u + v) smooth, and bounds make true zeros. z is θ with u in the places of w, then v.
    """

    slope: np.ndarray  # λ of each parameter
    lower: np.ndarray  # of each parameter
    upper: np.ndarray
    split: np.ndarray  # places of the parameters that are u − v

    @classmethod
    def of(cls, plan: Plan, solver: FullBatchOption) -> Variables:
        """Read from the plan's projections, which hold what must be true of weights after a step."""
        n = plan.buffers[plan.index["theta"]].columns
        slope, lower, upper = np.zeros(n), np.full(n, -np.inf), np.full(n, np.inf)
        for op in plan.ops:
            if op.kind != "project":
                continue
            w = plan.buffers[plan.index[op.slots["w"]]]
            place = slice(w.offset // 8, w.offset // 8 + w.rows * w.columns)
            match schema.PROJECT_KINDS[op.ints["kind"]]:
                case "prox":
                    slope[place] += _slope(op)
                case "range":
                    np.maximum(lower[place], op.floats["p0"], out=lower[place])
                    np.minimum(upper[place], op.floats["p1"], out=upper[place])
                case "non_negative":
                    np.maximum(lower[place], 0.0, out=lower[place])
                case other:
                    raise ValueError(
                        f"solver={solver.name!r} cannot keep the constraint {other!r}; use WeightRange or NonNegative "
                        "with 'lbfgs', or an update rule such as solver='adam'"
                    )
        if not isinstance(solver, LBFGS) and (slope.any() or np.isfinite(lower).any() or np.isfinite(upper).any()):
            what = "L1 or elastic-net penalties" if slope.any() else "constraints"
            raise ValueError(f"solver={solver.name!r} cannot keep {what} on weights; use solver='lbfgs'")
        split = np.flatnonzero((slope > 0) & (lower < 0) & (upper > 0))
        return cls(slope, lower, upper, split)

    def start(self, theta: np.ndarray) -> np.ndarray:
        """z of the feasible parameters nearest to θ."""
        theta = np.clip(theta, self.lower, self.upper)
        w = theta[self.split]
        theta[self.split] = np.maximum(w, 0.0)
        return np.concatenate([theta, np.maximum(-w, 0.0)])

    def theta(self, z: np.ndarray) -> np.ndarray:
        n = len(self.slope)
        theta = z[:n].copy()
        theta[self.split] -= z[n:]
        return theta

    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(lower, upper) of z, or None when z is free."""
        lower, upper = self.lower.copy(), self.upper.copy()
        lower[self.split] = 0.0
        lower = np.concatenate([lower, np.zeros(len(self.split))])
        upper = np.concatenate([upper, -self.lower[self.split]])
        return (lower, upper) if np.isfinite(lower).any() or np.isfinite(upper).any() else None

    def lift(self, z: np.ndarray, value: float, grad: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient in z from those in θ: λ(u + v) = λ|u − v| + 2λ min(u, v)."""
        if not self.slope.any():
            return value, grad
        n = len(self.slope)
        slope = self.slope[self.split]
        value += 2.0 * float((slope * np.minimum(z[self.split], z[n:])).sum())
        # a weight that isn't split has one sign: |w| is −w where no weight may be positive
        signed = np.where(self.upper <= 0, -self.slope, self.slope)
        return value, np.concatenate([grad + signed, slope - grad[self.split]])


def _slope(op: Op) -> float:
    """λ of a penalty whose non-smooth part is λ|w|."""
    from ..backends.reference import formulas

    _, slope, smooth, _ = formulas.PENALTY[op.ints["penalty"]]
    w, p = np.array([-3.0, -1.0, -1e-9, 1e-9, 1.0, 3.0]), [op.floats["p0"], op.floats["p1"]]
    rest = (slope(w, p) - smooth(w, p)) * np.sign(w)
    if not np.ptp(rest) <= 1e-9 * rest[3]:
        name = PENALTIES[op.ints["penalty"]].label
        raise ValueError(
            f"full-batch solvers take penalties whose non-smooth part is a multiple of |w|; that of {name} is not; "
            "use an update rule such as solver='adam'"
        )
    return float(rest[3])
