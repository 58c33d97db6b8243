"""Codes by entries and by rows: penalties, decoding, the error."""

from __future__ import annotations

from ...plan import schema
from .binder import Binder
from .launches import LANES, MOST_ASIDE, PART, THREADS, ceil_div, over, over_cells, over_rows, power

ONE_BLOCK = ((1, 1, 1), (256, 1, 1))
SUM, MEAN, BY_FACTOR, SCALED_MEAN = range(4)  # what code_value makes of the rows' sums


def sums_bytes(b: Binder) -> int:
    """Work memory of sums over rows: one for each row, and eight numbers of the op's own."""
    return 8 * (b.m + 8)


def value(b: Binder, column: int, how: int) -> None:
    """values[column] += what the op's kernel left as sums of rows."""
    if column >= 0:
        b.launch("code_value", ONE_BLOCK, extra=(column, how))


def norms(b: Binder, op) -> int:
    """Launches that make |w_j| of the latents in a code, where the op weights by them; bytes of work for all of it."""
    if not b.has("w"):
        return sums_bytes(b)
    n = b.shape("w")[0]
    slots = schema.KIND[op.kind].slots
    work = sums_bytes(b) + n * b.plan.dtype.itemsize
    extra = (slots.index("w"), slots.index("idx"), op.ints.get("spaces", 1))
    b.launch("norms_clear", over(n), extra=extra, work_bytes=work)
    b.launch("norms_mark", over_cells(*b.shape("idx")), extra=extra)
    b.launch("norms_make", over_rows(n), extra=extra)
    return work


def code_penalty(b: Binder, op) -> None:
    b.rows("code_penalty", work_bytes=norms(b, op))
    value(b, op.ints["value"], SUM)


def relu_grad(b: Binder, op) -> None:
    b.cells("relu_grad", "val")


def jumprelu_grad(b: Binder, op) -> None:
    tanh = schema.JUMP_PENALTIES[op.ints["penalty"]] == "tanh"
    work = norms(b, op) if tanh else sums_bytes(b)
    b.rows("jumprelu_count", work_bytes=work)
    b.launch("jumprelu_l0", ONE_BLOCK)
    b.rows("jumprelu_grad")
    if tanh:
        value(b, op.ints["value"], SCALED_MEAN)


def gated_code(b: Binder, op) -> None:
    b.cells("gated_code", "val")


def gated_grad(b: Binder, op) -> None:
    b.rows("gated_grad", work_bytes=norms(b, op))
    value(b, op.ints["value"], SUM)


def code_statistics(b: Binder, op) -> None:
    if op.ints["value"] >= 0:
        b.rows("code_statistics", work_bytes=sums_bytes(b))
        value(b, op.ints["value"], MEAN)


def fired(b: Binder, op) -> None:
    b.launch("fired_rows", over(b.shape("since")[1]))
    b.cells("fired_latents", "val")


def average(b: Binder, op) -> None:
    b.cells("average", "w")


def centre(b: Binder, op) -> None:
    b.cells("centre", "y")


def standardize(b: Binder, op) -> None:
    b.rows("standardize")


def exponential(b: Binder, op) -> None:
    b.launch("exponential", over(b.shape("x")[1]))


def restore(b: Binder, op) -> None:
    b.cells("restore", "out")


def decode(b: Binder, op) -> None:
    """Sixteen threads over columns: what all rows need of these columns of w stays in the device's cache."""
    parts = b.in_parts(b.buffer("w"), b.buffer("y"), b.buffer("b"))
    width = PART // b.plan.dtype.itemsize if parts else 1
    x = ceil_div(b.shape("w")[1], width)
    y = power(b.m, 2, THREADS // LANES)
    grid = (max(1, min(ceil_div(b.m, y), 16384)), max(1, min(ceil_div(x, LANES), MOST_ASIDE)), 1)
    b.launch("decode_parts" if parts else "decode", (grid, (LANES, y, 1)))


def code_grad(b: Binder, op) -> None:
    width = b.shape("idx")[1]
    y = power(width, 2, THREADS // LANES)
    grid = (max(1, min(b.m, 1 << 20)), max(1, min(ceil_div(width, y), MOST_ASIDE)), 1)
    b.launch("code_grad", (grid, (LANES, y, 1)))


def suffix_sum(b: Binder, op) -> None:
    b.launch("suffix_sum", over_cells(b.m, b.shape("x")[1] // op.ints["blocks"]))


def squared_error(b: Binder, op) -> None:
    p = b.shape("y")[1]
    norm = schema.ERROR_NORMS[op.ints["norm"]]
    work = sums_bytes(b) + 16 * p
    columns = ((min(ceil_div(p, 32), 16384), 1, 1), (32, LANES, 1))
    if norm == "residual" or op.ints["variance"] >= 0:
        b.launch("squares_by_column", columns, work_bytes=work, extra=(0,))
    if norm == "target":
        b.launch("squares_by_column", columns, work_bytes=work, extra=(1,))
    b.launch("error_factor", ONE_BLOCK, work_bytes=work)
    b.rows("squared_error", work_bytes=work)
    value(b, op.ints["value"], BY_FACTOR)
