"""Penalties on activities: elementwise, of pairs of rows, of the Jacobian, of the code's mean and covariance."""

from __future__ import annotations

from ...plan import schema
from .binder import Binder
from .dense import dense, dense_grad
from .launches import float_bits, over_columns, over_rows


def activity(b: Binder, op) -> None:
    b.valued_rows("activity")


def pair(b: Binder, op) -> None:
    b.valued_rows("pair")


def kl_sparsity(b: Binder, op) -> None:
    n = b.shape("h")[1]
    b.launch("kl_means", over_columns(n), work_bytes=2 * n * 8)
    b.cells("kl_sparsity", "dh", work_bytes=2 * n * 8)
    b.sum_value(op.ints["value"], n, op.floats["weight"])


def contractive(b: Binder, op) -> None:
    n = b.shape("h")[1]
    b.launch("contractive_norms", over_rows(n), work_bytes=2 * n * 8)
    b.launch("contractive_sums", over_columns(n), work_bytes=2 * n * 8)
    b.cells("contractive", "h", work_bytes=2 * n * 8)
    b.sum_value(op.ints["value"], n)


def decorrelation(b: Binder, op) -> None:
    n, names, strength = b.shape("h")[1], op.slots, op.floats["strength"]
    b.launch("column_means", over_columns(n))
    b.cells("centre_columns", "h")
    with b.as_op("dense_grad", dz=names["centred"], x=names["centred"], dw=names["covariance"]) as product:
        dense_grad(b, product)
    b.launch("decorrelation_rest", over_rows(n), work_bytes=n * 8)
    b.sum_value(op.ints["value"], n, 0.5 * strength)
    with b.as_op("dense", x=names["centred"], w=names["covariance"], y=names["product"], transposed=1) as product:
        dense(b, product)
    add_scaled(b, "dh", "product", 2 * strength / b.m)


def add_scaled(b: Binder, to: str, what: str, factor: float) -> None:
    """Slot ``to`` += factor times slot ``what``."""
    slots = schema.KIND[b.op.kind].slots  # type: ignore[union-attr]
    b.cells("add_scaled", to, extra=(slots.index(to), slots.index(what), float_bits(factor)))
