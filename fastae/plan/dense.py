"""Records of dense layers: rows in, noise, forward, backward, packed weights."""

from __future__ import annotations

from typing import Any

from ..catalog import INDEX
from ..spec import options
from ..spec.network import Layer, Network
from . import schema
from .losses import final_activation
from .plan import PlanBuilder
from .regularisers import activities, activity
from .schema import ARENA, BATCH_ROWS, INT64, PREPARE, THETA

PACK_ROUND = 64  # columns of the widest packed panel


def parameters(builder: PlanBuilder, layers: tuple[Layer, ...], spaces=(THETA,)) -> None:
    for space, prefix in zip(spaces, ("", "d"), strict=False):
        for i, layer in enumerate(layers):
            builder.buffer(f"{prefix}w{i}", layer.n_out, layer.n_in, space)
            builder.buffer(f"{prefix}b{i}", 1, layer.n_out, space)


def formula(layer_activation: Any) -> dict[str, Any]:
    """Record attributes of an activation option."""
    parameters = options.values(layer_activation)
    return {"activation": INDEX["activation"][layer_activation.name]} | {
        f"p{i}": value for i, value in enumerate(parameters)
    }


def _identity(activation) -> bool:
    return activation.name == "identity"


def gather(builder: PlanBuilder, network: Network, *, weighted: bool) -> tuple[str, str]:
    """Rows of the input and of the target (the input itself, or source 1)."""
    x = builder.buffer("x", BATCH_ROWS, network.n_features)
    weight = builder.buffer("weight", BATCH_ROWS, 1) if weighted else None
    rows = builder.buffer("rows", BATCH_ROWS, 1, ARENA, INT64)
    builder.op("gather", x=x, weight=weight, rows=rows, source=0)
    if network.n_targets is None:
        return x, x
    target = builder.buffer("target", BATCH_ROWS, network.n_targets)
    builder.op("gather", x=target, source=1)
    return x, target


def noise(builder: PlanBuilder, noise, x: str, width: int) -> str:
    y = builder.buffer("noisy", BATCH_ROWS, width)
    kind = next(name for name, cls in options.NOISES.items() if isinstance(noise, cls))
    stream = builder.stream()
    if kind == "swap":
        builder.stream()  # the partner's words
    amount = noise.std if kind == "gaussian" else noise.rate
    builder.op("noise", x=x, y=y, rows="rows", kind=schema.NOISE_KINDS.index(kind), stream=stream, amount=amount,
               low=getattr(noise, "low", 0.0), high=getattr(noise, "high", 0.0))  # fmt: skip
    return y


class Forward:
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
        attributes = {} if softmax else formula(activation)
        builder.op("dense", x=x, w=f"w{i}", b=f"b{i}", y=y, z=z, packed=packed, rows="rows" if rate else None,
                   stream=stream, rate=rate, **attributes)  # fmt: skip
        if softmax:
            builder.op("softmax", z=y, y=y)
        self.inputs.append(x)
        self.saved.append(z or y)
        self.streams.append(stream)
        return y


def backward(builder, network: Network, forward: Forward, delta: str, softmax_output, penalty_value: int) -> None:
    layers, code = network.layers, len(network.encoder) - 1
    final = final_activation(network)
    if softmax_output:
        builder.op("softmax_grad", dy=delta, y=softmax_output, dz=delta)
    elif not _identity(final):
        builder.op("activation_grad", dy=delta, saved=forward.saved[-1], dz=delta, **formula(final))
    on_code = activities(network)
    for i in range(len(layers) - 1, -1, -1):
        common = {"dz": delta, "x": forward.inputs[i], "w": f"w{i}", "dw": f"dw{i}", "db": f"db{i}"}
        if i == 0:
            builder.op("dense_grad", **common)
            return
        before = layers[i - 1]
        chain = {"saved": forward.saved[i - 1], "stream": forward.streams[i - 1], "rate": before.dropout,
                 "rows": "rows" if before.dropout else None, **formula(before.activation)}  # fmt: skip
        delta = builder.buffer(f"delta{i}", BATCH_ROWS, layers[i].n_in)
        if i - 1 == code and on_code:  # penalties add to dL/dh before the derivative is taken
            builder.op("dense_grad", dx=delta, **common)
            for number, penalty in enumerate(on_code):
                activity(builder, penalty, number, forward.inputs[i], delta, penalty_value)
            builder.op("activation_grad", dy=delta, dz=delta, **chain)
        else:
            builder.op("dense_grad", dx=delta, **common, **chain)


def pack(builder: PlanBuilder, layers, first: int = 0) -> list[str]:
    names = []
    for i, layer in enumerate(layers, first):
        rows = -(-layer.n_out // PACK_ROUND) * PACK_ROUND
        names.append(builder.buffer(f"packed{i}", rows, layer.n_in))
        builder.op("pack", PREPARE, w=f"w{i}", packed=names[-1])
    return names
