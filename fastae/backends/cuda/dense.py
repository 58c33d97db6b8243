"""Rows in, dense layers and their gradients, activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...catalog import INDEX
from . import tensor
from .binder import Binder
from .launches import MOST_ASIDE, THREADS, Grid, ceil_div, over_cells
from .lt import Matrix

SEGMENT = 256  # rows of a chain of a weight's gradient
PARTS_BYTES = 1 << 28  # of segments of a weight's gradient that wait to be added
TILES = {"large": (128, 128), "middle": (64, 64), "small": (32, 32)}


def gather(b: Binder, op) -> None:
    b.fours("gather", "x", extra=b.copy("x"))


def take(b: Binder, op) -> None:
    b.fours("take", "x", extra=b.copy("x"))


def pack(b: Binder, op) -> None:
    """Nothing to do: products take weights as they lie."""


def tile(b: Binder, rows: int, columns: int, times: int = 1) -> tuple[str, tuple[Grid, Grid]]:
    """The largest tile that gives every multiprocessor a block, with its grid, for so many products side by side."""
    for name, (height, width) in TILES.items():
        if name == "large" and b.plan.dtype == np.float64:
            width = 64
        x, y = ceil_div(columns, width), ceil_div(rows, height)
        if x * y * times >= b.n_multiprocessors or name == "small":
            break
    return name, ((max(1, x), max(1, min(y, MOST_ASIDE)), 1), (256, 1, 1))


def dense(b: Binder, op) -> None:
    (_, k), n = b.shape("x"), b.shape("y")[1]
    if not b.cublas:
        name, threads = tile(b, b.m, n)
        own = b.registered() > 0
        b.launch(f"dense_{name}", threads, extra=(int(own),))
        if own:  # only this kernel knows formulas of run time
            b.fours("dense_finish", "y")
        return
    x, w = b.operands(("x", False), ("w", not op.ints["transposed"]))
    if tensor.chain(b, "y", "x") or tensor.layer(b, "dense", x, w, n, k, "y"):
        return
    fused = epilogue(b, op)
    b.fours("dense_finish", "y", extra=b.copy("y") if fused is None else ())
    finish = b.launches.pop()
    wanted = any((fused or {}).values())
    b.product(x, w, b.matrix("y"), b.m, n, k, **fused or {}, instead=finish if wanted else None)
    if fused is None:
        b.launches.append(finish)


def epilogue(b: Binder, op) -> dict[str, Any] | None:
    """What the product does itself of what follows it, where that is all; None where a kernel has to."""
    rectified = op.ints["activation"] == INDEX["activation"]["relu"]
    if b.has("z") or op.floats["rate"] or (op.ints["activation"] and not rectified):
        return None
    wanted = {name for name, on in (("bias", b.has("b")), ("relu", rectified)) if on}
    if wanted and (b.plan.dtype == np.float64 or not wanted <= b.driver.epilogues):
        return None
    return {"bias": b.address("b") if b.has("b") else 0, "relu": rectified}


def dense_grad(b: Binder, op) -> None:
    n, k = b.shape("dz")[1], b.shape("x")[1]
    if b.cublas:
        multiply_gradients(b, op, n, k)
        return
    bias_gradient(b, n)
    if b.has("dw"):
        with b.beside("dz", "x", "dw"):
            weight_gradient(b, n, k)
    if b.has("dx"):
        name, threads = tile(b, b.m, k)
        own = b.registered() > 0
        b.launch(f"input_grad_{name}", threads, extra=(int(own),))
        if own:
            b.fours("dense_grad_finish", "dx")


def bias_gradient(b: Binder, n: int) -> None:
    if b.has("db"):
        with b.beside("dz", "db"):
            bias_sum(b, "dense_bias", "dz", n)


def weight_gradient(b: Binder, n: int, k: int) -> None:
    """dw by segments of rows: within a block, or side by side where the blocks are too few for the GPU."""
    segments, size = ceil_div(b.m, SEGMENT), n * k * b.plan.dtype.itemsize
    name, ((x, y, _), block) = tile(b, n, k)
    if segments == 1 or (x * y >= b.n_multiprocessors and name != "small"):
        b.launch(f"weight_grad_{name}", ((x, y, 1), block))
        return
    most = max(1, min(segments, PARTS_BYTES // size, MOST_ASIDE))
    name, ((x, y, _), block) = tile(b, n, k, most)
    for first in range(0, segments, most):
        count = min(most, segments - first)
        more: dict[str, Any] = {"work_bytes": count * size, "extra": (1, first, count)}
        b.launch(f"weight_grad_{name}", ((x, y, count), block), **more)
        b.launch("weight_grad_sum", over_cells(n, k), **more)


def multiply_gradients(b: Binder, op, n: int, k: int) -> None:
    """dw and dx by cuBLASLt; dz, which both read, is rounded once where products are in bfloat16."""
    transposed, add = bool(op.ints["transposed"]), bool(op.ints["add"])
    wanted = [("dz", False)] + [("x", False)] * b.has("dw") + [("w", transposed)] * b.has("dx")
    dz, *others = b.operands(*wanted)
    if b.has("dx") and tensor.chain(b, "dx", "dz"):
        for one in b.group:
            with b.bound_to(one):
                made = weights_together(b, *b.operands(("dz", False), ("x", False)))
                assert made, "a chain's weight gradients are made together"
        return
    values = others.pop(0) if b.has("dw") else None
    if values is None or not weights_together(b, dz, values):
        bias_gradient(b, n)
        if values is not None:
            with b.beside("dz", "x", "dw"):
                if transposed:  # dw (k, n) = xT dz
                    b.product(Matrix(values.address, values.ld, True), dz, b.matrix("dw"), k, n, b.m, add=add)
                else:
                    b.product(Matrix(dz.address, dz.ld, True), values, b.matrix("dw"), n, k, b.m, add=add)
    if b.has("dx") and not tensor.layer(b, "input_grad", dz, others[0], k, n, "dx"):
        b.product(dz, others[0], b.matrix("dx"), b.m, k, n)
        if b.has("saved"):
            b.fours("dense_grad_finish", "dx", extra=b.copy("dx"))


def weights_together(b: Binder, dz: Matrix, x: Matrix) -> bool:
    """Makes dw and db with those of other layers, if they are few and small."""
    summed = b.has("db") and not tensor.normalised(b)
    if not tensor.weight_gradient(b, dz, x, b.address("db") if summed else 0):
        return False
    if not summed:
        bias_gradient(b, b.shape("dz")[1])
    return True


def bias_sum(b: Binder, kernel: str, source: str, n: int) -> None:
    """Sums over the rows of ``source`` (m, n): chains over segments, then those in order, in one launch where a block
    has all of them. Columns go in strips that a grid's y is long enough for.
    """
    segments, item = ceil_div(b.m, SEGMENT), b.plan.dtype.itemsize
    chains = 128 // item
    together = segments <= 4
    width = chains // 4 if together else chains
    for first in range(0, n, width * MOST_ASIDE):
        columns = min(width * MOST_ASIDE, n - first)
        strip = {slot: (first, columns) for slot in (source, "db")}
        grid = (1 if together else segments, ceil_div(columns, width), 1)
        work = segments * columns * item * (not together)
        b.launch(f"{kernel}_segments", (grid, (width, THREADS // width, 1)), work_bytes=work, extra=(int(together),),
                 strip=strip)  # fmt: skip
        if not together:
            b.launch(f"{kernel}_sum", ((ceil_div(columns, 32), 1, 1), (32, 1, 1)), work_bytes=work, strip=strip)


def activation(b: Binder, op) -> None:
    b.fours("activation", "x")


def activation_grad(b: Binder, op) -> None:
    b.fours("activation_grad", "dy")


def add(b: Binder, op) -> None:
    b.fours("add", "x")


def maxout(b: Binder, op) -> None:
    b.cells("maxout", "y")


def maxout_grad(b: Binder, op) -> None:
    b.cells("maxout_grad", "dy")


def softmax(b: Binder, op) -> None:
    b.rows("softmax")


def softmax_grad(b: Binder, op) -> None:
    b.rows("softmax_grad")
