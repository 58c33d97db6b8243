"""Penalties on weights, projections."""

from __future__ import annotations

from ...plan import schema
from .activities import add_scaled
from .binder import Binder
from .dense import dense, dense_grad
from .latents import brought_to_unit
from .launches import THREADS, Grid, ceil_div, over_rows

FLAT_BLOCK = 4096  # elements whose sum one block makes


def over_blocks(blocks: int) -> tuple[Grid, Grid]:
    """Grid and block for ``flat_sums``."""
    return (max(1, min(blocks, 16384)), 1, 1), (THREADS, 1, 1)


def orthogonality(b: Binder, op) -> None:
    n, w, gram, product = b.shape("w")[0], op.slots["w"], op.slots["gram"], op.slots["product"]
    if op.ints["columns"]:
        with b.as_op("dense_grad", n, dz=w, x=w, dw=gram) as record:
            dense_grad(b, record)
    else:
        with b.as_op("dense", n, x=w, w=w, y=gram) as record:
            dense(b, record)
    q = b.shape("gram")[0]
    b.launch("orthogonality_rest", over_rows(q), work_bytes=q * 8)
    b.sum_value(op.ints["value"], q, 0.5 * op.floats["strength"])
    left, right = (w, gram) if op.ints["columns"] else (gram, w)
    with b.as_op("dense", n, x=left, w=right, y=product, transposed=1) as record:
        dense(b, record)
    add_scaled(b, "dw", "product", 2 * op.floats["strength"])


def projector(b: Binder, op) -> None:
    n, names = b.shape("w")[0], op.slots
    with b.as_op("dense", n, x=names["w"], w=names["v"], y=names["coordinates"]) as record:
        dense(b, record)
    with b.as_op("dense", n, x=names["coordinates"], w=names["v"], y=names["product"], transposed=1) as record:
        dense(b, record)
    b.launch("projector_rest", over_rows(n), work_bytes=n * 8)
    b.sum_value(op.ints["value"], n, 0.5 * op.floats["strength"])
    add_scaled(b, "dw", "product", op.floats["strength"])


def scale_rows(b: Binder, op) -> None:
    b.cells("scale_rows", "w")


def weight_penalty(b: Binder, op) -> None:
    rows, columns = b.shape("w")
    blocks = ceil_div(rows * columns, FLAT_BLOCK)
    b.launch("weight_penalty", over_blocks(blocks), work_bytes=blocks * 8)
    b.sum_value(op.ints["value"], blocks)


def project(b: Binder, op) -> None:
    if op is brought_to_unit(b).get(op.slots["w"]):
        return
    kind = schema.PROJECT_KINDS[op.ints["kind"]]
    if kind in ("unit", "max_norm"):
        b.launch(f"project_{kind}", over_rows(b.shape("w")[0]))
    else:
        b.cells("project_elements", "w")
