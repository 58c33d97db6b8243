"""Network → plans: training, evaluation, inference. Pure functions.

Parameters lie in space theta as W₁ b₁ W₂ b₂ …, each on a cache line; gradients in the same places of space grad, and
each of the rule's states is a copy of that layout. Padding stays zero under every rule.
"""

from __future__ import annotations

from typing import Any

from ..catalog import INDEX
from ..spec import options
from ..spec.network import Layer, Network
from . import schema
from .plan import Plan, PlanBuilder
from .schema import ARENA, BATCH_ROWS, FLOAT64, GRAD, INT64, PREPARE, THETA, UPDATE

INFERENCE_BATCH = 192  # rows: activations of usual networks stay in a core's L2 cache
PACK_ROUND = 64  # columns of the widest packed panel


def _parameters(builder: PlanBuilder, layers: tuple[Layer, ...], spaces=(THETA,)) -> None:
    for space, prefix in zip(spaces, ("", "d"), strict=False):
        for i, layer in enumerate(layers):
            builder.buffer(f"{prefix}w{i}", layer.n_out, layer.n_in, space)
            builder.buffer(f"{prefix}b{i}", 1, layer.n_out, space)


def _formula(layer_activation: Any) -> dict[str, Any]:
    """Record attributes of an activation option."""
    parameters = options.values(layer_activation)
    return {"activation": INDEX["activation"][layer_activation.name]} | {
        f"p{i}": value for i, value in enumerate(parameters)
    }


def _identity(activation) -> bool:
    return activation.name == "identity"


class _Forward:
    """Emits the forward pass and remembers what the backward pass needs of each layer."""

    def __init__(self, builder: PlanBuilder, training: bool):
        self.builder, self.training = builder, training
        self.saved: list[str | None] = []  # what the derivative is taken from
        self.inputs: list[str] = []
        self.streams: list[int] = []

    def layer(self, i: int, layer: Layer, x: str, *, last_activation=None, out: str | None = None, packed=None) -> str:
        """Adds layer i; ``last_activation`` replaces the layer's own (the loss may own it)."""
        activation = last_activation or layer.activation
        builder = self.builder
        softmax = activation.name == "softmax"
        y = out or builder.buffer(f"y{i}", BATCH_ROWS, layer.n_out)
        z = None
        if self.training and not softmax and activation._row.needs == "x":
            z = builder.buffer(f"z{i}", BATCH_ROWS, layer.n_out)
        rate = layer.dropout if self.training else 0.0
        stream = builder.stream() if rate else 0
        formula = {} if softmax else _formula(activation)
        builder.op("dense", x=x, w=f"w{i}", b=f"b{i}", y=y, z=z, packed=packed, rows="rows" if rate else None,
                   stream=stream, rate=rate, **formula)  # fmt: skip
        if softmax:
            builder.op("softmax", z=y, y=y)
        self.inputs.append(x)
        self.saved.append(z or y)
        self.streams.append(stream)
        return y


def _gather(builder: PlanBuilder, network: Network, *, weighted: bool, source: int = 0, name: str = "x") -> str:
    x = builder.buffer(name, BATCH_ROWS, network.n_features)
    weight = builder.buffer("weight", BATCH_ROWS, 1) if weighted else None
    rows = builder.buffer("rows", BATCH_ROWS, 1, ARENA, INT64)
    builder.op("gather", x=x, weight=weight, rows=rows, source=source)
    return x


def _noise(builder: PlanBuilder, noise, x: str, width: int) -> str:
    y = builder.buffer("noisy", BATCH_ROWS, width)
    kind = next(name for name, cls in options.NOISES.items() if isinstance(noise, cls))
    stream = builder.stream()
    if kind == "swap":
        builder.stream()  # the partner's words
    amount = noise.std if kind == "gaussian" else noise.rate
    builder.op("noise", x=x, y=y, rows="rows", kind=schema.NOISE_KINDS.index(kind), stream=stream, amount=amount,
               low=getattr(noise, "low", 0.0), high=getattr(noise, "high", 0.0))  # fmt: skip
    return y


def _loss_attributes(loss: Any, network: Network) -> dict[str, Any]:
    attributes: dict[str, Any]
    if loss._row is None:
        attributes = {"loss": schema.MULTINOMIAL}
    else:
        attributes = {"loss": INDEX["loss"][loss.name]}
        attributes |= {f"p{i}": value for i, value in enumerate(options.values(loss))}
    return attributes | {"scale": 1.0 / network.n_features if network.reduction == "mean" else 1.0}


def _final_activation(network: Network):
    """Activation of the last layer in plans that end in the loss: identity where the loss owns it."""
    final = network.layers[-1].activation
    return options.ACTIVATIONS["identity"]() if network.owned_output != "identity" else final


def training_plan(network: Network, dtype, batch: int, *, weighted: bool = False) -> Plan:
    """gradient: loss and gradient of one batch. update: penalties of the weights, clipping, the rule, projections.

    values: 0 the data loss, 1 the sum of all penalties. scalars: 0 the learning rate, then the rule's constants.
    """
    builder = PlanBuilder(dtype, batch, "training")
    layers = network.layers
    _parameters(builder, layers, (THETA, GRAD))
    builder.flat(network.solver._row.states)
    data_value, penalty_value = builder.value(), builder.value()
    rate_scalar = builder.scalars(1)
    rule_scalar = builder.scalars(len(network.solver._row.step))

    x = _gather(builder, network, weighted=weighted)
    h = x if network.noise is None else _noise(builder, network.noise, x, network.n_features)
    forward = _Forward(builder, training=True)
    for i, layer in enumerate(layers):
        h = forward.layer(i, layer, h, last_activation=_final_activation(network) if i == len(layers) - 1 else None)
    row_value = builder.buffer("row_value", BATCH_ROWS, 1, ARENA, FLOAT64)
    softmax_output = h if _final_activation(network).name == "softmax" else None
    delta = builder.buffer("delta", BATCH_ROWS, network.n_features)
    builder.op("loss", y=h, target=x, weight="weight" if weighted else None, dy=delta, row_value=row_value,
               value=data_value, **_loss_attributes(network.loss, network))  # fmt: skip
    _backward(builder, network, forward, delta, softmax_output, penalty_value)
    _weight_penalties(builder, network, penalty_value)
    _update(builder, network, rate_scalar, rule_scalar)
    return builder.build()


def _backward(builder, network: Network, forward: _Forward, delta: str, softmax_output, penalty_value: int) -> None:
    layers, code = network.layers, len(network.encoder) - 1
    final = _final_activation(network)
    if softmax_output:
        builder.op("softmax_grad", dy=delta, y=softmax_output, dz=delta)
    elif not _identity(final):
        builder.op("activation_grad", dy=delta, saved=forward.saved[-1], dz=delta, **_formula(final))
    activities = [
        p for p in network.penalties if isinstance(p, (options.KLSparsity, options.Activity, options.ActivityL1))
    ]
    for i in range(len(layers) - 1, -1, -1):
        common = {"dz": delta, "x": forward.inputs[i], "w": f"w{i}", "dw": f"dw{i}", "db": f"db{i}"}
        if i == 0:
            builder.op("dense_grad", **common)
            return
        before = layers[i - 1]
        chain = {"saved": forward.saved[i - 1], "stream": forward.streams[i - 1], "rate": before.dropout,
                 "rows": "rows" if before.dropout else None, **_formula(before.activation)}  # fmt: skip
        delta = builder.buffer(f"delta{i}", BATCH_ROWS, layers[i].n_in)
        if i - 1 == code and activities:  # penalties add to dL/dh before the derivative is taken
            builder.op("dense_grad", dx=delta, **common)
            for number, penalty in enumerate(activities):
                _activity(builder, penalty, number, forward.inputs[i], delta, penalty_value)
            builder.op("activation_grad", dy=delta, dz=delta, **chain)
        else:
            builder.op("dense_grad", dx=delta, **common, **chain)


def _activity(builder: PlanBuilder, penalty, number: int, h: str, dh: str, value: int) -> None:
    columns = builder.columns(h)
    if isinstance(penalty, options.KLSparsity):
        mean = builder.buffer(f"mean{number}", 1, columns, ARENA, FLOAT64)
        builder.op("kl_sparsity", h=h, dh=dh, mean=mean, value=value, rho=penalty.rho, weight=penalty.weight)
        return
    inner = options.PENALTIES["l1"](penalty.strength) if isinstance(penalty, options.ActivityL1) else (
        options.penalty(penalty.penalty))  # fmt: skip
    row_value = builder.buffer(f"activity{number}", BATCH_ROWS, 1, ARENA, FLOAT64)
    builder.op("activity", h=h, dh=dh, row_value=row_value, value=value, penalty=INDEX["penalty"][inner.name],
               **{f"p{i}": v for i, v in enumerate(options.values(inner))})  # fmt: skip


def _weight_penalties(builder: PlanBuilder, network: Network, value: int) -> None:
    for penalty in network.penalties:
        if isinstance(penalty, options.PenaltyOption):
            attributes = {f"p{i}": v for i, v in enumerate(options.values(penalty))}
            for i in range(len(network.layers)):
                builder.op("weight_penalty", w=f"w{i}", dw=f"dw{i}", penalty=INDEX["penalty"][penalty.name],
                           value=value, **attributes)  # fmt: skip


def _update(builder: PlanBuilder, network: Network, rate_scalar: int, rule_scalar: int) -> None:
    solver = network.solver
    for mode, limit in enumerate((solver.clip_value, solver.clip_norm)):
        if limit is not None:
            builder.op("clip_gradient", UPDATE, g="grad", mode=mode, limit=limit)
    states = {f"s{i}": f"state_{name}" for i, name in enumerate(solver._row.states)}
    builder.op("update", UPDATE, w="theta", g="grad", rule=INDEX["update"][solver.name], scalar=rule_scalar,
               **states, **{f"p{i}": v for i, v in enumerate(options.values(solver)[:4])})  # fmt: skip
    for penalty in network.penalties:
        if isinstance(penalty, options.PenaltyOption) and penalty._row.prox:
            attributes = {f"p{i}": v for i, v in enumerate(options.values(penalty))}
            for i in range(len(network.layers)):
                builder.op("project", UPDATE, w=f"w{i}", kind=schema.PROJECT_KINDS.index("prox"), scalar=rate_scalar,
                           penalty=INDEX["penalty"][penalty.name], **attributes)  # fmt: skip
    for constraint in network.constraints:
        match constraint:
            case options.MaxNorm(limit=limit):
                kind, attributes = "max_norm", {"p0": limit}
            case options.WeightRange(low=low, high=high):
                kind, attributes = "range", {"p0": low, "p1": high}
            case _:
                kind, attributes = "non_negative", {}
        for i in range(len(network.layers)):
            builder.op("project", UPDATE, w=f"w{i}", kind=schema.PROJECT_KINDS.index(kind), **attributes)


def evaluation_plan(network: Network, dtype, batch: int = INFERENCE_BATCH, *, loss=None) -> Plan:
    """``row_value`` (N, 1) float64: each row's loss; with ``loss`` another one, of reconstruction against input."""
    builder = PlanBuilder(dtype, batch, "evaluation")
    row_value = builder.external("row_value", BATCH_ROWS, 1, FLOAT64)
    _parameters(builder, network.layers)
    packed = _pack(builder, network.layers)
    x = h = _gather(builder, network, weighted=False)
    forward = _Forward(builder, training=False)
    for i, layer in enumerate(network.layers):
        final = i == len(network.layers) - 1
        activation = None
        if final:
            activation = _final_activation(network) if loss is None else _shown_activation(network)
        h = forward.layer(i, layer, h, last_activation=activation, packed=packed[i])
    attributes = _loss_attributes(network.loss if loss is None else loss, network)
    if loss is not None:
        attributes["scale"] = 1.0 / network.n_features
    builder.op("loss", y=h, target=x, row_value=row_value, value=-1, **attributes)
    return builder.build()


def _shown_activation(network: Network):
    """Output activation as reconstruct shows it."""
    if network.owned_output == "identity":
        return network.layers[-1].activation
    return options.OUTPUT_ACTIVATIONS[network.owned_output]()


def _pack(builder: PlanBuilder, layers, first: int = 0) -> list[str]:
    names = []
    for i, layer in enumerate(layers, first):
        rows = -(-layer.n_out // PACK_ROUND) * PACK_ROUND
        names.append(builder.buffer(f"packed{i}", rows, layer.n_in))
        builder.op("pack", PREPARE, w=f"w{i}", packed=names[-1])
    return names


def inference_plan(network: Network, dtype, batch: int = INFERENCE_BATCH, *, part: str = "encode") -> Plan:
    """part: "encode" (X → code), "decode" (code → X̂) or "reconstruct" (X → X̂); result in the external ``out``."""
    encoder, decoder = network.encoder, network.decoder
    layers = {"encode": encoder, "decode": decoder, "reconstruct": encoder + decoder}[part]
    offset = len(encoder) if part == "decode" else 0
    builder = PlanBuilder(dtype, batch, part)
    out = builder.external("out", BATCH_ROWS, layers[-1].n_out)
    _parameters(builder, network.layers)
    packed = _pack(builder, layers, offset)
    h = builder.buffer("x", BATCH_ROWS, layers[0].n_in)
    builder.op("gather", x=h, source=0)
    forward = _Forward(builder, training=False)
    for i, layer in enumerate(layers, offset):
        final = i == offset + len(layers) - 1
        shown = _shown_activation(network) if final and part != "encode" else None
        h = forward.layer(i, layer, h, last_activation=shown, packed=packed[i - offset], out=out if final else None)
    return builder.build()


__all__ = ["evaluation_plan", "inference_plan", "training_plan"]
