"""Gradients of codes whose entries pass a threshold or a gate."""

import math

import numpy as np
from numba import njit

from ...plan import schema
from ..reference.codes import strength
from .codes import norms_of, sizes, wide

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def above_threshold(pre, idx, count, c, s, t):
    """Of each row (m,) float64."""
    n = np.zeros(pre.shape[0])
    for r in range(pre.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                n[r] += pre[r, i] > t[idx[r, i]]
    return n


@_jit
def jump_entries(pre, val, idx, count, c, s, t, logarithm, above, width, in_step, in_val, slope, dval, dz, dtheta):
    """dz, dtheta; the sum of in_val tanh(slope_j val). slope of one element holds for all; in_step (m,)."""
    total = 0.0
    for r in range(pre.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                j = idx[r, i]
                d, z = np.float64(dval[r, i]), np.float64(pre[r, i])
                if in_val != 0:
                    e = slope[j if len(slope) > 1 else 0]
                    h = math.tanh(e * val[r, i])
                    total += in_val * h
                    d += in_val * e * (1.0 - h * h)
                dz[r, i] = d if z > t[j] else 0
                near = abs(z - t[j]) < width / 2
                of_step = 0.0 if above and not z > t[j] else in_step[r]
                slant = -(t[j] * d + of_step) / width if near else 0.0
                dtheta[r, i] = slant * t[j] if logarithm else slant
    return total


def jumprelu_grad(step, op, v):
    m, s, logarithm = len(v["count"]), strength(step, op), bool(op.ints["logarithm"])
    t = v["threshold"][0].astype(np.float64)
    t = np.exp(t) if logarithm else t
    code = wide(v["idx"]), wide(v["count"]), *sizes(v)
    pre = wide(v["pre"])
    active = above_threshold(pre, *code, t)
    l0 = active.sum() / m
    penalty = schema.JUMP_PENALTIES[op.ints["penalty"]]
    in_step, in_val, slope = 0.0, 0.0, np.ones(1)
    if penalty == "step":
        step.add_value(op, s * l0)
        in_step = s / m
    elif penalty in ("quadratic", "row_quadratic"):
        ratio = (l0 if penalty == "quadratic" else active) / op.floats["target"] - 1.0
        step.add_value(op, s * np.mean(ratio * ratio))
        in_step = 2.0 * s * ratio / (op.floats["target"] * m)
    else:
        in_val, slope = s / m, op.floats["p0"] * norms_of(v)
    value = jump_entries(pre, wide(v["val"]), *code, t, logarithm, bool(op.ints["above"]), op.floats["bandwidth"],
                         np.full(m, in_step, np.float64), float(in_val), slope, wide(v["dval"]), wide(v["dz"]),
                         wide(v["dtheta"]))  # fmt: skip
    step.add_value(op, value)
    if op.ints["l0"] >= 0:
        step.job.values[step.number, op.ints["l0"]] += l0


@_jit
def gate_entries(pre, val, idx, count, c, s, r_log, b_gate, penalty, dval, dgate, dz, dmag, dr):
    total = 0.0
    for r in range(pre.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                j = idx[r, i]
                z, each = np.float64(pre[r, i]), penalty[j if len(penalty) > 1 else 0]
                total += each * z
                e, gate = math.exp(r_log[j]), dgate[r, i] + each
                mag = np.float64(dval[r, i]) if val[r, i] > 0 else 0.0
                dgate[r, i], dmag[r, i], dr[r, i], dz[r, i] = gate, mag, mag * e * (z - b_gate[j]), gate + mag * e
    return total


def gated_grad(step, op, v):
    q = strength(step, op) / len(v["count"]) * norms_of(v)
    step.add_value(op, gate_entries(
        wide(v["pre"]), wide(v["val"]), wide(v["idx"]), wide(v["count"]), *sizes(v), v["r"][0], v["b_gate"][0], q,
        *(wide(v[name]) for name in ("dval", "dgate", "dz", "dmag", "dr"))))  # fmt: skip
