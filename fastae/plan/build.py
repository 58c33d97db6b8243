"""Network → plans: training, evaluation, inference. Pure functions.

Parameters lie in space theta as W₁ b₁ W₂ b₂ …, each on a cache line; gradients in the same places of space grad, and
each of the rule's states is a copy of that layout. Padding stays zero under every rule.
"""

from __future__ import annotations

from ..spec.network import Network
from .dense import Backward, Forward, formula, gather, noise, pack, parameters, statistics
from .fuse import fuse_updates
from .losses import error, final_activation, losses, show, shown_activation, sized, transform_input
from .plan import Plan, PlanBuilder
from .regularisers import Penalties
from .schema import ARENA, BATCH_ROWS, FLOAT16, FLOAT64, GRAD, INT8, REAL, THETA
from .update import update

_STORED = {"real": REAL, "float16": FLOAT16, "int8": INT8}
INFERENCE_BATCH = 192  # rows: activations of usual networks stay in a core's L2 cache


def training_plan(network: Network, dtype, batch: int, *, weighted: bool = False, bf16: int = 0) -> Plan:
    """gradient: loss and gradient of one batch. update: penalties of the weights, clipping, the rule, projections.

    values: 0 the data loss, 1 the sum of all penalties. scalars: 0 the learning rate, then the rule's constants.
    ``bf16``, here and below: 1 for products of layers in bfloat16, 2 in tf32, everything else in ``dtype`` (float32).
    """
    builder = PlanBuilder(dtype, batch, "training", bf16=bf16)
    layers = network.layers
    parameters(builder, layers, (THETA, GRAD))
    builder.flat(network.solver._row.states)
    statistics(builder, layers)
    data_value, penalty_value = builder.value(), builder.value()
    rate_scalar = builder.scalars(1)
    rule_scalar = builder.scalars(len(network.solver._row.step))

    x, target = gather(builder, network, weighted=weighted)
    h = start = x if network.noise is None else noise(builder, network.noise, x, network.n_features)
    forward, backward = Forward(builder, layers, training=True), Backward(builder, layers)
    final = final_activation(network)
    for i in range(len(layers)):
        h = forward.layer(i, h, last_activation=final if i == len(layers) - 1 else None)
    penalties = Penalties(builder, network, penalty_value)
    penalties.register(backward, forward, start)
    row_value = builder.buffer("row_value", BATCH_ROWS, 1, ARENA, FLOAT64)
    delta = builder.buffer("delta", BATCH_ROWS, builder.columns(h))
    losses(builder, network, h, target, row_value, value=data_value, dy=delta, weight="weight" if weighted else None)
    if final.name == "softmax":
        builder.op("softmax_grad", dy=delta, y=h, dz=delta)
    elif final.name != "identity":
        builder.op("activation_grad", dy=delta, saved=forward.traces[-1].saved, dz=delta, **formula(final))
    backward.run(forward, delta, chained=True)
    penalties.second_passes(backward)
    penalties.on_weights()
    update(builder, network, rate_scalar, rule_scalar)
    return fuse_updates(builder.build())


def evaluation_plan(
    network: Network, dtype, batch: int = INFERENCE_BATCH, *, loss=None, per_head: bool = False, bf16: int = 0
) -> Plan:
    """``row_value`` (N, 1) float64: each row's loss; with ``loss`` another one, of reconstruction against input.

    ``per_head``: (N, heads), the loss of each head without its weight.
    """
    builder = PlanBuilder(dtype, batch, "evaluation", bf16=bf16)
    row_value = builder.external("row_value", BATCH_ROWS, len(network.blocks) if per_head else 1, FLOAT64)
    layers = network.layers
    parameters(builder, layers)
    statistics(builder, layers)
    packed = pack(builder, layers, range(len(layers)))
    h, target = gather(builder, network, weighted=False)
    forward = Forward(builder, layers, training=False)
    for i in range(len(layers)):
        activation = None
        if i == len(layers) - 1:
            activation = final_activation(network) if loss is None else shown_activation(network)
        h = forward.layer(i, h, last_activation=activation, packed=packed[i])
    if loss is None:
        losses(builder, network, h, target, row_value, per_head=per_head)
        return builder.build()
    if network.split_output:
        shown = builder.buffer("shown", BATCH_ROWS, network.target_width)
        show(builder, network, h, shown, target)
        h = shown
    error(builder, network, h, target, row_value, loss)
    return builder.build()


def inference_plan(
    network: Network, dtype, batch: int = INFERENCE_BATCH, *, part: str = "encode", bf16: int = 0,
    int8: bool = False, output: str = "real",
) -> Plan:  # fmt: skip
    """Result in the external ``out``.

    part: "encode" (X → code), "decode" (code → X̂), "reconstruct" (X → X̂), or "distribution" (X → every parameter that
    the last layer's outputs stand for, laid out as these), "scores" ("reconstruct" without the output activation that
    the loss owns: log-odds of a classifier), or "layers": "reconstruct" with the outputs of all layers
    before the last in the externals ``out0``, ``out1``, …
    int8: products of 8-bit integers
    output: "real"; "float16"; or "int8", with the rows' scales (N, 1) in the external ``out_scale``. All but "real" and
    ``int8`` are for plans in float32 of part "encode"
    """
    layers, n_encoder = network.layers, len(network.encoder)
    ends = {"encode": (0, n_encoder), "decode": (n_encoder, len(layers))}
    chosen = range(*ends.get(part, (0, len(layers))))
    split = network.split_output and part != "encode"
    builder = PlanBuilder(dtype, batch, part, bf16=bf16)
    inner = chosen[:-1] if part == "layers" else ()
    outs = {i: builder.external(f"out{i}", BATCH_ROWS, layers[i].n_out) for i in inner}
    width = network.target_width if split and part != "distribution" else layers[chosen[-1]].n_out
    out = builder.external("out", BATCH_ROWS, width, _STORED[output])
    scale = builder.external("out_scale", BATCH_ROWS, 1) if output == "int8" else None
    parameters(builder, layers)
    statistics(builder, layers)
    packed = pack(builder, layers, chosen, int8)
    h = builder.buffer("x", BATCH_ROWS, layers[chosen[0]].n_in)
    builder.op("gather", x=h, source=0)
    target = None
    if part != "decode":
        h, target = transform_input(builder, network, h, target_too=split and sized(network))
    forward = Forward(builder, layers, training=False, int8=int8)
    for i in chosen:
        final = i == chosen[-1]
        shown = None
        if final and part != "encode":
            shown = final_activation(network) if part == "scores" else shown_activation(network)
        to = outs.get(i) if not final else None if split or output != "real" else out
        h = forward.layer(i, h, last_activation=shown, packed=packed[i], out=to)
    if split:
        show(builder, network, h, out, target, every=part == "distribution")
    if output == "float16":
        builder.op("store_half", x=h, out=out)
    elif output == "int8":
        builder.op("store_int8", x=h, out=out, scale=scale)
    return builder.build()


__all__ = ["evaluation_plan", "inference_plan", "training_plan"]
