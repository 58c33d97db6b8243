"""Penalties on weights, projections."""

import numpy as np
from numba import njit

from ...plan.schema import PROJECT_KINDS
from ..reference.regularisers import orthogonality, projector, scale_rows  # BLAS products, on weights only
from . import formulas
from .dense import flat, parameters

_jit = njit(cache=True, nogil=True, error_model="numpy")

__all__ = ["orthogonality", "project", "projector", "scale_rows", "weight_penalty"]


def weight_penalty(step, op, v):
    value, _, smooth, _ = formulas.PENALTY[op.ints["penalty"]]
    w = v["w"]
    p, each = parameters(op, w.dtype), np.empty_like(w)
    value(flat(w), p, flat(each))
    step.add_value(op, float(each.sum(dtype=np.float64)))
    smooth(flat(w), p, flat(each))
    v["dw"] += each


@_jit
def limit_norms(w, limit):
    for r in range(w.shape[0]):
        square = 0.0
        for j in range(w.shape[1]):
            square += w[r, j] * w[r, j]
        norm = np.sqrt(square)
        if norm > limit:
            for j in range(w.shape[1]):
                w[r, j] *= limit / norm


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def to_unit_rows(w):
    for r in range(w.shape[0]):
        square = 0.0
        for j in range(w.shape[1]):
            square += np.float64(w[r, j]) * w[r, j]
        if square > 0:
            norm = np.sqrt(square)
            for j in range(w.shape[1]):
                w[r, j] /= norm


def project(step, op, v):
    w = v["w"]
    p = parameters(op, w.dtype)
    kind = PROJECT_KINDS[op.ints["kind"]]
    if kind == "prox":
        rate = w.dtype.type(step.job.scalars[step.number, op.ints["scalar"]])
        formulas.PENALTY[op.ints["penalty"]][3](flat(w), rate, p, flat(w))
    elif kind == "max_norm":
        limit_norms(w, op.floats["p0"])
    elif kind == "range":
        np.clip(w, p[0], p[1], out=w)
    elif kind == "unit":
        to_unit_rows(w)
    else:
        np.maximum(w, 0, out=w)
