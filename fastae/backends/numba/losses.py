"""Losses by rows."""

import numpy as np
from numba import njit

from ...plan.schema import MULTINOMIAL
from . import formulas
from .dense import flat, parameters

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def row_sums(value, out):
    for r in range(value.shape[0]):
        total = 0.0
        for j in range(value.shape[1]):
            total += value[r, j]
        out[r] = total


@_jit
def scale_rows(dy, factor):
    for r in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            dy[r, j] *= factor[r]


@_jit
def multinomial_rows(z, t, out, dy, with_gradient):
    """out[r] ← Σ t (log Σ exp z − z); dy ← softmax(z) Σ t − t."""
    for r in range(z.shape[0]):
        top = z[r, 0]
        for j in range(z.shape[1]):
            if z[r, j] > top or z[r, j] != z[r, j]:
                top = z[r, j]
        total = sums = dot = 0.0
        for j in range(z.shape[1]):
            total += t[r, j]
            sums += np.exp(z[r, j] - top)
            dot += t[r, j] * (z[r, j] - top)
        out[r] = total * np.log(sums) - dot
        if with_gradient:
            for j in range(z.shape[1]):
                dy[r, j] = np.exp(z[r, j] - top) * (total / sums) - t[r, j]


def loss(step, op, v):
    y, t, dy = v["y"], v["target"], v.get("dy")
    scale, m = op.floats["scale"], len(y)
    weight = v["weight"][:, 0].astype(np.float64) if "weight" in v else np.ones(m)
    rows = np.empty(m)
    if op.ints["loss"] == MULTINOMIAL:
        multinomial_rows(y, t, rows, y if dy is None else dy, dy is not None)
    else:
        value, slope = formulas.LOSS[op.ints["loss"]]
        p, each = parameters(op, y.dtype), np.empty_like(y)
        value(flat(y), flat(t), p, flat(each))
        row_sums(each, rows)
        if dy is not None:
            slope(flat(y), flat(t), p, flat(dy))
    rows *= scale
    if "row_value" in v:
        v["row_value"][:, 0] = rows
    step.add_value(op, float((rows * weight).sum() / m))
    if dy is not None:
        scale_rows(dy, (weight * (scale / m)).astype(dy.dtype))
