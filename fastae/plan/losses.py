"""Records of losses, what they need of the input, and the output activations that go with them."""

from __future__ import annotations

import math
from typing import Any

from ..catalog import INDEX
from ..likelihoods import LIKELIHOOD_INDEX
from ..spec import options
from ..spec.heads import Block
from ..spec.network import Network
from . import schema
from .plan import PlanBuilder
from .schema import BATCH_ROWS

_ROW_LOSSES = {"multinomial": schema.MULTINOMIAL, "categorical_cross_entropy": schema.MULTINOMIAL,
               "cosine": schema.COSINE}  # fmt: skip


def loss_record(
    loss: Any, columns: int, *, mean: bool, masked: bool, weight: float = 1.0
) -> tuple[str, dict[str, Any]]:
    """Kind and attributes of the record of a loss over a number of columns."""
    mean = mean and loss.name != "cosine"  # one number per row
    scale = weight / columns if mean and not masked else weight
    mode = ("mean" if mean else "sum") if masked else "none"
    attributes: dict[str, Any] = {"scale": scale, "masked": schema.MASK_MODES.index(mode)}
    if loss._row is not None:
        attributes |= {f"p{i}": value for i, value in enumerate(options.values(loss))}
    if isinstance(loss, options.LikelihoodOption):
        return "likelihood", attributes | {"likelihood": LIKELIHOOD_INDEX[loss.name]}
    return "loss", attributes | {"loss": loss._index if loss._row else _ROW_LOSSES[loss.name]}


def transform_input(builder: PlanBuilder, network: Network, x: str, *, target_too: bool = True) -> tuple[str, str]:
    """What the encoder sees of the gathered x, and the target, in which what is unobserved is NaN."""
    missing, transform = network.missing, network.input_transform
    seen, target = x, x
    if transform is not None or (missing is not None and missing != 0):
        seen = builder.buffer(f"{x}_seen", BATCH_ROWS, network.n_features)
    if missing is not None and not math.isnan(missing) and target_too:
        target = builder.buffer(f"{x}_marked", BATCH_ROWS, network.n_features)
    if seen == target == x:
        return x, x
    builder.op("transform_input", x=x, y=None if seen == x else seen, target=None if target == x else target,
               transform=schema.INPUT_TRANSFORMS.index(transform or "none"),
               missing=math.nan if missing is None else missing)  # fmt: skip
    return seen, target


def _size(builder: PlanBuilder, block: Block, target: str) -> str | None:
    """The rows' size factors, where the block's loss has them."""
    if not getattr(block.loss, "size_factor", False):
        return None
    size = builder.buffer(f"size{block.first}", BATCH_ROWS, 1)
    builder.op("size_factor", target=builder.part(target, block.first, block.count), size=size)
    return size


def losses(builder: PlanBuilder, network: Network, y: str, target: str, row_value: str, *, value: int = -1,
           dy: str | None = None, weight: str | None = None, per_head: bool = False) -> None:  # fmt: skip
    """The loss of every block; ``per_head``: each one's own, without its weight, in its own column of row_value."""
    for i, block in enumerate(network.blocks):
        kind, attributes = loss_record(block.loss, block.count, mean=network.reduction == "mean",
                                       masked=network.missing is not None,
                                       weight=1.0 if per_head else block.weight)  # fmt: skip
        size = _size(builder, block, target)
        builder.op(
            kind,
            y=builder.part(y, block.output, block.n_outputs),
            target=builder.part(target, block.first, block.count),
            weight=weight,
            dy=None if dy is None else builder.part(dy, block.output, block.n_outputs),
            row_value=builder.part(row_value, i, 1) if per_head else row_value,
            value=value,
            accumulate=0 if per_head else int(i > 0),
            **({"size": size} if size else {}),
            **attributes,
        )


def error(builder: PlanBuilder, network: Network, shown: str, target: str, row_value: str, loss: Any) -> None:
    """Another loss, the mean over all entries, of the shown reconstruction."""
    kind, attributes = loss_record(loss, network.target_width, mean=True, masked=network.missing is not None)
    builder.op(kind, y=shown, target=target, row_value=row_value, **attributes)


def show(builder: PlanBuilder, network: Network, y: str, out: str, target: str | None, *, every: bool = False) -> None:
    """out ← the reconstruction from a split output y; ``every``: all parameters of the distributions, laid out as y.

    Without a target there are no size factors: means are relative to the row's total.
    """
    for block in network.blocks:
        size = _size(builder, block, target) if target else None
        if isinstance(block.loss, options.LikelihoodOption):
            for k in range(block.loss.n_outputs if every else 1):
                at = block.output + k * block.count
                builder.op("distribution", y=builder.part(y, at, block.count), size=size,
                           out=builder.part(out, at if every else block.first, block.count),
                           likelihood=LIKELIHOOD_INDEX[block.loss.name], output=k)  # fmt: skip
            continue
        source = builder.part(y, block.output, block.count)
        to = builder.part(out, block.output if every else block.first, block.count)
        if block.loss.output == "softmax":
            builder.op("softmax", z=source, y=to)
        else:
            builder.op("activation", x=source, y=to, activation=INDEX["activation"][block.loss.output])


def sized(network: Network) -> bool:
    """Whether the reconstruction depends on the row's size."""
    return any(getattr(block.loss, "size_factor", False) for block in network.blocks)


def final_activation(network: Network):
    """Activation of the last layer in plans that end in the loss: identity where the loss owns it."""
    final = network.layers[-1].activation
    return options.ACTIVATIONS["identity"]() if network.owned_output != "identity" else final


def shown_activation(network: Network):
    """Output activation as reconstruct shows it; identity where `show` does it."""
    if network.split_output:
        return options.ACTIVATIONS["identity"]()
    if network.owned_output == "identity":
        return network.layers[-1].activation
    return options.OUTPUT_ACTIVATIONS[network.owned_output]()
