"""What a formula must show before it is registered: finite values, the right derivative, no NaN hidden.

Derivatives are held against central differences in float64 at points that fill the formula's domain evenly and keep
off round numbers. A point where the differences to the left and to the right disagree is a kink and counts neither
way; a few are allowed.
"""

from __future__ import annotations

import dis
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.registered import on_points, scalar_functions

if TYPE_CHECKING:
    from . import Formula

_POINTS = 211
_EPS = np.finfo(np.float64).eps
_KINKS = 0.03  # share of the points that may lie at kinks


def _uniform(n: int, step: float) -> np.ndarray:
    """n numbers in (0, 1), evenly spread: multiples of an irrational step."""
    return (0.37 + step * np.arange(n)) % 1.0


def _spread(u: np.ndarray, low: float, high: float, *, ends: bool) -> np.ndarray:
    """Numbers of [low, high] (or of its inside), denser around 0 and at a finite end of an infinite interval."""
    if math.isfinite(low) and math.isfinite(high):
        inner = np.clip(1.06 * u - 0.03, 0, 1) if ends else 0.01 + 0.98 * u
        return low + (high - low) * inner
    if math.isfinite(low):
        return low + np.maximum(9 * u * u - 0.01, 0 if ends else 0.002)
    if math.isfinite(high):
        return high - np.maximum(9 * u * u - 0.01, 0 if ends else 0.002)
    v = 2 * u - 1
    return 7 * v * np.abs(v) + 0.3 * v


def _domain(formula: Formula, side: str) -> tuple[float, float]:
    arguments = formula.description["arguments"]
    low, high = arguments.get(f"{side}_low"), arguments.get(f"{side}_high")
    return -math.inf if low is None else low, math.inf if high is None else high


def _points(formula: Formula) -> list[np.ndarray]:
    """Where the first argument (and the target) are checked."""
    first = _uniform(_POINTS, 0.7548776662466927)  # of the plastic number: also even in two dimensions
    x = _spread(first, *_domain(formula, "prediction"), ends=False)
    if formula.kind != "loss":
        return [x]
    return [x, _spread(_uniform(_POINTS, 0.5698402909980532), *_domain(formula, "target"), ends=True)]


def _parameter_sets(formula: Formula) -> Iterator[list[float]]:
    """The defaults, and others around them inside the bounds: a derivative may be right for 1 only."""
    for factor, shift in ((1.0, 0.0), (1.37, 0.21), (0.73, 0.0)):
        chosen = []
        for parameter in formula.row.parameters:
            value = factor * parameter.default if parameter.default else shift
            chosen.append(min(max(value, parameter.low), parameter.high))
        yield chosen


class _Check:
    """One formula at one set of parameters."""

    def __init__(self, formula: Formula, parameters: list[float]):
        self.formula, self.p = formula, parameters
        self.functions = on_points(formula)

    def __call__(self, suffix: str, *arrays: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            try:
                return np.asarray(self.functions[suffix](*arrays, self.p), dtype=np.float64)
            except Exception as error:
                raise ValueError(
                    f"{self.formula.kind} {self.formula.row.name!r}: {suffix} raises {error!r}, which kernels cannot"
                ) from error

    def fail(self, message: str, names: tuple[str, ...], at: tuple) -> None:
        values = [f"{name}={value:.6g}" for name, value in zip(names, at, strict=True)]
        values += [f"{q.name}={v:.6g}" for q, v in zip(self.formula.row.parameters, self.p, strict=True)]
        raise ValueError(f"{self.formula.kind} {self.formula.row.name!r}: {message} at {', '.join(values)}")

    def finite(self, suffix: str, names: tuple[str, ...], arrays: list[np.ndarray]) -> np.ndarray:
        result = self(suffix, *arrays)
        bad = np.flatnonzero(~np.isfinite(result))
        if len(bad):
            at = tuple(array[bad[0]] for array in arrays)
            self.fail(f"{suffix} is {result[bad[0]]:g}, wanted a finite number", names, at)
        return result

    def derivative(
        self, value: str, suffix: str, names: tuple[str, ...], arrays: list[np.ndarray], slope: np.ndarray,
        of: Callable | None = None,
    ) -> None:  # fmt: skip
        """The slope against differences of ``value`` (which ``of`` gives) in its first argument."""
        x, *rest = arrays
        low, high = _domain(self.formula, "prediction")  # steps stay inside, and are small beside a pole
        h = 6e-6 * np.minimum(np.maximum(1.0, np.abs(x)), np.minimum(x - low, high - x))
        of = of or partial(self, value)
        here, above, below = (of(at, *rest) for at in (x, x + h, x - h))
        wanted = (above - below) / (2 * h)
        rounding = 64 * _EPS * np.maximum(np.abs(above), np.abs(below)) / h
        wrong = ~(np.abs(slope - wanted) <= 2e-6 * np.abs(wanted) + 1e-8 + rounding)
        right, left = (above - here) / h, (here - below) / h
        kink = np.abs(right - left) > 1e-3 * (1 + np.abs(right) + np.abs(left))
        bad = np.flatnonzero(wrong & ~kink)
        if not len(bad) and (wrong & kink).sum() > _KINKS * len(x):
            bad = np.flatnonzero(wrong & kink)
        if len(bad):
            i = bad[0]
            message = f"{suffix} is {slope[i]:.8g}, but {value} changes at the rate {wanted[i]:.8g}"
            self.fail(message, names, tuple(array[i] for array in arrays))


def _activation(check: _Check, x: np.ndarray, default: bool) -> None:
    row = check.formula.row
    far = np.array([0.0, 20.0, -20.0])
    for points in (x, far):
        y = check.finite("y", ("x",), [points])
        saved = points if row.needs == "x" else y
        slope = check.finite("dy", (row.needs,), [saved])
        slack = 1e-9 * np.maximum(1.0, np.abs(y))
        outside = np.flatnonzero((y < row.low - slack) | (y > row.high + slack))
        if default and len(outside):
            i = outside[0]
            check.fail(f"y is {y[i]:.8g}, outside [low, high] = [{row.low:g}, {row.high:g}]", ("x",), (points[i],))
        if points is x:
            check.derivative("y", "dy", ("x",), [x], slope)
        if row.d2y is not None:
            curvature = check.finite("d2y", (row.needs,), [saved])
            if points is x:
                check.derivative("dy", "d2y", ("x",), [x], curvature,
                                 of=lambda at: check("dy", at if row.needs == "x" else check("y", at)))  # fmt: skip
    _lets_nan_through(check, "y", ("x",), [np.full(1, np.nan)], "select(x > 0, x, 0) as max(x, 0)")


def _loss(check: _Check, points: list[np.ndarray]) -> None:
    names = ("y", "t")
    check.finite("value", names, points)
    check.derivative("value", "dy", names, points, check.finite("dy", names, points))
    _lets_nan_through(check, "value", names, [np.full(1, np.nan), points[1][:1]], "select(a < b, …, …) with y in both")


def _penalty(check: _Check, w: np.ndarray) -> None:
    row = check.formula.row
    check.finite("value", ("w",), [np.zeros(1)])
    check.finite("value", ("w",), [w])
    check.derivative("value", "dw", ("w",), [w], check.finite("dw", ("w",), [w]))
    check.finite("smooth", ("w",), [np.append(w, 0.0)])
    if row.prox is None:
        return
    for s in (0.01, 0.3):
        u = check("prox", w, s)
        if not np.isfinite(u).all():
            i = np.flatnonzero(~np.isfinite(u))[0]
            check.fail(f"prox is {u[i]:g}, wanted a finite number", ("w", "s"), (w[i], s))
        # u minimises ½(u − w)² + s N(u): that function rises to the right of u and falls to its left
        e = 1e-6 * np.maximum(1.0, np.abs(u))
        rise, fall = (v - w + s * (check("dw", v) - check("smooth", v)) for v in (u + e, u - e))
        bad = np.flatnonzero(~((rise >= -2e-6 * (1 + np.abs(w))) & (fall <= 2e-6 * (1 + np.abs(w)))))
        if len(bad):
            i = bad[0]
            message = f"prox is {u[i]:.8g}, which does not minimise ½(u − w)² + s N(u), N' = dw − smooth,"
            check.fail(message, ("w", "s"), (w[i], s))


def _lets_nan_through(check: _Check, suffix: str, names: tuple[str, ...], arrays: list, example: str) -> None:
    result = check(suffix, *arrays)
    if not np.isnan(result).all():
        check.fail(f"{suffix} is {result[0]:g} and hides NaN: write {example}, or add 0 * {names[0]},", names,
                   tuple(array[0] for array in arrays))  # fmt: skip


def check(formula: Formula) -> None:
    """Raises ValueError with the point, what came and what was wanted."""
    points = _points(formula)
    for i, parameters in enumerate(_parameter_sets(formula)):
        at = _Check(formula, parameters)
        if formula.kind == "activation":
            _activation(at, points[0], default=i == 0)
        elif formula.kind == "loss":
            _loss(at, points)
        else:
            _penalty(at, points[0])


# ---- Python functions -----------------------------------------------------------------------------------------------

_MAIN = {"activation": ("y", "dy"), "loss": ("value", "dy"), "penalty": ("value", "dw")}


def _instructions(function: Callable) -> Iterator[dis.Instruction]:
    """Of a function and of the compiled ones that it calls."""
    yield from dis.get_instructions(function)
    outside = inspect.getclosurevars(function)
    for value in {**outside.globals, **outside.nonlocals}.values():
        if hasattr(value, "py_func"):
            yield from _instructions(value.py_func)


def compiled(formula: Formula) -> None:
    """Compiles the user's functions, or raises ValueError with what Numba says."""
    from numba import float64

    for suffix, function in formula.functions.items():
        what = f"{formula.kind} {formula.row.name!r}: {suffix}"
        rule = "write plain arithmetic on scalars with functions of math, without exceptions, printing or files"
        for step in _instructions(function):
            if step.opname in ("RAISE_VARARGS", "RERAISE") or step.argval == "print":
                raise ValueError(
                    f"{what} {'prints' if step.argval == 'print' else 'raises'}, which kernels cannot; {rule}"
                )
        scalar: Any = scalar_functions(formula)[suffix]
        try:
            scalar.compile((float64,) * len(formula.signatures[suffix]))
        except Exception as error:  # Numba's own, and whatever its passes run into
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ValueError(f"{what} cannot be compiled by Numba ({' '.join(lines[:3])[:300]}); {rule}") from error
        result = str(scalar.nopython_signatures[0].return_type)
        if not result.startswith(("float", "int", "uint", "bool", "Literal[int]")):
            raise ValueError(f"{what} gives {result}; wanted a real number")


def sample(formula: Formula) -> dict:
    """A few points and the values there, by which a function is known again in another process."""
    points = [array[:5] for array in _points(formula)]
    return {"points": [array.tolist() for array in points], "values": values_at(formula, points)}


def values_at(formula: Formula, points: list) -> list[list[float]]:
    """The value and the derivative at points, for the default parameters."""
    at = _Check(formula, [parameter.default for parameter in formula.row.parameters])
    arrays = [np.asarray(array, dtype=np.float64) for array in points]
    value, slope = _MAIN[formula.kind]
    first = at(value, *arrays)
    saved = [first] if formula.kind == "activation" and formula.row.needs == "y" else arrays
    if not np.array_equal(first, at(value, *arrays), equal_nan=True):
        raise ValueError(f"{formula.kind} {formula.row.name!r}: {value} gives other results for the same arguments")
    return [first.tolist(), at(slope, *saved).tolist()]


__all__ = ["check", "compiled", "sample", "values_at"]
