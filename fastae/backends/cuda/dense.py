"""Rows in, dense layers and their gradients, activations."""

from __future__ import annotations

from .binder import Binder, Grid, ceil_div, over, over_cells

SEGMENT = 256  # rows of a chain of a weight's gradient
TILES = {"small": 32, "middle": 64, "large": 128}


def gather(b: Binder, op) -> None:
    b.launch("gather", over_cells(b.m, b.shape("x")[1])[0:2])


def take(b: Binder, op) -> None:
    b.launch("take", over_cells(b.m, b.shape("x")[1]))


def pack(b: Binder, op) -> None:
    """Nothing to do: products take weights as they lie."""


def tile(b: Binder, rows: int, columns: int) -> tuple[str, tuple[Grid, Grid]]:
    """The largest tile that gives every multiprocessor a block, with its grid."""
    for name in ("large", "middle", "small"):
        size = TILES[name]
        x, y = ceil_div(columns, size), ceil_div(rows, size)
        if x * y >= b.n_multiprocessors or name == "small":
            break
    return name, ((max(1, x), max(1, min(y, 65535)), 1), (256, 1, 1))


def dense(b: Binder, op) -> None:
    name, threads = tile(b, b.m, b.shape("y")[1])
    b.launch(f"dense_{name}", threads)


def dense_grad(b: Binder, op) -> None:
    n, k = b.shape("dz")[1], b.shape("x")[1]
    item = b.plan.dtype.itemsize
    segments = ceil_div(b.m, SEGMENT)
    if b.has("dw"):
        name, ((x, y, _), block) = tile(b, n, k)
        split = segments > 1 and x * y * 2 <= b.n_multiprocessors
        depth = min(segments, ceil_div(2 * b.n_multiprocessors, x * y)) if split else 1
        b.launch(f"weight_grad_{name}", ((x, y, depth), block), work_bytes=segments * n * k * item * split,
                 extra=(int(split),))  # fmt: skip
        if split:
            b.launch("weight_grad_sum", over_cells(n, k), work_bytes=segments * n * k * item)
    if b.has("db"):
        bias_sum(b, "dense_bias", n)
    if b.has("dx"):
        name, threads = tile(b, b.m, k)
        b.launch(f"input_grad_{name}", threads)


def bias_sum(b: Binder, kernel: str, n: int) -> None:
    """The two launches of a sum over rows: chains over segments, then those in order."""
    segments = ceil_div(b.m, SEGMENT)
    work = segments * n * b.plan.dtype.itemsize
    b.launch(f"{kernel}_segments", over_cells(segments, n), work_bytes=work)
    b.launch(f"{kernel}_sum", over(n), work_bytes=work)


def activation(b: Binder, op) -> None:
    b.cells("activation", "x")


def activation_grad(b: Binder, op) -> None:
    b.cells("activation_grad", "dy")


def dropout(b: Binder, op) -> None:
    b.cells("dropout", "x")


def add(b: Binder, op) -> None:
    b.cells("add", "x")


def maxout(b: Binder, op) -> None:
    b.cells("maxout", "y")


def maxout_grad(b: Binder, op) -> None:
    b.cells("maxout_grad", "dy")


def softmax(b: Binder, op) -> None:
    b.rows("softmax")


def softmax_grad(b: Binder, op) -> None:
    b.rows("softmax_grad")
