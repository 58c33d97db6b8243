"""Work on the flat parameter buffer."""

from __future__ import annotations

from ...catalog import UPDATE_RULES
from ...plan import schema
from .binder import Binder, ceil_div, in_one_block, over
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
    rows, columns = b.shape("w")
    b.launch("update", over(rows * columns), extra=(len(UPDATE_RULES[op.ints["rule"]].step),))
