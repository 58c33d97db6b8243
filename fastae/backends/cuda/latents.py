"""Codes by latents: lists of entries, gradients of the rows of w, which latents are dead."""

from __future__ import annotations

from typing import Any

from .binder import THREADS, Binder, Grid, ceil_div, over, over_cells
from .dense import bias_sum

ROWS_OF_A_BLOCK = 32  # rows of the batch whose entries one block of threads places
MOST_COUNTS = 1 << 24  # counts of latents by blocks of rows
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
    if b.has("db"):
        b.launch("latent_grad_bias", over_latents(n))
    if not b.has("dw"):
        return
    x = width_of_block(ceil_div(p, WIDE))
    b.launch("latent_grad", ((min(n, 1 << 20), min(ceil_div(p, x * WIDE), 65535), 1), (x, 1, 1)))
    if b.has("factor") or op.ints["unit"]:
        b.launch("latent_grad_finish", ((min(n, 1 << 20), 1, 1), (width_of_block(p), 1, 1)))


def latent_sum(b: Binder, op) -> None:
    b.launch("latent_sum", over_latents(b.shape("sum")[1]))


def norm_factor(b: Binder, op) -> None:
    b.launch("norm_factor", over_latents(b.shape("w")[0]))


def bias_grad(b: Binder, op) -> None:
    bias_sum(b, "bias_grad", b.shape("dy")[1])


def pre_bias_grad(b: Binder, op) -> None:
    n, p = b.shape("w")
    blocks = ceil_div(n, LATENT_BLOCK)
    work = blocks * p * b.plan.dtype.itemsize
    b.launch("pre_bias_blocks", over_cells(blocks, p), work_bytes=work)
    b.launch("pre_bias_sum", over(p), work_bytes=work)
