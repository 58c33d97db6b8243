"""Products of 8-bit integers, and codes stored in fewer bits."""

from __future__ import annotations

from .binder import Binder
from .dense import tile
from .launches import over_rows


def pack_int8(b: Binder, op) -> None:
    b.launch("pack_int8", over_rows(b.shape("w")[0]))


def quantize(b: Binder, op) -> None:
    b.rows("quantize")


def dense_int8(b: Binder, op) -> None:
    name, threads = tile(b, b.m, b.shape("y")[1])
    own = b.registered() > 0
    b.launch(f"dense_int8_{name}", threads, extra=(int(own),))
    if own:  # only this kernel knows formulas of run time
        given = {name: op.slots.get(name) for name in ("b", "y")} | op.floats
        with b.as_op("dense", activation=op.ints["activation"], **given):
            b.fours("dense_finish", "y")


def store_half(b: Binder, op) -> None:
    b.cells("store_half", "x")


def store_int8(b: Binder, op) -> None:
    b.rows("store_int8")
