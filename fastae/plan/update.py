"""Records of the update phase: clipping, the rule, the non-smooth part of penalties, constraints."""

from __future__ import annotations

from ..spec import options
from ..spec.network import Network
from . import schema
from .plan import PlanBuilder
from .regularisers import penalty_attributes
from .schema import UPDATE


def rule(builder: PlanBuilder, solver: options.SolverOption, rule_scalar: int) -> None:
    for mode, limit in enumerate((solver.clip_value, solver.clip_norm)):
        if limit is not None:
            builder.op("clip_gradient", UPDATE, g="grad", mode=mode, limit=limit)
    states = {f"s{i}": f"state_{name}" for i, name in enumerate(solver._row.states)}
    builder.op("update", UPDATE, w="theta", g="grad", rule=solver._index, scalar=rule_scalar,
               **states, **{f"p{i}": v for i, v in enumerate(options.values(solver)[:4])})  # fmt: skip


def update(builder: PlanBuilder, network: Network, rate_scalar: int, rule_scalar: int) -> None:
    solver = network.solver
    if not isinstance(solver, options.FullBatchOption):  # those read the projections below, and step themselves
        rule(builder, solver, rule_scalar)
    own = [i for i, layer in enumerate(network.layers) if layer.tied is None]
    for placed in network.penalties:
        if isinstance(placed.option, options.PenaltyOption) and placed.option._row.prox:
            for i in sorted(set(placed.layers) & set(own)):
                builder.op("project", UPDATE, w=f"w{i}", kind=schema.PROJECT_KINDS.index("prox"), scalar=rate_scalar,
                           **penalty_attributes(placed.option))  # fmt: skip
    for placed in network.constraints:
        match placed.option:
            case options.MaxNorm(limit=limit):
                kind, attributes = "max_norm", {"p0": limit}
            case options.WeightRange(low=low, high=high):
                kind, attributes = "range", {"p0": low, "p1": high}
            case _:
                kind, attributes = "non_negative", {}
        for i in sorted(set(placed.layers) & set(own)):
            builder.op("project", UPDATE, w=f"w{i}", kind=schema.PROJECT_KINDS.index(kind), **attributes)
