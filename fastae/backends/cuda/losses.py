"""Losses by rows, distributions, what the encoder sees of the input."""

from __future__ import annotations

from .binder import Binder


def transform_input(b: Binder, op) -> None:
    b.cells("transform_input", "x")


def loss(b: Binder, op) -> None:
    value = op.ints["value"]
    b.rows(op.kind, work_bytes=b.m * 8 * (value >= 0))
    b.mean_value(value)


likelihood = loss


def size_factor(b: Binder, op) -> None:
    b.rows("size_factor")


def distribution(b: Binder, op) -> None:
    b.cells("distribution", "y")
