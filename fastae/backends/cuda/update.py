"""Work on the flat parameter buffer."""

from __future__ import annotations

from ...catalog import UPDATE_RULES
from .binder import Binder, over


def update(b: Binder, op) -> None:
    rows, columns = b.shape("w")
    b.launch("update", over(rows * columns), extra=(len(UPDATE_RULES[op.ints["rule"]].step),))
