"""Records of penalties on activities and weights."""

from __future__ import annotations

from ..catalog import INDEX
from ..spec import options
from ..spec.network import Network
from .plan import PlanBuilder
from .schema import ARENA, BATCH_ROWS, FLOAT64


def activities(network: Network) -> list:
    """Penalties on the code's activities."""
    kinds = (options.KLSparsity, options.Activity, options.ActivityL1)
    return [penalty for penalty in network.penalties if isinstance(penalty, kinds)]


def activity(builder: PlanBuilder, penalty, number: int, h: str, dh: str, value: int) -> None:
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


def weight_penalties(builder: PlanBuilder, network: Network, value: int) -> None:
    for penalty in network.penalties:
        if isinstance(penalty, options.PenaltyOption):
            attributes = {f"p{i}": v for i, v in enumerate(options.values(penalty))}
            for i in range(len(network.layers)):
                builder.op("weight_penalty", w=f"w{i}", dw=f"dw{i}", penalty=INDEX["penalty"][penalty.name],
                           value=value, **attributes)  # fmt: skip
