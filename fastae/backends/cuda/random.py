"""Random numbers: corruption of the input, dropout, neighbours in a graph."""

from __future__ import annotations

from .binder import Binder
from .launches import over


def noise(b: Binder, op) -> None:
    b.fours("noise", "x")


def dropout(b: Binder, op) -> None:
    b.fours("dropout", "x")


def neighbour(b: Binder, op) -> None:
    b.launch("neighbour", over(b.m))
