"""Every scalar formula of fastae, once.

A row holds its formulas as text that is legal in C and in Python. ``python -m fastae.codegen`` turns the rows into
``csrc/catalog.h`` and into the formula modules of the Python backends, so that adding a row makes it exist on every
backend and in every parametrised test.

The language of a formula: ``+ - * /``, unary minus, comparisons inside ``select``, numeric literals, the names listed
per kind of row, and the primitives of `PRIMITIVES`. ``select(c, a, b)`` evaluates both branches, so both must be
finite wherever the other one is chosen. ``max`` and ``min`` let NaN through: relu(NaN) is NaN.

Sources: Goodfellow, Bengio, Courville, "Deep Learning" (2016), chapters 6 and 8; Kingma & Ba (2015) for Adam; Reddi
et al. (2018) for AMSGrad; Loshchilov & Hutter (2019) for AdamW; Chen et al. (2023) for Lion; Klambauer et al. (2017)
for SELU; Hendrycks & Gimpel (2016) for GELU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# name -> number of arguments
PRIMITIVES = {
    "exp": 1,
    "expm1": 1,
    "log": 1,
    "log1p": 1,
    "tanh": 1,
    "erf": 1,
    "erfc": 1,
    "sqrt": 1,
    "fabs": 1,
    "sigmoid": 1,
    "sign": 1,
    "max": 2,
    "min": 2,
    "fma": 3,
    "select": 3,
}


@dataclass(frozen=True)
class Parameter:
    """A formula's parameter: default and the open or closed interval it must lie in."""

    name: str
    default: float
    low: float = float("-inf")
    high: float = float("inf")
    closed: str = "both"  # which ends of the interval are allowed: "both", "left", "right", "neither"


@dataclass(frozen=True)
class Activation:
    """y = a(x), its derivative and second derivative, from ``y`` where possible, else from the pre-activation ``x``.

    ``d2y`` is taken from the same variable as ``dy``; the contractive penalty in closed form needs it.
    """

    name: str
    label: str
    y: str
    dy: str
    d2y: str | None = None
    parameters: tuple[Parameter, ...] = ()
    low: float = float("-inf")  # closure of the range of y for default parameters; used in diagnostics and checks
    high: float = float("inf")
    init_gain: str = "xavier"  # initialiser that "auto" picks for a layer with this activation

    @property
    def needs(self) -> str:
        """Which array the derivative is taken from: ``"x"`` (pre-activation) or ``"y"`` (output)."""
        from .codegen import names_in

        return "x" if "x" in names_in(self.dy) else "y"


@dataclass(frozen=True)
class Loss:
    """Elementwise loss of prediction ``y`` against target ``t``: value and derivative with respect to ``y``."""

    name: str
    label: str
    value: str
    dy: str
    parameters: tuple[Parameter, ...] = ()
    target_low: float = float("-inf")
    target_high: float = float("inf")
    output: str = "identity"  # the output activation that the loss takes care of itself ("sigmoid": y is a logit)
    note: str = ""


@dataclass(frozen=True)
class Penalty:
    """R(w): value, subgradient, and how its non-smooth part is applied to weights.

    On weights the ``smooth`` part goes into the gradient and ``prox`` (with step ``s`` = learning rate) is applied
    after the step, so that L1 gives true zeros. On activities ``dw`` is used as it stands.
    """

    name: str
    label: str
    value: str
    dw: str
    smooth: str
    prox: str | None
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class UpdateRule:
    """θ ← θ + Δ(g, state). ``step`` gives per-step constants from learning rate ``lr`` and step number ``t`` ≥ 1.

    ``step`` expressions are Python, evaluated once per step in float64 outside the kernels; ``body`` are the
    statements of the fused pass, run for every parameter.
    """

    name: str
    label: str
    body: tuple[str, ...]
    states: tuple[str, ...] = ()
    step: tuple[tuple[str, str], ...] = (("a", "lr"),)
    parameters: tuple[Parameter, ...] = ()
    default_learning_rate: float = field(default=1e-3)


def _open_unit(name: str, default: float) -> Parameter:
    return Parameter(name, default, 0.0, 1.0, "left")


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SA = _SELU_SCALE * _SELU_ALPHA
_SQRT_HALF = 0.70710678118654752440
_INV_SQRT_2PI = 0.39894228040143267794
_SQRT_2_OVER_PI = 0.79788456080286535588
_GELU_CUBIC = 0.044715
_GELU_U = f"{2 * _SQRT_2_OVER_PI!r} * (x + {_GELU_CUBIC!r} * x * x * x)"  # the sigmoid's argument and its derivative
_GELU_DU = f"{2 * _SQRT_2_OVER_PI!r} + {6 * _SQRT_2_OVER_PI * _GELU_CUBIC!r} * x * x"

ACTIVATIONS: tuple[Activation, ...] = (
    Activation("identity", "Identity", y="x", dy="1", d2y="0"),
    Activation(
        "sigmoid", "Sigmoid", y="sigmoid(x)", dy="y * (1 - y)", d2y="y * (1 - y) * (1 - 2 * y)", low=0.0, high=1.0
    ),
    Activation(
        "tanh", "Tanh", y="tanh(x)", dy="(1 - y) * (1 + y)", d2y="-2 * y * (1 - y) * (1 + y)", low=-1.0, high=1.0
    ),
    Activation("relu", "ReLU", y="max(x, 0)", dy="select(y > 0, 1, 0)", d2y="0", low=0.0, init_gain="he"),
    Activation(
        "leaky_relu",
        "LeakyReLU",
        y="select(x < 0, slope * x, x)",
        dy="select(y > 0, 1, slope)",
        d2y="0",
        parameters=(Parameter("slope", 0.01, 0.0, 1.0, "left"),),
        init_gain="he",
    ),
    Activation(
        "elu",
        "ELU",
        y="select(x < 0, alpha * expm1(min(x, 0)), x)",
        dy="select(y > 0, 1, y + alpha)",
        d2y="select(y > 0, 0, y + alpha)",
        parameters=(Parameter("alpha", 1.0, 0.0, float("inf"), "neither"),),
        low=-1.0,
        init_gain="he",
    ),
    Activation(
        "selu",
        "SELU",
        y=f"select(x < 0, {_SELU_SA!r} * expm1(min(x, 0)), {_SELU_SCALE!r} * x)",
        dy=f"select(y > 0, {_SELU_SCALE!r}, y + {_SELU_SA!r})",
        d2y=f"select(y > 0, 0, y + {_SELU_SA!r})",
        low=-_SELU_SA,
        init_gain="lecun",
    ),
    Activation("exponential", "Exponential", y="exp(x)", dy="y", d2y="y", low=0.0),
    Activation(
        "softplus",
        "Softplus",
        y="max(x, 0) + log1p(exp(-fabs(x)))",
        dy="-expm1(-y)",
        d2y="-expm1(-y) * exp(-y)",
        low=0.0,
        init_gain="he",
    ),
    Activation(
        "gelu",
        "GELU",
        y=f"0.5 * x * erfc(-{_SQRT_HALF!r} * x)",
        dy=f"0.5 * erfc(-{_SQRT_HALF!r} * x) + x * ({_INV_SQRT_2PI!r} * exp(-0.5 * x * x))",
        d2y=f"{_INV_SQRT_2PI!r} * exp(-0.5 * x * x) * (2 - x * x)",
        low=-0.17,
        init_gain="he",
    ),
    Activation(
        "gelu_tanh",
        "GELUTanh",
        # 0.5 (1 + tanh u/2) = sigmoid(u): no cancellation for negative x
        y=f"x * sigmoid({_GELU_U})",
        dy=f"sigmoid({_GELU_U}) + x * sigmoid({_GELU_U}) * sigmoid(-({_GELU_U})) * ({_GELU_DU})",
        d2y=(
            f"sigmoid({_GELU_U}) * sigmoid(-({_GELU_U})) * (2 * ({_GELU_DU})"
            f" + x * ((1 - 2 * sigmoid({_GELU_U})) * ({_GELU_DU}) * ({_GELU_DU})"
            f" + {12 * _SQRT_2_OVER_PI * _GELU_CUBIC!r} * x))"
        ),
        low=-0.171,
        init_gain="he",
    ),
    Activation(
        "silu",
        "SiLU",
        y="x * sigmoid(x)",
        dy="sigmoid(x) * (1 + x * sigmoid(-x))",
        d2y="sigmoid(x) * sigmoid(-x) * (2 + x * (1 - 2 * sigmoid(x)))",
        low=-0.279,
        init_gain="he",
    ),
    Activation(
        "hard_sigmoid",
        "HardSigmoid",
        # the line x/6 + 1/2 cut to [0, 1]
        y=f"min(max(x * {1 / 6!r} + 0.5, 0), 1)",
        dy=f"select(y > 0, select(y < 1, {1 / 6!r}, 0), 0)",
        d2y="0",
        low=0.0,
        high=1.0,
    ),
)

LOSSES: tuple[Loss, ...] = (
    Loss("squared_error", "SquaredError", value="(y - t) * (y - t)", dy="2 * (y - t)"),
    Loss(
        "binary_cross_entropy",
        "BinaryCrossEntropy",
        value="max(y, 0) - y * t + log1p(exp(-fabs(y)))",
        dy="select(y > 0, 1, exp(-fabs(y))) / (1 + exp(-fabs(y))) - t",
        target_low=0.0,
        target_high=1.0,
        output="sigmoid",
        note="y is the logit; the derivative is sigmoid(y) - t by the value's exponential",
    ),
    Loss(
        "huber",
        "Huber",
        # ½e² inside |e| <= delta, delta (|e| - ½ delta) outside
        value="select(fabs(y - t) <= delta, 0.5 * (y - t) * (y - t), delta * (fabs(y - t) - 0.5 * delta))",
        dy="max(min(y - t, delta), -delta)",
        parameters=(Parameter("delta", 1.0, 0.0, float("inf"), "neither"),),
    ),
    Loss("absolute", "Absolute", value="fabs(y - t)", dy="sign(y - t)"),
    Loss(
        "poisson",
        "Poisson",
        value="exp(y) - t * y",
        dy="exp(y) - t",
        target_low=0.0,
        output="exponential",
        note="y is the logarithm of the rate",
    ),
)

PENALTIES: tuple[Penalty, ...] = (
    Penalty(
        "l1",
        "L1",
        value="strength * fabs(w)",
        dw="strength * sign(w)",
        smooth="0 * w",
        prox="sign(w) * max(fabs(w) - s * strength, 0)",
        parameters=(Parameter("strength", 1e-4, 0.0, float("inf"), "left"),),
    ),
    Penalty(
        "l2",
        "L2",
        value="0.5 * strength * w * w",
        dw="strength * w",
        smooth="strength * w",
        prox=None,
        parameters=(Parameter("strength", 1e-4, 0.0, float("inf"), "left"),),
    ),
    Penalty(
        "elastic_net",
        "ElasticNet",
        value="strength * (l1_ratio * fabs(w) + 0.5 * (1 - l1_ratio) * w * w)",
        dw="strength * (l1_ratio * sign(w) + (1 - l1_ratio) * w)",
        smooth="strength * (1 - l1_ratio) * w",
        prox="sign(w) * max(fabs(w) - s * strength * l1_ratio, 0)",
        parameters=(
            Parameter("strength", 1e-4, 0.0, float("inf"), "left"),
            Parameter("l1_ratio", 0.5, 0.0, 1.0, "both"),
        ),
    ),
)


def _kept(state: str, least: str = "1.2e-38") -> str:
    """A decaying average with 0 where it is too small: below the smallest normal float32, or what ``least`` says.

    A unit that never fires has gradient 0: its averages would become denormal and stay so, and arithmetic on denormals
    is some 50 times slower on many processors.
    """
    return f"{state} = select(fabs({state}) < {least}, 0, {state})"


_DIRECTION = "1e-30"  # its product with the learning rate is normal too, and moves no weight
_MOMENT = ("m = fma(beta1, m, (1 - beta1) * g)", _kept("m", _DIRECTION))
_LEAST = "v = max(v, 1e-37)"  # not 0: the step would be divided by epsilon alone, which may be far smaller
_SECOND = ("v = fma((1 - beta2) * g, g, beta2 * v)", _LEAST)
# a = lr / (1 - β1ᵗ) and r = 1/√(1 - β2ᵗ) fold the bias corrections into two constants of the step
_ADAM_STEP = (("a", "lr / (1 - beta1**t)"), ("r", "(1 - beta2**t) ** -0.5"))
_BETA1 = _open_unit("beta1", 0.9)
_BETA2 = _open_unit("beta2", 0.999)
_EPSILON = Parameter("epsilon", 1e-8, 0.0, float("inf"), "neither")

UPDATE_RULES: tuple[UpdateRule, ...] = (
    UpdateRule("sgd", "SGD", body=("w = w - a * g",), default_learning_rate=1e-2),
    UpdateRule(
        "momentum",
        "Momentum",
        body=("m = momentum * m + g", _kept("m", _DIRECTION), "w = w - a * m"),
        states=("m",),
        parameters=(_open_unit("momentum", 0.9),),
        default_learning_rate=1e-2,
    ),
    UpdateRule(
        "nesterov",
        "Nesterov",
        body=("m = momentum * m + g", _kept("m", _DIRECTION), "w = w - a * (g + momentum * m)"),
        states=("m",),
        parameters=(_open_unit("momentum", 0.9),),
        default_learning_rate=1e-2,
    ),
    UpdateRule(
        "adagrad",
        "AdaGrad",
        body=("v = v + g * g", "w = w - a * g / (sqrt(v) + epsilon)"),
        states=("v",),
        parameters=(Parameter("epsilon", 1e-10, 0.0, float("inf"), "neither"),),
        default_learning_rate=1e-2,
    ),
    UpdateRule(
        "rmsprop",
        "RMSprop",
        body=("v = rho * v + (1 - rho) * g * g", _LEAST, "w = w - a * g / (sqrt(v) + epsilon)"),
        states=("v",),
        parameters=(_open_unit("rho", 0.99), _EPSILON),
    ),
    UpdateRule(
        "adam",
        "Adam",
        body=(*_MOMENT, *_SECOND, "w = w - a * m / fma(sqrt(v), r, epsilon)"),
        states=("m", "v"),
        step=_ADAM_STEP,
        parameters=(_BETA1, _BETA2, _EPSILON),
    ),
    UpdateRule(
        "amsgrad",
        "AMSGrad",
        body=(*_MOMENT, *_SECOND, "u = max(u, v)", "w = w - a * m / fma(sqrt(u), r, epsilon)"),
        states=("m", "v", "u"),
        step=_ADAM_STEP,
        parameters=(_BETA1, _BETA2, _EPSILON),
    ),
    UpdateRule(
        "adamw",
        "AdamW",
        body=(*_MOMENT, *_SECOND, "w = w - d * w - a * m / fma(sqrt(v), r, epsilon)"),
        states=("m", "v"),
        step=(*_ADAM_STEP, ("d", "lr * weight_decay")),
        parameters=(_BETA1, _BETA2, _EPSILON, Parameter("weight_decay", 1e-2, 0.0, float("inf"), "left")),
    ),
    UpdateRule(
        "lion",
        "Lion",
        body=(
            "w = w - d * w - a * sign(beta1 * m + (1 - beta1) * g)",
            "m = beta2 * m + (1 - beta2) * g",
            _kept("m"),
        ),
        states=("m",),
        step=(("a", "lr"), ("d", "lr * weight_decay")),
        parameters=(
            _BETA1,
            _open_unit("beta2", 0.99),
            Parameter("weight_decay", 0.0, 0.0, float("inf"), "left"),
        ),
        default_learning_rate=1e-4,
    ),
)

Row = Activation | Loss | Penalty | UpdateRule
KINDS: dict[str, tuple[Row, ...]] = {
    "activation": ACTIVATIONS,
    "loss": LOSSES,
    "penalty": PENALTIES,
    "update": UPDATE_RULES,
}
# KINDS are the rows that code is generated from; rows registered at run time (fastae.registry) are added to these three
BY_NAME = {kind: {row.name: row for row in rows} for kind, rows in KINDS.items()}
INDEX = {kind: {row.name: i for i, row in enumerate(rows)} for kind, rows in KINDS.items()}
BY_INDEX: dict[str, dict[int, Row]] = {kind: dict(enumerate(rows)) for kind, rows in KINDS.items()}
FIRST_REGISTERED = 1000  # their indices start here, and none is ever given twice
