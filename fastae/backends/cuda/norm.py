"""Batch and layer normalisation."""

from __future__ import annotations

from .binder import Binder
from .launches import over_columns


def fold_norm(b: Binder, op) -> None:
    b.cells("fold_norm", "w")


def batch_norm(b: Binder, op) -> None:
    b.launch("batch_norm_statistics", over_columns(b.shape("x")[1]))
    b.cells("batch_norm", "x")


def batch_norm_grad(b: Binder, op) -> None:
    n = b.shape("x")[1]
    b.launch("batch_norm_grad_sums", over_columns(n), work_bytes=2 * n * 8)
    b.cells("batch_norm_grad", "x", work_bytes=2 * n * 8)


def layer_norm(b: Binder, op) -> None:
    b.rows("layer_norm")


def layer_norm_grad(b: Binder, op) -> None:
    b.launch("layer_norm_grad_sums", over_columns(b.shape("x")[1]))
    b.rows("layer_norm_grad")
