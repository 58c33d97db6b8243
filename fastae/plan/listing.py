"""The readable listing of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import schema

if TYPE_CHECKING:
    from .plan import Plan

_PHASE = {value: name for name, value in schema.PHASES.items()}


def _count(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000 or prefix == "T":
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    raise AssertionError


def listing(plan: Plan) -> str:
    """One line per op: phase, kind, its buffers with shapes, attributes, FLOPs; then bytes per space."""
    buffers = {buffer.name: buffer for buffer in plan.buffers}

    def shape(name: str) -> str:
        rows, columns = buffers[name].rows, buffers[name].columns
        return f"{name}({'m' if rows == schema.BATCH_ROWS else rows},{columns})"

    total = sum(plan.flops(op) for op in plan.ops)
    lines = [f"{plan.title}: {plan.dtype}, m = {plan.batch}, {len(plan.ops)} ops, {_count(total, 'FLOP')} per step"]
    for op in plan.ops:
        kind = schema.KIND[op.kind]
        slots = " ".join(f"{slot}={shape(name)}" for slot, name in op.slots.items())
        attributes = {**op.ints, **{k: f"{v:g}" for k, v in op.floats.items()}}
        extra = " ".join(f"{key}={value}" for key, value in attributes.items() if str(value) not in ("0", "-1"))
        flops = plan.flops(op)
        mark = " " if kind.row_local else "*"
        cost = f"  [{_count(flops, 'FLOP')}]" if flops else ""
        lines.append(f"  {_PHASE.get(op.phase, op.phase):8}{mark} {op.kind:16} {slots}  {extra}{cost}".rstrip())
    names = ("arena", "theta", "grad", "state")
    lines.append("  " + ", ".join(f"{name} {_count(size, 'B')}" for name, size in zip(names, plan.sizes, strict=True)))
    lines.append("  (* couples the rows of the batch)")
    return "\n".join(lines)
