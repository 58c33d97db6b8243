"""Option objects: frozen dataclasses for everything that has parameters of its own.

Those of the catalogue's rows (activations, losses, weight penalties, update rules) are made from the rows, so that a
new row has its option at once. An option may be given by its name instead: ``"adam"`` is ``Adam()``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from .. import catalog
from ..likelihoods import LIKELIHOODS as _LIKELIHOOD_ROWS
from ..likelihoods import Likelihood


def unknown(what: str, name: object, choices) -> ValueError:
    """The error for a name that isn't among ``choices``, with the nearest one that is."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name).lower(), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"{what}={name!r} is unknown; {hint}choose from {', '.join(choices)}")


def number(name: str, value: Any, low: float, high: float, closed: str = "both", integer: bool = False) -> Any:
    """``value`` as a number inside the interval, or an error that says what was wanted."""
    kind = int if integer else float
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)) or (integer and int(value) != value):
            raise TypeError
        result = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}={value!r} must be {'an integer' if integer else 'a number'}") from None
    above = result > low or (result == low and closed in ("both", "left"))
    below = result < high or (result == high and closed in ("both", "right"))
    if not (above and below) or math.isnan(result):
        left, right = "[" if closed in ("both", "left") else "(", "]" if closed in ("both", "right") else ")"
        ends = [f"{int(end)}" if integer and math.isfinite(end) else f"{end:g}" for end in (low, high)]
        raise ValueError(f"{name}={value!r} must be in {left}{ends[0]}, {ends[1]}{right}")
    return result


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool: True, False, 1 or 0, and nothing else that Python would take for one of them."""
    if not isinstance(value, (bool, np.bool_, Integral)) or value not in (0, 1):
        raise TypeError(f"{name}={value!r} must be True or False")
    return bool(value)


class Option:
    """Base of all options: checks each field against the interval that the class declares for it.

    None is allowed where it is the default. Whole numbers are kept as int, whatever type they came in.
    """

    _intervals: dict[str, tuple[float, float, str]] = {}
    _integers: tuple[str, ...] = ()  # those of these fields that are whole numbers

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = f"{type(self).__name__}.{field.name}", getattr(self, field.name)
            if isinstance(field.default, bool):
                flag(name, value)
            elif field.name in self._intervals and not (value is None and field.default is None):
                whole = field.name in self._integers
                checked = number(name, value, *self._intervals[field.name], whole)
                if whole:
                    object.__setattr__(self, field.name, checked)

    def _ordered(self, low: str, high: str, strict: bool = False) -> None:
        """Raises unless the field ``low`` is at most (``strict``: less than) the field ``high``; both are numbers."""
        first, second = getattr(self, low), getattr(self, high)
        if not (float(first) < float(second) or (not strict and float(first) == float(second))):
            sign = "<" if strict else "<="
            raise ValueError(f"{type(self).__name__} {low}={first!r} must be {sign} {high}={second!r}")

    def stored(self) -> dict[str, Any]:
        """Fields as a model file keeps them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


class ActivationOption(Option):
    _row: catalog.Activation
    _index: int  # of the row in the catalogue; a row that is registered anew gets another one


class LossOption(Option):
    """A loss; those of a whole row (``_row`` None) say for themselves what a catalogue row says of the others."""

    _row: Any  # catalog.Loss, likelihoods.Likelihood or None
    _index: int
    name: str
    sums_to_one = False  # whether a row of targets must be a distribution

    @property
    def parameters(self) -> tuple[float, ...]:
        return values(self)

    @property
    def output(self) -> str:
        """The output activation that the loss computes itself, "identity" for none."""
        return self._row.output

    @property
    def n_outputs(self) -> int:
        """Outputs of the network per feature."""
        return 1

    @property
    def target_range(self) -> tuple[float, float]:
        return self._row.target_low, self._row.target_high


class LikelihoodOption(LossOption):
    """−log p(x) of a distribution with several parameters per feature, each one an output of the network."""

    _row: Likelihood
    size_factor: bool
    output = "distribution"

    @property
    def n_outputs(self) -> int:
        return len(self._row.outputs)


class RowLoss(LossOption):
    _row = None
    output = "softmax"
    target_range = (0.0, math.inf)


class PenaltyOption(Option):
    """A penalty on all weight matrices (not on biases)."""

    _row: catalog.Penalty
    _index: int
    name: str


class SolverOption(Option):
    _row: catalog.UpdateRule
    name: str
    _index: int
    clip_value: float | None
    clip_norm: float | None


def values(option: Any) -> tuple[float, ...]:
    """The formula's parameters in the catalogue's order."""
    return tuple(float(getattr(option, parameter.name)) for parameter in option._row.parameters)


COUNT = (1, 2**31 - 1, "both")
_ANY = (-math.inf, math.inf, "neither")
_CLIPS = {"clip_value": (0.0, math.inf, "neither"), "clip_norm": (0.0, math.inf, "neither")}


def from_row(index: int, row: Any, base: type, extra: list, intervals: dict) -> type:
    """The option class of a row of the catalogue."""
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
        "_index": index,
        "name": row.name,
        "_intervals": {p.name: (p.low, p.high, p.closed) for p in row.parameters} | intervals,
    }
    return dataclasses.make_dataclass(row.label, fields, bases=(base,), namespace=namespace, frozen=True)


def _likelihood(row: Likelihood) -> type:
    outputs = ", ".join(output.name for output in row.outputs)
    doc = f"""``{row.name}``: negative log-likelihood of {row.note}.

    The network's outputs are {outputs} of every feature, in blocks of all features.

    size_factor : bool, True by default: the mean of a row is s exp(y), s the mean of the row's own targets, so that
        exp(y) is relative to the row's total; a row of zeros then has loss and gradient 0. False: s = 1.

    Lopez et al. (2018); Eraslan et al. (2019). Float32 holds for counts up to 1e11.
    """
    fields: list = [(p.name, float, p.default) for p in row.parameters] + [("size_factor", bool, True)]
    intervals = {p.name: (p.low, p.high, p.closed) for p in row.parameters}
    namespace = {"__doc__": doc, "__module__": __name__, "_row": row, "name": row.name, "_intervals": intervals}
    return dataclasses.make_dataclass(row.label, fields, bases=(LikelihoodOption,), namespace=namespace, frozen=True)


def _from_rows(rows: Any, base: type, extra: list, intervals: dict) -> dict[str, type]:
    return {row.name: from_row(i, row, base, extra, intervals) for i, row in enumerate(rows)}


ACTIVATIONS = _from_rows(catalog.ACTIVATIONS, ActivationOption, [], {})
LOSSES = _from_rows(catalog.LOSSES, LossOption, [], {})
PENALTIES = _from_rows(catalog.PENALTIES, PenaltyOption, [], {})
_CLIP_FIELDS = [("clip_value", "float | None", None), ("clip_norm", "float | None", None)]
SOLVERS = _from_rows(catalog.UPDATE_RULES, SolverOption, _CLIP_FIELDS, _CLIPS)
LIKELIHOODS = {row.name: _likelihood(row) for row in _LIKELIHOOD_ROWS}
for _table in (ACTIVATIONS, LOSSES, PENALTIES, SOLVERS, LIKELIHOODS):
    globals().update({cls.__name__: cls for cls in _table.values()})


class FullBatchOption(Option):
    """A solver of `scipy.optimize` on the objective over all rows: it has no update rule of the catalogue.

    ``max_evaluations`` : int or None, objectives after which no further iteration begins
    """

    _row = catalog.UpdateRule("none", "None", body=(), step=())
    name: str
    max_evaluations: int | None


@dataclass(frozen=True)
class LBFGS(FullBatchOption):
    """Limited-memory BFGS with bounds, ``scipy.optimize``'s L-BFGS-B (Byrd, Lu, Nocedal, Zhu 1995).

    history : int, pairs of steps and gradient changes that stand for the curvature
    max_evaluations : int or None, objectives after which no further iteration begins
    """

    history: int = 10
    max_evaluations: int | None = None
    name = "lbfgs"
    _intervals = {"history": COUNT, "max_evaluations": COUNT}
    _integers = ("history", "max_evaluations")


@dataclass(frozen=True)
class ConjugateGradient(FullBatchOption):
    """Nonlinear conjugate gradient, ``scipy.optimize``'s CG (Polak & Ribière 1969, restarts by Powell).

    For smooth objectives: neither L1 on weights nor constraints.

    max_evaluations : int or None, objectives after which no further iteration begins
    """

    max_evaluations: int | None = None
    name = "cg"
    _intervals = {"max_evaluations": COUNT}
    _integers = ("max_evaluations",)


@dataclass(frozen=True)
class Softmax(Option):
    """Softmax over the row; for the output layer."""

    name = "softmax"
    _row = None


@dataclass(frozen=True)
class Maxout(Option):
    """y_j = max over ``pieces`` affine maps of unit j (Goodfellow et al. 2013); W holds the first map of every unit,
    then the second of every unit, and so on.
    """

    pieces: int = 2
    name = "maxout"
    _row = None
    _intervals = {"pieces": (2, 1024, "both")}
    _integers = ("pieces",)


@dataclass(frozen=True)
class BatchNorm(Option):
    """Each unit's pre-activation normalised over the batch (Ioffe & Szegedy 2015), over running averages afterwards.

    momentum : weight of a batch in the running mean and (unbiased) variance
    epsilon : added to the variance
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    _intervals = {"momentum": (0.0, 1.0, "right"), "epsilon": (0.0, math.inf, "neither")}


@dataclass(frozen=True)
class LayerNorm(Option):
    """Each row's pre-activations of a layer normalised over the units (Ba, Kiros, Hinton 2016).

    epsilon : added to the variance
    """

    epsilon: float = 1e-5
    _intervals = {"epsilon": (0.0, math.inf, "neither")}


@dataclass(frozen=True)
class Multinomial(RowLoss):
    """−Σ_j x_j log softmax(z)_j for rows of non-negative counts or weights."""

    name = "multinomial"


@dataclass(frozen=True)
class CategoricalCrossEntropy(RowLoss):
    """−Σ_j x_j log softmax(z)_j for rows that are distributions (they sum to one)."""

    name = "categorical_cross_entropy"
    sums_to_one = True


@dataclass(frozen=True)
class CosineLoss(RowLoss):
    """1 − cos(x̂, x) of each row: for rows whose direction matters and length does not, such as embeddings.

    A row of zeros, predicted or wanted, has loss 1 and gradient 0. It is one number per row, from 0 to 2, which
    ``reduction="mean"`` does not divide by the number of features.
    """

    name = "cosine"
    output = "identity"
    target_range = (-math.inf, math.inf)


@dataclass(frozen=True)
class KLSparsity(Option):
    """weight · Σ_j KL(rho ‖ batch mean of code unit j), Ng's sparse autoencoder; needs a code in [0, 1].

    Means are cut to [1e-7, 1 − 1e-7], where the derivative is 0. On a hidden layer with dropout they are of its outputs
    after dropout, which may be above 1.
    """

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
class Contractive(Option):
    """strength · mean over rows of ‖∂h/∂x‖²_F, h the code (Rifai et al. 2011).

    method : "exact", "sampled" or "auto"
        "exact" is the closed form Σ_j a'(z_j)² ‖w_j‖² of an encoder with one layer. "sampled" is the estimate
        ‖h(x + ε) − h(x)‖² / std² with ε ~ N(0, std²), drawn anew for each row and epoch (Alain & Bengio 2014), for any
        depth and activation; its error falls with std². "auto" takes the closed form where there is one.
    std : float, of the perturbation
    """

    strength: float = 0.1
    method: str = "auto"
    std: float = 0.01
    _intervals = {"strength": (0.0, math.inf, "left"), "std": (0.0, math.inf, "neither")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("auto", "exact", "sampled"):
            raise unknown("Contractive.method", self.method, ("auto", "exact", "sampled"))


@dataclass(frozen=True, eq=False)
class Laplacian(Option):
    """strength · tr(HᵀLH) / N, H the codes of all N rows, L = D − S the Laplacian of a graph between rows.

    Close rows get close codes (Belkin & Niyogi 2003). Per batch it is estimated from one edge (i, j) of each of its
    rows, drawn by weight anew in each epoch: ½ d_i ‖h_i − h_j‖², d_i = Σ_j S_ij, whose expectation is the whole sum.

    graph : sparse matrix (N, N) of non-negative weights between the rows given to ``fit``, or the number of nearest
        neighbours of the graph that ``fit`` makes of its rows (weights 1, symmetric). A matrix is not stored in
        model files.
    """

    graph: Any = 10
    strength: float = 0.01
    _intervals = {"strength": (0.0, math.inf, "left")}

    def __post_init__(self) -> None:
        super().__post_init__()
        matrix = hasattr(self.graph, "tocsr") or getattr(self.graph, "ndim", 0) == 2
        if isinstance(self.graph, bool):
            raise TypeError(f"Laplacian.graph={self.graph!r} must be a number of neighbours or a sparse matrix")
        if self.graph is not None and not matrix:
            object.__setattr__(self, "graph", number("Laplacian.graph", self.graph, 1, 2**31, integer=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Laplacian) or self.strength != other.strength:
            return False
        return self.graph is other.graph or (isinstance(self.graph, int) and self.graph == other.graph)

    def stored(self) -> dict[str, Any]:
        return {"graph": self.graph if isinstance(self.graph, int) else None, "strength": self.strength}

    def __hash__(self) -> int:
        return hash((self.graph if isinstance(self.graph, int) else id(self.graph), self.strength))


@dataclass(frozen=True)
class SVDProjector(Option):
    """½ strength ‖W₁(I − V Vᵀ)‖²_F: first-layer weights are drawn to the span of the leading principal directions V.

    n_components : int or None, directions in V; None takes the code's width. They come from the rows given to ``fit``
        (the first 4,096 of them), or are given to ``fit`` by an earlier one in a warm start.
    """

    strength: float = 1e-2
    n_components: int | None = None
    _intervals = {"strength": (0.0, math.inf, "left"), "n_components": COUNT}
    _integers = ("n_components",)


@dataclass(frozen=True)
class Orthogonality(Option):
    """½ strength ‖W Wᵀ − I‖²_F on the code layer's weights (‖Wᵀ W − I‖²_F where it has more units than inputs)."""

    strength: float = 1e-2
    _intervals = {"strength": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class Decorrelation(Option):
    """½ strength Σ_{i≠j} C_ij², C the covariance of the code's units over the batch (DeCov: Cogswell et al. 2016)."""

    strength: float = 1e-2
    _intervals = {"strength": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class OnLayers(Option):
    """A penalty or constraint on chosen layers instead of where it belongs by default.

    option : weight penalty (default: all layers), activity penalty, Decorrelation, Orthogonality (default: the code's
        layer), or constraint (default: all layers), by object or name
    layers : "encoder", "decoder", "code", "output", "hidden", "all", an index into the encoder's and decoder's layers
        counted through from 0 (negative ones from the end), or a sequence of indices
    """

    option: Any
    layers: Any = "all"

    def __post_init__(self) -> None:
        if isinstance(self.layers, (list, Iterator)):
            object.__setattr__(self, "layers", tuple(self.layers))


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
        for name in ("low", "high"):
            number(f"WeightRange.{name}", getattr(self, name), -math.inf, math.inf)
        self._ordered("low", "high", strict=True)


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
    """Adds N(0, ``std``²) to each input; the target stays clean."""

    std: float = 0.1
    _intervals = {"std": (0.0, math.inf, "left")}


@dataclass(frozen=True)
class SaltAndPepperNoise(Option):
    """Each input becomes ``low`` or ``high``, each with probability rate / 2; the target stays clean.

    ``low`` above ``high`` is an error (ValueError).
    """

    rate: float = 0.1
    low: float = 0.0
    high: float = 1.0
    _intervals = {"rate": (0.0, 1.0, "left"), "low": _ANY, "high": _ANY}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered("low", "high")


@dataclass(frozen=True)
class SwapNoise(Option):
    """Each input takes, with probability ``rate``, the value of its column in another row of the batch."""

    rate: float = 0.15
    _intervals = {"rate": (0.0, 1.0, "left")}


NOISES = {"masking": MaskingNoise, "gaussian": GaussianNoise, "salt_and_pepper": SaltAndPepperNoise, "swap": SwapNoise}
OUTPUT_ACTIVATIONS = {**ACTIVATIONS, "softmax": Softmax}
LAYER_ACTIVATIONS = {**ACTIVATIONS, "maxout": Maxout}
NORMALIZATIONS = {"batch": BatchNorm, "layer": LayerNorm}
ALL_SOLVERS = {**SOLVERS, "lbfgs": LBFGS, "cg": ConjugateGradient}
_ROW_LOSSES = {cls.name: cls for cls in (Multinomial, CategoricalCrossEntropy, CosineLoss)}
ALL_LOSSES: dict[str, type] = {**LOSSES, **_ROW_LOSSES, **LIKELIHOODS}
CONSTRAINTS = {"max_norm": MaxNorm, "non_negative": NonNegative, "weight_range": WeightRange}
ACTIVITY_PENALTIES = {"kl_sparsity": KLSparsity, "activity_l1": ActivityL1, "activity": Activity,
                      "decorrelation": Decorrelation}  # fmt: skip
ENCODER_PENALTIES = {"contractive": Contractive, "laplacian": Laplacian, "svd_projector": SVDProjector}
ALL_PENALTIES = {**PENALTIES, **ACTIVITY_PENALTIES, "orthogonality": Orthogonality, **ENCODER_PENALTIES}


def choose(what: str, value: Any, table: Mapping[str, type]) -> Any:
    """An option of ``table`` from an option or its name."""
    if isinstance(value, str):
        if value not in table:
            raise unknown(what, value, table)
        return table[value]()
    if type(value) in table.values():
        return value
    if isinstance(value, Option) and getattr(value, "name", None) in table:
        raise TypeError(f"{what}={value!r} is of a formula that was replaced since; make the option anew")
    wanted = ", ".join(sorted({cls.__name__ for cls in table.values()}))
    raise TypeError(f"{what}={value!r} must be a name or one of {wanted}")


def is_full_batch(solver: Any) -> bool:
    """Whether a solver, an option or its name, is run by `fastae.full_batch`."""
    kind = ALL_SOLVERS.get(solver) if isinstance(solver, str) else type(solver)
    return kind is not None and issubclass(kind, FullBatchOption)


def penalty(value: Any) -> PenaltyOption:
    return choose("penalty", value, PENALTIES)
