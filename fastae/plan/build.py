"""Network → plans: training, evaluation, inference. Pure functions.

Parameters lie in space theta as W₁ b₁ W₂ b₂ …, each on a cache line; gradients in the same places of space grad, and
each of the rule's states is a copy of that layout. Padding stays zero under every rule.
"""

from __future__ import annotations

from ..spec.network import Network
from .dense import Forward, backward, gather, noise, pack, parameters
from .losses import final_activation, loss_attributes, shown_activation
from .plan import Plan, PlanBuilder
from .regularisers import weight_penalties
from .schema import ARENA, BATCH_ROWS, FLOAT64, GRAD, THETA
from .update import update

INFERENCE_BATCH = 192  # rows: activations of usual networks stay in a core's L2 cache


def training_plan(network: Network, dtype, batch: int, *, weighted: bool = False) -> Plan:
    """gradient: loss and gradient of one batch. update: penalties of the weights, clipping, the rule, projections.

    values: 0 the data loss, 1 the sum of all penalties. scalars: 0 the learning rate, then the rule's constants.
    """
    builder = PlanBuilder(dtype, batch, "training")
    layers = network.layers
    parameters(builder, layers, (THETA, GRAD))
    builder.flat(network.solver._row.states)
    data_value, penalty_value = builder.value(), builder.value()
    rate_scalar = builder.scalars(1)
    rule_scalar = builder.scalars(len(network.solver._row.step))

    x, target = gather(builder, network, weighted=weighted)
    h = x if network.noise is None else noise(builder, network.noise, x, network.n_features)
    forward = Forward(builder, training=True)
    for i, layer in enumerate(layers):
        h = forward.layer(i, layer, h, last_activation=final_activation(network) if i == len(layers) - 1 else None)
    row_value = builder.buffer("row_value", BATCH_ROWS, 1, ARENA, FLOAT64)
    softmax_output = h if final_activation(network).name == "softmax" else None
    delta = builder.buffer("delta", BATCH_ROWS, builder.columns(h))
    builder.op("loss", y=h, target=target, weight="weight" if weighted else None, dy=delta, row_value=row_value,
               value=data_value, **loss_attributes(network.loss, network))  # fmt: skip
    backward(builder, network, forward, delta, softmax_output, penalty_value)
    weight_penalties(builder, network, penalty_value)
    update(builder, network, rate_scalar, rule_scalar)
    return builder.build()


def evaluation_plan(network: Network, dtype, batch: int = INFERENCE_BATCH, *, loss=None) -> Plan:
    """``row_value`` (N, 1) float64: each row's loss; with ``loss`` another one, of reconstruction against input."""
    builder = PlanBuilder(dtype, batch, "evaluation")
    row_value = builder.external("row_value", BATCH_ROWS, 1, FLOAT64)
    parameters(builder, network.layers)
    packed = pack(builder, network.layers)
    h, target = gather(builder, network, weighted=False)
    forward = Forward(builder, training=False)
    for i, layer in enumerate(network.layers):
        final = i == len(network.layers) - 1
        activation = None
        if final:
            activation = final_activation(network) if loss is None else shown_activation(network)
        h = forward.layer(i, layer, h, last_activation=activation, packed=packed[i])
    attributes = loss_attributes(network.loss if loss is None else loss, network)
    if loss is not None:
        attributes["scale"] = 1.0 / network.target_width
    builder.op("loss", y=h, target=target, row_value=row_value, value=-1, **attributes)
    return builder.build()


def inference_plan(network: Network, dtype, batch: int = INFERENCE_BATCH, *, part: str = "encode") -> Plan:
    """part: "encode" (X → code), "decode" (code → X̂) or "reconstruct" (X → X̂); result in the external ``out``."""
    encoder, decoder = network.encoder, network.decoder
    layers = {"encode": encoder, "decode": decoder, "reconstruct": encoder + decoder}[part]
    offset = len(encoder) if part == "decode" else 0
    builder = PlanBuilder(dtype, batch, part)
    out = builder.external("out", BATCH_ROWS, layers[-1].n_out)
    parameters(builder, network.layers)
    packed = pack(builder, layers, offset)
    h = builder.buffer("x", BATCH_ROWS, layers[0].n_in)
    builder.op("gather", x=h, source=0)
    forward = Forward(builder, training=False)
    for i, layer in enumerate(layers, offset):
        final = i == offset + len(layers) - 1
        shown = shown_activation(network) if final and part != "encode" else None
        h = forward.layer(i, layer, h, last_activation=shown, packed=packed[i - offset], out=out if final else None)
    return builder.build()


__all__ = ["evaluation_plan", "inference_plan", "training_plan"]
