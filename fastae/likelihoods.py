"""The catalogue's likelihoods: negative log-likelihoods of several outputs per feature, and the functions they need.

A `Function` is a formula that other formulas may call by name; it becomes a function in every language. A
`Likelihood` reads, for each feature, one network output per parameter of a distribution. Its formulas may use the
outputs' letters, the target ``t``, and ``s``, the logarithm of the row's size factor (0 without).

Sources: Lopez et al. (2018), "Deep generative modeling for single-cell transcriptomics" (scVI), and Eraslan et al.
(2019), "Single-cell RNA-seq denoising using a deep count autoencoder" (DCA), for the negative binomial with a mean and
a dispersion and for its zero-inflated form; Abramowitz & Stegun (1964), 6.1.40 and 6.3.18, for Stirling's series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .catalog import Parameter


@dataclass(frozen=True)
class Function:
    """A formula that others may call by its ``name`` with ``arguments``, letters of which ``text`` is the value."""

    name: str
    arguments: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Output:
    """One network output of a feature, by its ``letter`` in formulas.

    name, shown : of the distribution's parameter that it stands for, and the formula of that
    slope : formula of the derivative of the value with respect to the output
    """

    name: str
    letter: str
    shown: str
    slope: str


@dataclass(frozen=True)
class Likelihood:
    """−log p(t) of a feature whose distribution has the network's outputs as parameters.

    name, label, note : of the loss, of its option class, and what it is
    outputs, value : one `Output` per parameter, and the formula of −log p
    parameters : constants of the option; target_low, target_high : what t must lie between
    """

    name: str
    label: str
    outputs: tuple[Output, ...]
    value: str
    parameters: tuple[Parameter, ...] = ()
    target_low: float = float("-inf")
    target_high: float = float("inf")
    note: str = ""


def _series(coefficients: list[float]) -> str:
    """c0 + v² (c1 + v² (c2 + …))."""
    text = repr(coefficients[-1])
    for c in coefficients[-2::-1]:
        text = f"fma(v * v, {text}, {c!r})"
    return text


def _product(*terms: str) -> str:
    return " * ".join(f"({term})" for term in terms)


def _shifted(text: str, i: int) -> str:
    return f"{text} + {i}" if i else text


def _ratio(i: int) -> str:
    """(a + t + j) (1 + j) / ((a + j) (1 + t + j)) for j = i times the same for j = i + 1, in one division."""
    above = [_shifted("a + t", i), _shifted("a + t", i + 1), str((i + 1) * (i + 2))]
    below = [_shifted("a", i), _shifted("a", i + 1), _product(f"t + {i + 1}", f"t + {i + 2}")]
    return f"({_product(*above)}) / ({_product(*below)})"  # exactly 1 at t = 0


def _two(i: int) -> str:
    """1 / ((a + i) (a + t + i)) + the same for i + 1, in one division."""
    first, second = (_product(_shifted("a", j), _shifted("a + t", j)) for j in (i, i + 1))
    return f"({first} + {second}) / ({first} * {second})"


# Arguments are shifted by 8, where eight terms of Stirling's series give double precision. What the shift costs, a
# product of ratios, is taken two at a time, so that float32 does not overflow (t up to 1e11).
_LOG_GAMMA = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400]
_DIGAMMA = [-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12, 3617 / 8160]
# DCA's limits of mean and dispersion, as limits of the outputs
_LOG_MEAN = math.log(1e-5), math.log(1e6)
_LOG_DISPERSION = math.log(1e-4), math.log(1e4)


def _clamped(name: str, low: float, high: float) -> list[Function]:
    return [
        Function(f"{name}_cut", ("x",), f"min(max(x, {low!r}), {high!r})"),
        Function(f"{name}_inside", ("x",), f"select(x > {low!r}, select(x < {high!r}, 1, 0), 0)"),
    ]


FUNCTIONS: tuple[Function, ...] = (
    Function("softplus", ("x",), "max(x, 0) + log1p(exp(-fabs(x)))"),
    # sigmoid(x) and sigmoid(-x), from the exponential that softplus takes
    Function("above", ("x",), "select(x > 0, 1, exp(-fabs(x))) * (1 / (1 + exp(-fabs(x))))"),
    Function("below", ("x",), "select(x > 0, exp(-fabs(x)), 1) * (1 / (1 + exp(-fabs(x))))"),
    # log Γ(x) − (x − ½) log x + x − ½ log 2π and ψ(x) − log x + 1/(2x), of v = 1/x
    Function("log_gamma_tail", ("v",), f"v * {_series(_LOG_GAMMA)}"),
    Function("digamma_tail", ("v",), f"v * v * {_series(_DIGAMMA)}"),
    # log(Γ(a + t) / (Γ(a) Γ(t + 1))) for a > 0, t >= 0
    Function(
        "log_choose",
        ("t", "a"),
        # the terms of the size of t are together t log((a + t + 8) / (t + 9)), which is not
        "(a + 7.5) * log1p(t / (a + 8)) - 8.5 * log1p(t / 9) + t * log1p((a - 1) / (t + 9))"
        " + (log_gamma_tail(1 / (a + t + 8)) - log_gamma_tail(1 / (a + 8)))"
        " - (log_gamma_tail(1 / (t + 9)) - log_gamma_tail(1 / 9))"
        f" - log({_product(_ratio(0), _ratio(2), _ratio(4), _ratio(6))})",
    ),
    # ψ(a + t) − ψ(a)
    Function(
        "digamma_rising",
        ("t", "a"),
        "log1p(t / (a + 8)) + (digamma_tail(1 / (a + t + 8)) - digamma_tail(1 / (a + 8)))"
        f" + t * (0.5 * (1 / (a + 8)) * (1 / (a + t + 8)) + {_two(0)} + {_two(2)} + {_two(4)} + {_two(6)})",
    ),
    *_clamped("log_mean", *_LOG_MEAN),
    *_clamped("log_dispersion", *_LOG_DISPERSION),
    # the negative binomial with dispersion a and mean μ, u = log(μ/a): −log p(t), and its derivatives by log μ, log a
    Function(
        "nb_value", ("t", "u", "a"), "a * softplus(u) + t * (max(-u, 0) + log1p(exp(-fabs(u)))) - log_choose(t, a)"
    ),
    Function("nb_by_mean", ("t", "u", "a"), "a * above(u) - t * below(u)"),
    Function("nb_by_dispersion", ("t", "u", "a"), "a * (softplus(u) - above(u) - digamma_rising(t, a)) + t * below(u)"),
    # zero-inflated with probability sigmoid(z); at t = 0, with k = −log p(0) of the part that is not inflated:
    # −log(π + (1 − π) exp(−k)) = softplus(z) − log(exp(z) + exp(−k))
    Function("zinb_zero", ("z", "k"), "min(-z, k) - log1p(exp(-fabs(z + k)))"),
)

_U = "log_mean_cut(y) + s - log_dispersion_cut(d)"
_A = "exp(log_dispersion_cut(d))"
_K = f"{_A} * softplus({_U})"
_MEAN = "exp(log_mean_cut(y) + s)"

LIKELIHOODS: tuple[Likelihood, ...] = (
    Likelihood(
        "negative_binomial",
        "NegativeBinomial",
        outputs=(
            Output("mean", "y", _MEAN, f"log_mean_inside(y) * nb_by_mean(t, {_U}, {_A})"),
            Output("dispersion", "d", _A, f"log_dispersion_inside(d) * nb_by_dispersion(t, {_U}, {_A})"),
        ),
        value=f"nb_value(t, {_U}, {_A})",
        target_low=0.0,
        note=(
            "counts t with mean μ = s exp(y) and variance μ + μ²/θ, θ = exp(d). exp(y) is cut to [1e-5, 1e6] and θ to "
            "[1e-4, 1e4], with derivative 0 outside"
        ),
    ),
    Likelihood(
        "zero_inflated_negative_binomial",
        "ZeroInflatedNegativeBinomial",
        outputs=(
            Output(
                "mean",
                "y",
                _MEAN,
                f"log_mean_inside(y) * select(t > 0, nb_by_mean(t, {_U}, {_A}), below(z + {_K}) * {_A} * above({_U}))",
            ),
            Output(
                "dispersion",
                "d",
                _A,
                f"log_dispersion_inside(d) * select(t > 0, nb_by_dispersion(t, {_U}, {_A}),"
                f" below(z + {_K}) * {_A} * (softplus({_U}) - above({_U})))",
            ),
            Output("dropout", "z", "sigmoid(z)", f"above(z) - select(t > 0, 0, above(z + {_K}))"),
        ),
        value=f"softplus(z) + select(t > 0, nb_value(t, {_U}, {_A}), zinb_zero(z, {_K}))",
        target_low=0.0,
        note=(
            "a negative binomial that is replaced by 0 with probability π = sigmoid(z); the mean that is shown is that "
            "of the negative binomial"
        ),
    ),
)
LIKELIHOOD_INDEX = {row.name: i for i, row in enumerate(LIKELIHOODS)}
