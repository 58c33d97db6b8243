"""Losses by rows, distributions, what the encoder sees of the input."""

from __future__ import annotations

from .binder import Binder
from .launches import THREADS

WIDE = 256  # columns from which a block takes a row of a loss, where rows are too few for sixteen threads each
MOST_WIDE_ROWS = 64  # for each multiprocessor


def transform_input(b: Binder, op) -> None:
    b.cells("transform_input", "x")


def loss(b: Binder, op) -> None:
    by_columns = op.ints["loss"] >= 0  # not a function of the whole row
    few = b.m <= MOST_WIDE_ROWS * b.n_multiprocessors
    if not by_columns or b.registered() or b.shape("target")[1] < WIDE or not few:
        b.valued_rows("loss")
        return
    valued = op.ints["value"] >= 0
    copy = b.copy("dy")[2] if b.has("dy") else 0
    b.launch("loss_wide", ((max(1, min(b.m, 16384)), 1, 1), (THREADS, 1, 1)), work_bytes=8 * b.m * valued,
             extra=(int(valued), 0, copy))  # fmt: skip
    b.mean_value(op.ints["value"])


def likelihood(b: Binder, op) -> None:
    b.valued_rows("likelihood")


def size_factor(b: Binder, op) -> None:
    b.rows("size_factor")


def distribution(b: Binder, op) -> None:
    b.cells("distribution", "y")
