"""Option objects: frozen dataclasses for everything that has parameters of its own.

Those of the catalogue's rows (activations, losses, weight penalties, update rules) are made from the rows, so that a
new row has its option at once. An option may be given by its name instead: ``"adam"`` is ``Adam()``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import catalog


def unknown(what: str, name: object, choices) -> ValueError:
    """The error for a name that isn't among ``choices``, with the nearest one that is."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"{what}={name!r} is unknown; {hint}choose from {', '.join(choices)}")


def number(name: str, value: Any, low: float, high: float, closed: str = "both", integer: bool = False) -> Any:
    """``value`` as a number inside the interval, or an error that says what was wanted."""
    kind = int if integer else float
    try:
        if isinstance(value, (str, bytes)) or (integer and int(value) != value):
            raise TypeError
        result = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}={value!r} must be {'an integer' if integer else 'a number'}") from None
    above = result > low or (result == low and closed in ("both", "left"))
    below = result < high or (result == high and closed in ("both", "right"))
    if not (above and below) or math.isnan(result):
        left, right = "[" if closed in ("both", "left") else "(", "]" if closed in ("both", "right") else ")"
        raise ValueError(f"{name}={value!r} must be in {left}{low:g}, {high:g}{right}")
    return result


class Option:
    """Base of all options: checks each field against the interval that the class declares for it."""

    _intervals: dict[str, tuple[float, float, str]] = {}

    def __post_init__(self) -> None:
        for name, (low, high, closed) in self._intervals.items():
            value = getattr(self, name)
            if value is not None:
                number(f"{type(self).__name__}.{name}", value, low, high, closed)


class ActivationOption(Option):
    _row: catalog.Activation


class LossOption(Option):
    _row: catalog.Loss | None
    name: str

    @property
    def parameters(self) -> tuple[float, ...]:
        return values(self)


class PenaltyOption(Option):
    """A penalty on all weight matrices (not on biases)."""

    _row: catalog.Penalty
    name: str


class SolverOption(Option):
    _row: catalog.UpdateRule
    clip_value: float | None
    clip_norm: float | None


def values(option: Any) -> tuple[float, ...]:
    """The formula's parameters in the catalogue's order."""
    return tuple(float(getattr(option, parameter.name)) for parameter in option._row.parameters)


_ANY = (-math.inf, math.inf, "neither")
_CLIPS = {"clip_value": (0.0, math.inf, "neither"), "clip_norm": (0.0, math.inf, "neither")}


def _from_row(row: Any, base: type, extra: list, intervals: dict) -> type:
    fields = [(p.name, float, p.default) for p in row.parameters] + extra
    formula = getattr(row, "y", None) or getattr(row, "value", None) or "; ".join(getattr(row, "body", ()))
    lines = [f"``{row.name}``: {formula}.", ""]
    lines += [f"{p.name} : float, {p.default:g} by default, from {p.low:g} to {p.high:g}" for p in row.parameters]
    if extra:
        lines += ["clip_value : largest absolute value of a gradient's element, or None"]
        lines += ["clip_norm : largest Euclidean norm of the whole gradient, or None"]
    namespace = {
        "__doc__": "\n".join(lines),
        "__module__": __name__,
        "_row": row,
        "name": row.name,
        "_intervals": {p.name: (p.low, p.high, p.closed) for p in row.parameters} | intervals,
    }
    return dataclasses.make_dataclass(row.label, fields, bases=(base,), namespace=namespace, frozen=True)


ACTIVATIONS = {row.name: _from_row(row, ActivationOption, [], {}) for row in catalog.ACTIVATIONS}
LOSSES = {row.name: _from_row(row, LossOption, [], {}) for row in catalog.LOSSES}
PENALTIES = {row.name: _from_row(row, PenaltyOption, [], {}) for row in catalog.PENALTIES}
_CLIP_FIELDS = [("clip_value", "float | None", None), ("clip_norm", "float | None", None)]
SOLVERS = {row.name: _from_row(row, SolverOption, _CLIP_FIELDS, _CLIPS) for row in catalog.UPDATE_RULES}
for _table in (ACTIVATIONS, LOSSES, PENALTIES, SOLVERS):
    globals().update({cls.__name__: cls for cls in _table.values()})


@dataclass(frozen=True)
class Softmax(Option):
    """Softmax over the row; for the output layer."""

    name = "softmax"


@dataclass(frozen=True)
class Multinomial(LossOption):
    """−Σ_j x_j log softmax(z)_j for rows of non-negative counts or weights."""

    name = "multinomial"
    _row = None


@dataclass(frozen=True)
class CategoricalCrossEntropy(LossOption):
    """−Σ_j x_j log softmax(z)_j for rows that are distributions (they sum to one)."""

    name = "categorical_cross_entropy"
    _row = None


@dataclass(frozen=True)
class KLSparsity(Option):
    """weight · Σ_j KL(rho ‖ batch mean of code unit j), Ng's sparse autoencoder; needs a code in [0, 1]."""

    rho: float = 0.05
    weight: float = 1.0
    _intervals = {"rho": (0.0, 1.0, "neither"), "weight": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class Activity(Option):
    """A catalogue penalty on the code's activities: mean over rows of Σ_j R(h_j)."""

    penalty: PenaltyOption | str = "l1"

    def __post_init__(self) -> None:
        penalty(self.penalty)


@dataclass(frozen=True)
class ActivityL1(Option):
    """strength · mean over rows of Σ_j |h_j| on the code."""

    strength: float = 1e-4
    _intervals = {"strength": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class MaxNorm(Option):
    """Rows of every weight matrix (one per unit) keep a Euclidean norm of at most ``limit``."""

    limit: float = 3.0
    _intervals = {"limit": (0.0, math.inf, "neither")}


@dataclass(frozen=True)
class WeightRange(Option):
    """Every weight stays in [low, high]."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not float(self.low) < float(self.high):
            raise ValueError(f"WeightRange low={self.low!r} must be < high={self.high!r}")


@dataclass(frozen=True)
class NonNegative(Option):
    """Every weight stays ≥ 0."""


@dataclass(frozen=True)
class MaskingNoise(Option):
    """Each input is 0 with probability ``rate``; the target stays clean."""

    rate: float = 0.3
    _intervals = {"rate": (0.0, 1.0, "left")}


@dataclass(frozen=True)
class GaussianNoise(Option):
    """Adds N(0, std²) to each input; the target stays clean."""

    std: float = 0.1
    _intervals = {"std": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class SaltAndPepperNoise(Option):
    """Each input becomes ``low`` or ``high``, each with probability rate / 2; the target stays clean."""

    rate: float = 0.1
    low: float = 0.0
    high: float = 1.0
    _intervals = {"rate": (0.0, 1.0, "left"), "low": _ANY, "high": _ANY}


@dataclass(frozen=True)
class SwapNoise(Option):
    """Each input takes, with probability ``rate``, the value of its column in another row of the batch."""

    rate: float = 0.15
    _intervals = {"rate": (0.0, 1.0, "left")}


NOISES = {"masking": MaskingNoise, "gaussian": GaussianNoise, "salt_and_pepper": SaltAndPepperNoise, "swap": SwapNoise}
OUTPUT_ACTIVATIONS = {**ACTIVATIONS, "softmax": Softmax}
ALL_LOSSES = {**LOSSES, "multinomial": Multinomial, "categorical_cross_entropy": CategoricalCrossEntropy}
CONSTRAINTS = {"max_norm": MaxNorm, "non_negative": NonNegative, "weight_range": WeightRange}
ALL_PENALTIES = {**PENALTIES, "kl_sparsity": KLSparsity, "activity_l1": ActivityL1, "activity": Activity}


def choose(what: str, value: Any, table: Mapping[str, type]) -> Any:
    """An option of ``table`` from an option or its name."""
    if isinstance(value, str):
        if value not in table:
            raise unknown(what, value, table)
        return table[value]()
    if type(value) in table.values():
        return value
    wanted = ", ".join(sorted(cls.__name__ for cls in table.values()))
    raise TypeError(f"{what}={value!r} must be a name or one of {wanted}")


def penalty(value: Any) -> PenaltyOption:
    return choose("penalty", value, PENALTIES)
