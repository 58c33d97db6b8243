"""What a sparse autoencoder is: one option object per way of choosing a code, and the whole as a frozen dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from . import options
from .options import COUNT, Option, flag, number, unknown

_POSITIVE = (0.0, math.inf, "neither")
_NON_NEGATIVE = (0.0, math.inf, "left")
_FRACTION = (0.0, 1.0, "both")
NORMALIZATIONS = (None, "layer", "scale")
LOSSES = ("squared_error", "normalized", "cosine")
AUX_NORMS = ("residual", "target", "none")
JUMP_PENALTIES = ("step", "tanh", "quadratic", "row_quadratic")
JUMP_WINDOWS = ("both", "above")


@dataclass(frozen=True)
class AuxK(Option):
    """The residual x − x̂ modelled by dead latents, so that they come back to life (Gao et al. 2024).

    k : int or None, dead latents a row; None is half of the input's width
    strength : weight of the term
    norm : "residual": divided by the residual's variance over the batch (Gao et al.); "target": by the target's
        (sparsify); "none"
    scaled : bool, whether it counts less, dead / k, while fewer than k latents are dead (sparsify, SAELens)
    relu : bool, whether pre-activations below 0 count as 0; SAELens decodes them as they are, so that dead latents
        learn also in rows where all of them are negative
    """

    k: int | None = None
    strength: float = 1 / 32
    norm: str = "residual"
    scaled: bool = False
    relu: bool = True
    _intervals = {"strength": _POSITIVE, "k": COUNT}
    _integers = ("k",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in AUX_NORMS:
            raise unknown("AuxK.norm", self.norm, AUX_NORMS)


@dataclass(frozen=True)
class MultiTopK(Option):
    """A second reconstruction, from ``factor`` times as many latents, added with ``weight`` (Gao et al. 2024)."""

    factor: int = 4
    weight: float = 1 / 8
    _intervals = {"weight": _POSITIVE, "factor": (2, 1024, "both")}
    _integers = ("factor",)


@dataclass(frozen=True)
class Resample(Option):
    """Dead latents begin anew, every ``every`` steps until ``until`` of the training, as Bricken et al. (2023) do.

    Rows are drawn with the square of their loss; the decoder row becomes the drawn input (less the decoder's bias) at
    unit norm, the encoder row the same at ``scale`` times the mean norm of the others', the bias 0, moments 0.
    """

    every: int = 1000
    until: float = 0.5
    scale: float = 0.2
    _intervals = {"until": _FRACTION, "scale": _POSITIVE, "every": COUNT}
    _integers = ("every",)


class Sparsity(Option):
    """Base of the ways to choose a code. ``ragged``: rows have as many entries as pass; else exactly k."""

    name: str
    ragged = False
    penalty = False  # whether the loss has a term with a strength

    def with_k(self, k: int) -> Sparsity:
        """The same with ``k`` latents a row, where it has such a number and none of its own."""
        return self


class _KLargest(Sparsity):
    k: int | None
    aux: AuxK | None
    k_start: int | None
    k_anneal: float
    _intervals = {"k_anneal": _FRACTION, "k": COUNT, "k_start": COUNT}
    _integers = ("k", "k_start")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("aux", AuxK), ("multi", MultiTopK)):
            if getattr(self, name, None) is not None and not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{type(self).__name__}.{name}={getattr(self, name)!r} must be a fastae.{kind.__name__}"
                )

    def with_k(self, k: int) -> Sparsity:
        return self if self.k is not None else replace(self, k=k)  # type: ignore[type-var]


@dataclass(frozen=True)
class TopK(_KLargest):
    """The k largest pre-activations of a row, then relu (Makhzani & Frey 2013; Gao et al. 2024).

    k : int or None for the estimator's
    aux : `AuxK` or None; multi : `MultiTopK` or None
    k_start, k_anneal : k falls linearly from ``k_start`` to k over the first ``k_anneal`` of the steps
    """

    k: int | None = None
    aux: AuxK | None = AuxK()
    multi: MultiTopK | None = None
    k_start: int | None = None
    k_anneal: float = 0.1
    name = "topk"


@dataclass(frozen=True)
class AbsTopK(_KLargest):
    """The k largest in absolute value, with their sign.

    k, aux, multi, k_start, k_anneal : as of `TopK`
    """

    k: int | None = None
    aux: AuxK | None = None
    multi: MultiTopK | None = None
    k_start: int | None = None
    k_anneal: float = 0.1
    name = "abs_topk"


@dataclass(frozen=True)
class BatchTopK(_KLargest):
    """The k·rows largest of a whole batch; afterwards every latent above a threshold (Bussmann et al. 2024).

    threshold_decay : of the running average of the smallest value kept, the threshold of a fitted model; at step t,
        counted from 0, at most (1 + t) / (10 + t), so that the average is of the last ninth of few steps. Where
        values change much from step to step, `calibrate` gives a fitted model the wanted L0
    k, aux, k_start, k_anneal : as of `TopK`
    """

    k: int | None = None
    aux: AuxK | None = AuxK()
    threshold_decay: float = 0.999
    k_start: int | None = None
    k_anneal: float = 0.1
    name = "batch_topk"
    ragged = True
    _intervals = _KLargest._intervals | {"threshold_decay": (0.0, 1.0, "left")}


@dataclass(frozen=True)
class Matryoshka(Sparsity):
    """Nested prefixes of the latents, each of which must reconstruct the input (Bussmann et al. 2025).

    groups : ints or None; widths of the groups, summing to n_components; None doubles from 1/16 on
    over : `TopK` or `BatchTopK` (without MultiTopK)
    reduction : "sum" or "mean" of the prefixes' losses
    """

    groups: tuple[int, ...] | None = None
    over: Any = BatchTopK()
    reduction: str = "mean"
    name = "matryoshka"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.over, (TopK, BatchTopK)) or getattr(self.over, "multi", None) is not None:
            raise ValueError(f"Matryoshka.over={self.over!r} must be TopK(…) or BatchTopK(…), without MultiTopK")
        if self.reduction not in ("sum", "mean"):
            raise unknown("Matryoshka.reduction", self.reduction, ("sum", "mean"))
        if self.groups is not None:
            sizes = (number("Matryoshka.groups", size, 1, 2**31 - 1, integer=True) for size in self.groups)
            object.__setattr__(self, "groups", tuple(sizes))

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        return self.over.ragged

    def with_k(self, k: int) -> Sparsity:
        return replace(self, over=self.over.with_k(k))

    def ends(self, n: int) -> tuple[int, ...]:
        """Ascending ends of the prefixes of ``n`` latents. Raises ValueError for groups of another sum."""
        if self.groups is None:
            ends = sorted({max(1, n >> shift) for shift in range(5)})
            return tuple(ends)
        if sum(self.groups) != n:
            raise ValueError(f"Matryoshka.groups={self.groups} sum to {sum(self.groups)}; wanted n_components={n}")
        ends = []
        for size in self.groups:
            ends.append(size + (ends[-1] if ends else 0))
        return tuple(ends)


class _Penalised(Sparsity):
    """Base of the kinds whose positive entries cost ``l1`` each."""

    l1: float
    ragged = True
    penalty = True
    _intervals = {"l1": _NON_NEGATIVE, "warmup": _FRACTION}

    @property
    def strength(self) -> float:
        return self.l1


@dataclass(frozen=True)
class ReLUCode(_Penalised):
    """relu(z) with an L1 penalty (Bricken et al. 2023).

    l1 : strength of Σ f_j, over features and mean over rows
    weighted : whether f_j counts ‖d_j‖ times (decoder rows are then free unless ``unit_norm``)
    warmup : part of the steps over which the strength rises from 0
    """

    l1: float = 1.0
    weighted: bool = True
    warmup: float = 0.0
    name = "relu"


@dataclass(frozen=True)
class JumpReLU(Sparsity):
    """z where z > θ_j, θ learned by straight-through estimates (Rajamanoharan et al. 2024).

    The defaults are those of Gemma Scope, made for 10⁵ steps and more: log θ moves by about the learning rate a step,
    and only pre-activations within half a bandwidth of θ move it. In a thousand steps θ stays near 0 and the code
    dense; ``JumpReLU(bandwidth=0.05, threshold=0.01, logarithm=False)``, SAELens' way, gets far in as many, with
    ``normalization="scale"`` for rows whose pre-activations are far from 1. `SparseAutoencoder.calibrate` gives a
    trained model a threshold for a wanted L0.

    strength : of the penalty
    penalty_kind : "step" (λ L0), "tanh" (λ Σ tanh(scale f ‖d‖)), "quadratic" (λ (L0 / target − 1)² of the batch's mean
        L0, as dictionary_learning), "row_quadratic" (the mean of the same over rows, each with its own L0, as Gemma
        Scope 2 and SAELens, whose coefficient is λ / (2 target))
    target_l0 : wanted by the quadratic kinds; the others don't look at it
    tanh_scale : of "tanh"
    bandwidth, threshold : of the estimate, and θ at the start
    logarithm : whether log θ is learned (Gemma Scope); else θ, set to 0 where a step made it negative (SAELens)
    warmup : part of the steps over which the strength rises from 0
    window : of the estimate of the penalty's step: "both" sides of θ, or "above" it alone (dictionary_learning, whose
        step is one of the code, where entries below θ are 0); the estimate of f itself always has both
    """

    strength: float = 1.0
    penalty_kind: str = "step"
    target_l0: float | None = None
    tanh_scale: float = 4.0
    bandwidth: float = 0.001
    threshold: float = 0.001
    logarithm: bool = True
    warmup: float = 0.0
    window: str = "both"
    name = "jumprelu"
    ragged = True
    penalty = True
    _intervals = {
        "strength": _NON_NEGATIVE, "target_l0": _POSITIVE, "tanh_scale": _POSITIVE, "bandwidth": _POSITIVE,
        "threshold": _POSITIVE, "warmup": _FRACTION,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("penalty_kind", JUMP_PENALTIES), ("window", JUMP_WINDOWS)):
            if getattr(self, name) not in known:
                raise unknown(f"JumpReLU.{name}", getattr(self, name), known)
        if "quadratic" in self.penalty_kind and self.target_l0 is None:
            raise ValueError(
                f"JumpReLU(penalty_kind={self.penalty_kind!r}) needs target_l0, the wanted number of active latents"
            )


@dataclass(frozen=True)
class Gated(_Penalised):
    """Gate π > 0 and magnitude apart, on shared directions (Rajamanoharan et al. 2024).

    l1 : strength of Σ π_j [‖d_j‖] over open gates
    weighted : whether π_j counts ‖d_j‖ times (SAELens)
    detached : whether the gate's own reconstruction leaves the decoder alone, as in the paper; SAELens lets it learn
    warmup : part of the steps over which the strength rises from 0
    """

    l1: float = 1.0
    weighted: bool = False
    detached: bool = True
    warmup: float = 0.0
    name = "gated"


SPARSITIES = {cls.name: cls for cls in (TopK, AbsTopK, BatchTopK, Matryoshka, ReLUCode, JumpReLU, Gated)}


@dataclass(frozen=True)
class SparseNetwork:
    """Encoder and decoder of one layer each, and how a code is chosen between them.

    n latents, p inputs, n_targets outputs. ``spaces``: widths of the spaces that a crosscoder's columns are made of.
    """

    n_features: int
    n_targets: int
    n_components: int
    sparsity: Sparsity
    loss: str = "squared_error"
    pre_bias: bool = True
    normalization: str | None = None
    input_scale: float = 1.0
    unit_norm: bool = True
    transcoder: bool = False
    skip: bool = False
    spaces: tuple[int, ...] | None = None
    dead_after: int = 10_000_000
    ema: float | None = None
    solver: Any = None

    @property
    def selection(self) -> Sparsity:
        """The option that says which latents are chosen: that below a `Matryoshka`."""
        return self.sparsity.over if isinstance(self.sparsity, Matryoshka) else self.sparsity

    @property
    def k(self) -> int | None:
        """Latents per row, on average for batch_topk; None where no number is fixed."""
        return getattr(self.selection, "k", None)

    @property
    def k_most(self) -> int:
        """The largest k in training."""
        return max(self.k or 1, getattr(self.selection, "k_start", None) or 1)

    @property
    def ragged(self) -> bool:
        return self.sparsity.ragged

    @property
    def groups(self) -> tuple[int, ...] | None:
        """Ascending ends of the groups of latents, None for one group."""
        return self.sparsity.ends(self.n_components) if isinstance(self.sparsity, Matryoshka) else None

    @property
    def aux(self) -> AuxK | None:
        """`AuxK` with its k."""
        aux = getattr(self.selection, "aux", None)
        if aux is None:
            return None
        k = aux.k if aux.k is not None else max(1, self.n_features // 2)
        return replace(aux, k=min(k, self.n_components))

    @property
    def parameters(self) -> tuple[tuple[str, int, int], ...]:
        """(name, rows, columns) of the trainable arrays, in the order in which they lie in memory."""
        n, p, q = self.n_components, self.n_features, self.n_targets
        gated = isinstance(self.sparsity, Gated)
        biases = ("gate_bias", "magnitude_bias", "magnitude_log_scale") if gated else ("encoder_bias",)
        return (
            ("encoder", n, p),
            *((name, 1, n) for name in biases),
            *((("threshold", 1, n),) if isinstance(self.sparsity, JumpReLU) else ()),
            ("decoder", n, q),
            ("decoder_bias", 1, q),
            *((("skip", q, p),) if self.skip else ()),
        )


def sparse_network(
    n_features: int, n_targets: int | None = None, *, n_components: Any, k: Any = 32, sparsity: Any = "topk",
    loss: str = "squared_error", pre_bias: bool = True, normalization: str | None = None, unit_norm: bool = True,
    transcoder: bool = False, skip: bool = False, spaces: Any = None, dead_after: Any = None, ema: Any = None,
    solver: Any = "adam", n_rows: int | None = None, input_scale: float = 1.0,
) -> SparseNetwork:  # fmt: skip
    """The network of a `SparseAutoencoder`, from its parameters. Raises ValueError or TypeError for what cannot be."""
    n = number("n_components", n_components, 1, 2**31 - 2, integer=True)
    k = number("k", k, 1, 2**31 - 2, integer=True)
    option = options.choose("sparsity", sparsity, SPARSITIES).with_k(k)
    pre_bias, unit_norm = flag("pre_bias", pre_bias), flag("unit_norm", unit_norm)
    transcoder, skip = flag("transcoder", transcoder), flag("skip", skip)
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, ("layer", "scale"))
    if dead_after is None:  # a few passes over a small data set, ten million rows of a large one
        dead_after = 10_000_000 if n_rows is None else min(10_000_000, max(1000, 2 * n_rows))
    dead_after = number("dead_after", dead_after, 1, 2**62, integer=True)
    if ema is not None:
        number("ema", ema, 0.0, 1.0, "neither")
    targets = n_features if n_targets is None else n_targets
    if skip and not transcoder:
        raise ValueError("skip=True goes with transcoder=True; an autoencoder would learn the identity")
    if transcoder and pre_bias and targets != n_features:
        raise ValueError(
            f"pre_bias=True subtracts the decoder's bias ({targets} wide) from inputs of {n_features} features; set "
            "pre_bias=False"
        )
    if spaces is not None:
        if isinstance(spaces, str) or not hasattr(spaces, "__iter__"):
            raise TypeError(f"spaces={spaces!r} must be a sequence of widths, such as (384, 384)")
        spaces = tuple(number("spaces", size, 1, 2**31 - 1, integer=True) for size in spaces)
        if sum(spaces) != n_features or len(set(spaces)) != 1:
            raise ValueError(
                f"spaces={spaces} must be equal widths that sum to the {n_features} columns of X; fill narrower spaces "
                "up with columns of zeros"
            )
    network = SparseNetwork(
        n_features, targets, n, option, loss, pre_bias, normalization, input_scale, unit_norm, transcoder, skip,
        spaces, dead_after, ema, options.choose("solver", solver, options.SOLVERS),
    )  # fmt: skip
    multi = getattr(option, "multi", None)
    for name, value in (("k", network.k), ("k_start", getattr(network.selection, "k_start", None)),
                        ("k·MultiTopK.factor", None if multi is None else network.k_most * multi.factor)):  # fmt: skip
        if value is not None and value > n:
            raise ValueError(f"{name}={value} must be <= n_components={n}; lower {name} or raise n_components")
    _ = network.groups  # its errors
    return network


__all__ = ["SPARSITIES", "SparseNetwork", "sparse_network"]
