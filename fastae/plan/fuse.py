"""Which gradients the update rule may take at once, as they are made: no gradient is written and read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from . import schema
from .plan import Op, Plan

FUSIBLE = ("dense_grad", "latent_grad")


def fuse_updates(plan: Plan) -> Plan:
    """The training plan with ``fused`` set on each gradient of weights that may be updated within it.

    That is where nothing else touches the gradient, clipping included, and no later op of the gradient phase reads the
    weights. A projection to unit rows is then done within a `latent_grad` too, so that between the two no other op of
    the update phase may read them.
    """
    kinds = Counter(op.kind for op in plan.ops)
    if kinds["update"] != 1 or kinds["clip_gradient"]:
        return plan
    touched = Counter(name for op in plan.ops for name in op.slots.values())
    unit = schema.PROJECT_KINDS.index("unit")

    def fusible(i: int, op: Op) -> bool:
        if op.kind not in FUSIBLE or "dw" not in op.slots or op.ints.get("transposed", 0):
            return False
        later = [o for o in plan.ops[i + 1 :] if op.slots["w"] in o.slots.values()]
        if touched[op.slots["dw"]] != 1 or any(o.phase == schema.GRADIENT for o in later):
            return False
        projections = [j for j, o in enumerate(later) if o.kind == "project" and o.ints["kind"] == unit]
        return op.kind == "dense_grad" or not projections or projections[0] == 0

    def marked(i: int, op: Op) -> Op:
        return replace(op, ints={**op.ints, "fused": 1}) if fusible(i, op) else op

    ops = tuple(marked(i, op) for i, op in enumerate(plan.ops))
    offsets = [plan.buffers[plan.index[op.slots["w"]]].offset for op in ops if op.kind in FUSIBLE and op.ints["fused"]]
    # the update of all other parameters goes through theta between the fused ones, last op first
    return replace(plan, ops=ops) if offsets == sorted(offsets, reverse=True) else plan


__all__ = ["fuse_updates"]
