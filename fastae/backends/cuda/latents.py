"""Codes by latents: lists of entries, gradients of the rows of w, which latents are dead."""

from __future__ import annotations

from typing import Any

from ...catalog import UPDATE_RULES
from ...plan import schema
from ...plan.plan import Op
from .binder import Binder
from .dense import bias_sum
from .launches import MOST_ASIDE, PART, THREADS, Grid, ceil_div, over, over_cells

ROWS_OF_A_BLOCK = 32  # rows of the batch whose entries one block of threads places
MOST_COUNTS = 1 << 24  # counts of latents by blocks of rows
MOST_OF_A_ROW = 4 * THREADS * PART  # bytes of a latent's row in registers: kUpdateParts of latent_update.cuh
WIDE, LATENT_BLOCK = 4, 64  # kWide, kLatentBlock of latent_grad.cuh and latents.cuh


def over_runs(n: int) -> tuple[Grid, Grid]:
    """Grid and block for work on runs of THREADS latents."""
    return (max(1, min(ceil_div(n, THREADS), 16384)), 1, 1), (THREADS, 1, 1)


def over_latents(n: int) -> tuple[Grid, Grid]:
    """Grid and block for a warp a latent."""
    return (max(1, min(ceil_div(n, THREADS // 32), 1 << 20)), 1, 1), (THREADS, 1, 1)


def width_of_block(columns: int, most: int = THREADS) -> int:
    """Threads of a block for so many columns: whole warps, a power of two of them."""
    x = 32
    while x < min(columns, most):
        x *= 2
    return x


def by_latent(b: Binder, op) -> None:
    n, width = b.shape("start")[1] - 1, b.shape("idx")[1]
    blocks = max(1, min(ceil_div(b.m, ROWS_OF_A_BLOCK), MOST_COUNTS // n))
    work = 8 * ceil_div(n, THREADS) + 4 * n * blocks
    capacity = width // b.shape("count")[1]
    more: dict[str, Any] = {"extra": (blocks,), "work_bytes": work}
    b.launch("by_latent_clear", over(blocks * n), **more)
    b.launch("by_latent_count", over_cells(b.m, width), **more)
    b.launch("by_latent_sum", over_runs(n), **more)
    b.launch("by_latent_runs", ((1, 1, 1), (1024 if n > THREADS * THREADS else 32, 1, 1)), **more)
    b.launch("by_latent_start", over_runs(n), **more)
    b.launch("by_latent_place", ((blocks, 1, 1), (width_of_block(capacity), 1, 1)), **more)


def dead(b: Binder, op) -> None:
    n = b.shape("since")[1]
    work = 8 * ceil_div(n, THREADS)
    b.launch("dead_count", over_runs(n), work_bytes=work)
    b.launch("dead_runs", ((1, 1, 1), (1024 if n > THREADS * THREADS else 32, 1, 1)), work_bytes=work)
    b.launch("dead_list", over_runs(n), work_bytes=work)


def latent_grad(b: Binder, op) -> None:
    n, p = b.shape("w")
    if op in together(b):
        if b.has("db"):
            b.launch("latent_grad_bias", over_latents(n))
        latent_update(b, op, n, p)
        return
    if b.has("db"):
        b.launch("latent_grad_bias", over_latents(n))
    if not b.has("dw"):
        return
    x = width_of_block(ceil_div(p, WIDE))
    b.launch("latent_grad", ((min(n, 1 << 20), min(ceil_div(p, x * WIDE), MOST_ASIDE), 1), (x, 1, 1)))
    if b.has("factor") or op.ints["unit"]:
        b.launch("latent_grad_finish", ((min(n, 1 << 20), 1, 1), (width_of_block(p), 1, 1)))


# ---- gradients that the update rule takes as they are made: csrc/cuda/latent_update.cuh ---


def together(b: Binder) -> list[Op]:
    """The ops whose gradients are, in the plan's order: nothing but such ops follows them in their phase."""
    gradients = [op for op in b.plan.ops if op.phase == schema.GRADIENT] if b.both else []
    found: list[Op] = []
    for op in reversed(gradients):
        if op.kind != "latent_grad" or not op.ints["fused"]:
            break
        w, u = (b.plan.buffers[b.plan.index[op.slots[slot]]] for slot in ("w", "u"))
        if w.columns * b.plan.dtype.itemsize > MOST_OF_A_ROW or not b.in_parts(w, u):
            break
        found.insert(0, op)
    return found


def brought_to_unit(b: Binder) -> dict[str, Op]:
    """Weights → the projection of their rows that goes with their update."""
    weights = {op.slots["w"] for op in together(b)}
    unit = schema.PROJECT_KINDS.index("unit")
    found: dict[str, Op] = {}
    for op in b.plan.ops:
        if op.kind == "project" and op.ints["kind"] == unit and op.slots["w"] in weights:
            found.setdefault(op.slots["w"], op)
    return found


def latent_update(b: Binder, op: Op, n: int, p: int) -> None:
    """The gradient's launch, left to the update phase: its record has the rule's states, numbers and parameters too."""
    update = next(o for o in b.plan.ops if o.kind == "update")
    gradient = schema.KIND["latent_grad"]
    unit = op.slots["w"] in brought_to_unit(b)
    width = width_of_block(ceil_div(p * b.plan.dtype.itemsize, PART))
    b.launch("latent_update", ((n, 1, 1), (width, 1, 1)), shared=2 * p * b.plan.dtype.itemsize,
             extra=(len(UPDATE_RULES[update.ints["rule"]].step), int(unit)))  # fmt: skip
    launch: Any = b.launches.pop()
    record = launch.record
    weights = b.plan.buffers[b.plan.index[op.slots["w"]]]
    for i, name in enumerate(("s0", "s1", "s2")):
        if name in update.slots:
            address, _ = b.locate(b.plan.buffers[b.plan.index[update.slots[name]]])
            record["slot"][0, len(gradient.slots) + i] = (address + weights.offset, p, n, p)
    record["i"][0, len(gradient.ints) : len(gradient.ints) + 2] = update.ints["rule"], update.ints["scalar"]
    record["f"][0, : len(schema.KIND["update"].floats)] = [update.floats[f] for f in schema.KIND["update"].floats]
    b.deferred.append(launch)


def latent_sum(b: Binder, op) -> None:
    b.launch("latent_sum", over_latents(b.shape("sum")[1]))


def norm_factor(b: Binder, op) -> None:
    b.launch("norm_factor", over_latents(b.shape("w")[0]))


def bias_grad(b: Binder, op) -> None:
    bias_sum(b, "bias_grad", "dy", b.shape("dy")[1])


def pre_bias_grad(b: Binder, op) -> None:
    n, p = b.shape("w")
    blocks = ceil_div(n, LATENT_BLOCK)
    work = blocks * p * b.plan.dtype.itemsize
    b.launch("pre_bias_blocks", over_cells(blocks, p), work_bytes=work)
    b.launch("pre_bias_sum", over(p), work_bytes=work)
