"""Work on the flat parameter buffer."""

from __future__ import annotations

from ...catalog import UPDATE_RULES
from ...plan import schema
from .binder import Binder
from .latents import together
from .launches import ceil_div, in_one_block, over, over_fours
from .regularisers import FLAT_BLOCK, over_blocks


def clip_gradient(b: Binder, op) -> None:
    rows, columns = b.shape("g")
    n = rows * columns
    if schema.CLIP_MODES[op.ints["mode"]] == "value":
        b.launch("clip_values", over(n))
        return
    blocks = ceil_div(n, FLAT_BLOCK)
    memory = (blocks + 1) * 8
    b.launch("clip_squares", over_blocks(blocks), work_bytes=memory)
    b.launch("clip_factor", in_one_block(blocks), work_bytes=memory)
    b.launch("clip_scale", over(n), work_bytes=memory)


def update(b: Binder, op) -> None:
    """The rule on all parameters that no gradient was given to it with."""
    rows, columns = b.shape("w")
    done = [b.plan.buffers[b.plan.index[o.slots["w"]]] for o in together(b)]
    places = sorted((w.offset // b.plan.dtype.itemsize, w.rows * w.columns) for w in done)
    first = 0
    for start, count in [*places, (rows * columns, 0)]:
        if start > first:
            extra = (len(UPDATE_RULES[op.ints["rule"]].step), first, start - first)
            b.launch("update", over_fours(1, start - first), extra=extra)
        first = start + count
