"""Losses by rows, distributions, what the encoder sees of the input."""

from __future__ import annotations

from .binder import Binder


def transform_input(b: Binder, op) -> None:
    b.cells("transform_input", "x")


def loss(b: Binder, op) -> None:
    b.valued_rows("loss")


def likelihood(b: Binder, op) -> None:
    b.valued_rows("likelihood")


def size_factor(b: Binder, op) -> None:
    b.rows("size_factor")


def distribution(b: Binder, op) -> None:
    b.cells("distribution", "y")
