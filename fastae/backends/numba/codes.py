"""Codes of sparse autoencoders: rows in and out, decoding, gradients by entry. See `plan.schema` for the layout.

Loops over a code take its arrays, then the number c of its segments and their capacity s.
"""

import math

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import as_strided

from ...plan import schema
from ..reference.codes import active_k, strength
from .candidates import dot, kth_largest

_jit = njit(cache=True, nogil=True, error_model="numpy")


def wide(a):
    """The array as one without gaps: its rows reach to the next one's start, and only its own columns may be touched.

    So loops are compiled for one layout, and parts of buffers need no copies.
    """
    if a.flags.c_contiguous:
        return a
    return as_strided(a, (len(a), a.strides[0] // a.itemsize), (a.strides[0], a.itemsize))


def optional(v, name, dtype):
    """A row of numbers; empty without."""
    return np.ascontiguousarray(v[name][0]) if name in v else np.empty(0, dtype)


def sizes(v, name="val"):
    """(c, s): segments of a row, and their capacity."""
    c = v["count"].shape[1]
    return c, v[name].shape[1] // c


def centre(step, op, v):
    np.multiply(v["x"], v["x"].dtype.type(op.floats["scale"]), out=v["y"])
    if "b" in v:
        np.subtract(v["y"], v["b"], out=v["y"])


@_jit
def standardize_rows(x, p, epsilon, statistics, y):
    for r in range(x.shape[0]):
        mean = square = 0.0
        for j in range(p):
            mean += x[r, j]
        mean /= p
        for j in range(p):
            d = x[r, j] - mean
            square += d * d
        deviation = (math.sqrt(square / (p - 1)) if p > 1 else 0.0) + epsilon
        if not deviation < 1e300:
            deviation = math.nan
        statistics[r, 0], statistics[r, 1] = mean, deviation
        for j in range(p):
            y[r, j] = (x[r, j] - mean) / deviation


def standardize(step, op, v):
    x = v["x"]
    statistics = wide(v["statistics"]) if "statistics" in v else np.empty((len(x), 2))
    standardize_rows(wide(x), x.shape[1], op.floats["epsilon"], statistics, wide(v["y"]))


@_jit
def restore_rows(y, p, statistics, out):
    for r in range(y.shape[0]):
        for j in range(p):
            out[r, j] = y[r, j] * statistics[r, 1] + statistics[r, 0]


def exponential(step, op, v):
    np.exp(v["x"], out=v["y"])


def restore(step, op, v):
    restore_rows(wide(v["y"]), v["y"].shape[1], wide(v["statistics"]), wide(v["out"]))


@_jit
def narrow_rows(val, idx, count, k, s, magnitude, val_out, idx_out, count_out):
    score, sorted_score = np.empty(s), np.empty(s)
    for r in range(val.shape[0]):
        n = min(count[r, 0], s)
        for i in range(n):
            e = val[r, i]
            score[i] = sorted_score[i] = -np.inf if e != e else abs(e) if magnitude else e
        bound, ties = -np.inf, max(n, 0)
        if 0 < k < n:
            bound, ties = kth_largest(sorted_score[:n], k), k
            for i in range(n):
                ties -= score[i] > bound
        kept = 0
        for i in range(n if k > 0 else 0):
            if score[i] > bound or (score[i] == bound and ties > 0):
                ties -= score[i] == bound
                val_out[r, kept], idx_out[r, kept] = val[r, i], idx[r, i]
                kept += 1
        count_out[r, 0] = min(count[r, 0], kept)


def narrow(step, op, v):
    narrow_rows(wide(v["val"]), wide(v["idx"]), wide(v["count"]), active_k(step, op), v["val"].shape[1],
                bool(op.ints["magnitude"]), wide(v["val_out"]), wide(v["idx_out"]), wide(v["count_out"]))  # fmt: skip


@_jit
def gated_entries(pre, idx, count, c, s, r_log, b_gate, b_mag, val):
    for r in range(pre.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                j = idx[r, i]
                z = math.exp(r_log[j]) * (np.float64(pre[r, i]) - b_gate[j]) + b_mag[j]
                val[r, i] = 0 if z < 0 else z


def gated_code(step, op, v):
    gated_entries(wide(v["pre"]), wide(v["idx"]), wide(v["count"]), *sizes(v), v["r"][0], v["b_gate"][0],
                  v["b_mag"][0], wide(v["val"]))  # fmt: skip


@_jit
def group_of(groups, j):
    """The first group that ends behind latent j; their number if none does."""
    for g in range(len(groups)):
        if j < groups[g]:
            return g
    return len(groups)


@_jit
def decode_rows(val, idx, count, c, s, w, b, groups, y):
    p = w.shape[1]
    for r in range(val.shape[0]):
        for g in range(max(len(groups), 1)):
            block = y[r, g * p : (g + 1) * p]
            if g == 0 and len(b):
                block[:] = b
            else:
                block[:] = 0
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                g = group_of(groups, idx[r, i])
                if g == len(groups) > 0:
                    continue
                e, latent, block = val[r, i], w[idx[r, i]], y[r, g * p : (g + 1) * p]
                for j in range(p):
                    block[j] += e * latent[j]
        for i in range(p, len(groups) * p):
            y[r, i] += y[r, i - p]


def decode(step, op, v):
    w = np.ascontiguousarray(v["w"])
    decode_rows(wide(v["val"]), wide(v["idx"]), wide(v["count"]), *sizes(v), w, optional(v, "b", w.dtype),
                optional(v, "groups", np.int32), wide(v["y"]))  # fmt: skip


@_jit
def spread(target, base, with_base, p):
    """mean_r |t − mean t|², t = target − [base]."""
    m = target.shape[0]
    mean, total = np.zeros(p), 0.0
    for r in range(m):
        for j in range(p):
            mean[j] += np.float64(target[r, j]) - base[r, j] if with_base else target[r, j]
    mean /= m
    for r in range(m):
        for j in range(p):
            t = np.float64(target[r, j]) - base[r, j] if with_base else np.float64(target[r, j])
            total += (t - mean[j]) ** 2
    return total / m


@_jit
def error_rows(y, target, base, with_base, weight, p, factor, dy, with_gradient):
    total = 0.0
    for r in range(y.shape[0]):
        a = weight[r] if len(weight) else 1.0
        square = 0.0
        for j in range(p):
            d = np.float64(y[r, j]) - target[r, j]
            if with_base:
                d += base[r, j]
            square += d * d
            if with_gradient:
                dy[r, j] = 2.0 * factor * a * d
        total += a * square
    return factor * total


def squared_error(step, op, v):
    y, target, with_base, (m, p) = wide(v["y"]), wide(v["target"]), "base" in v, v["y"].shape
    base = wide(v["base"]) if with_base else target
    weight = np.ascontiguousarray(v["weight"][:, 0], np.float64) if "weight" in v else np.empty(0)
    norm, divisor = schema.ERROR_NORMS[op.ints["norm"]], 1.0
    variance = spread(target, base, with_base, p) if norm == "residual" or op.ints["variance"] >= 0 else 1.0
    if norm != "none":
        divisor = variance if norm == "residual" else spread(target, target, False, p)
    scale = op.floats["scale"]
    if op.ints["k_aux"]:
        scale *= min(v["n_dead"][0, 0] / op.ints["k_aux"], 1.0)
    factor = float(scale / (m * divisor)) if divisor > 0 else 0.0
    with_gradient = "dy" in v
    dy = wide(v["dy"]) if with_gradient else y
    step.add_value(op, error_rows(y, target, base, with_base, weight, p, factor, dy, with_gradient))
    if op.ints["variance"] >= 0:
        step.job.values[step.number, op.ints["variance"]] += variance


def suffix_sum(step, op, v):
    x, blocks = v["x"], op.ints["blocks"]
    p = x.shape[1] // blocks
    for g in range(blocks - 2, -1, -1):
        x[:, g * p : (g + 1) * p] += x[:, (g + 1) * p : (g + 2) * p]


@_jit
def code_gradient(dy, idx, count, c, s, w, dval, groups):
    p = w.shape[1]
    for r in range(dy.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                g = group_of(groups, idx[r, i])
                dval[r, i] = 0 if g == len(groups) > 0 else dot(dy[r, g * p : (g + 1) * p], w[idx[r, i]])


def code_grad(step, op, v):
    code_gradient(wide(v["dy"]), wide(v["idx"]), wide(v["count"]), *sizes(v, "idx"), np.ascontiguousarray(v["w"]),
                  wide(v["dval"]), optional(v, "groups", np.int32))  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def space_norms(w, spaces):
    """|w_j| over each of equal blocks of columns, (spaces, n)."""
    p = w.shape[1] // spaces
    norms = np.empty((spaces, len(w)))
    for j in range(len(w)):
        for q in range(spaces):
            total = 0.0
            for i in range(q * p, (q + 1) * p):
                total += np.float64(w[j, i]) * w[j, i]
            norms[q, j] = math.sqrt(total)
    return norms


def norms_of(v, spaces=1):
    """The sum over the spaces of |w_j|, (n,) float64; a single 1 without w."""
    return space_norms(np.ascontiguousarray(v["w"]), max(spaces, 1)).sum(axis=0) if "w" in v else np.ones(1)


@_jit
def penalize(val, idx, count, c, s, q, dval):
    """dval += q_j where val > 0; the sum of val q_j. q of one element holds for all."""
    total = 0.0
    for r in range(val.shape[0]):
        for part in range(c):
            for i in range(part * s, part * s + min(count[r, part], s)):
                if val[r, i] > 0:
                    each = q[idx[r, i] if len(q) > 1 else 0]
                    total += each * val[r, i]
                    dval[r, i] += each
    return total


def code_penalty(step, op, v):
    q = strength(step, op) / len(v["count"]) * norms_of(v, op.ints["spaces"])
    step.add_value(op, penalize(wide(v["val"]), wide(v["idx"]), wide(v["count"]), *sizes(v), q, wide(v["dval"])))


@_jit
def forget_negative(val, count, c, s, dval):
    for r in range(val.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                if val[r, i] <= 0:
                    dval[r, i] = 0


def relu_grad(step, op, v):
    forget_negative(wide(v["val"]), wide(v["count"]), *sizes(v), wide(v["dval"]))


@_jit
def count_entries(val, count, c, s):
    """Entries with val != 0."""
    n = 0
    for r in range(val.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                n += val[r, i] != 0
    return n


def code_statistics(step, op, v):
    step.add_value(op, count_entries(wide(v["val"]), wide(v["count"]), *sizes(v)) / len(v["count"]))
