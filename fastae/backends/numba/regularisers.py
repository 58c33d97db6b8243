"""Penalties on activities and weights, projections."""

import numpy as np
from numba import njit

from ...plan.schema import PROJECT_KINDS
from . import formulas
from .dense import flat, parameters
from .losses import row_sums

_jit = njit(cache=True, nogil=True, error_model="numpy")


def activity(step, op, v):
    value, slope, _, _ = formulas.PENALTY[op.ints["penalty"]]
    h, dh = v["h"], v["dh"]
    p, each, rows = parameters(op, h.dtype), np.empty_like(h), np.empty(len(h))
    value(flat(h), p, flat(each))
    row_sums(each, rows)
    if "row_value" in v:
        v["row_value"][:, 0] = rows
    step.add_value(op, float(rows.mean()))
    slope(flat(h), p, flat(each))
    dh += each / h.dtype.type(len(h))


def kl_sparsity(step, op, v):
    """weight Σ_j KL(ρ ‖ q_j), q the batch mean cut to [1e-7, 1 − 1e-7], where the derivative is 0."""
    h, rho, weight = v["h"], op.floats["rho"], op.floats["weight"]
    mean = h.mean(axis=0, dtype=np.float64)
    v["mean"][0] = mean
    q = np.clip(mean, 1e-7, 1 - 1e-7)
    step.add_value(op, float(weight * (rho * np.log(rho / q) + (1 - rho) * np.log((1 - rho) / (1 - q))).sum()))
    slope = np.where(q == mean, (1 - rho) / (1 - q) - rho / q, 0.0)
    v["dh"] += (weight / len(h) * slope).astype(h.dtype)


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
    else:
        np.maximum(w, 0, out=w)
