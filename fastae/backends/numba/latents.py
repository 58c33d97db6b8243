"""Gradients and counts by latent, from the entries of a code sorted by latent."""

import math

import numpy as np
from numba import njit

from ..reference.codes import strength
from .codes import group_of, optional, sizes, space_norms, wide

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def sort_by_latent(idx, count, c, s, start, entry):
    """By counting: start[j] is the sum of the counts below j, and moves on to start[j + 1] while entries are placed."""
    start[:] = 0
    n = len(start) - 1
    for r in range(idx.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                start[idx[r, i] + 1] += 1
    for j in range(n):
        start[j + 1] += start[j]
    for r in range(idx.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                j = idx[r, i]
                entry[start[j]] = r * c * s + i
                start[j] += 1
    for j in range(n, 0, -1):
        start[j] = start[j - 1]
    start[0] = 0


def by_latent(step, op, v):
    sort_by_latent(wide(v["idx"]), wide(v["count"]), *sizes(v, "idx"), v["start"][0], v["entry"].reshape(-1))


@_jit
def sum_by_latent(coef, columns, positive, start, entry, total):
    for j in range(len(start) - 1):
        total[j] = 0
        for a in range(start[j], start[j + 1]):
            e = coef[entry[a] // columns, entry[a] % columns]
            if not (positive and e < 0):
                total[j] += e


def totals(v, name, positive=False):
    """The sum over each latent's entries, float64."""
    total = np.empty(v["start"].shape[1] - 1)
    sum_by_latent(wide(v[name]), v[name].shape[1], positive, v["start"][0], v["entry"].reshape(-1), total)
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
def project_out(dw, w):
    """dw −= (dw . w) w / |w|²."""
    along = square = 0.0
    for i in range(len(w)):
        along += np.float64(dw[i]) * w[i]
        square += np.float64(w[i]) * w[i]
    if square > 0:
        for i in range(len(w)):
            dw[i] -= along / square * w[i]


@_jit
def gradient_by_latent(coef, columns, start, entry, u, blocks, capacity, groups, w, factor, unit, dw):
    p = w.shape[1]
    n_segments = columns // capacity
    for j in range(len(w)):
        out = dw[j]
        out[:] = 0
        own = group_of(groups, j) if blocks > 1 else 0
        for a in range(start[j], start[j + 1]):
            r, i = entry[a] // columns, entry[a] % columns
            block = own if blocks == 1 or i < capacity else blocks - n_segments + i // capacity
            e, row = coef[r, i], u[r, block * p : (block + 1) * p]
            for q in range(len(row)):
                out[q] += e * row[q]
        spaces = len(factor)
        for q in range(p if spaces else 0):
            out[q] += factor[q // (p // spaces), j] * w[j, q]
        if unit:
            project_out(out, w[j])


def latent_grad(step, op, v):
    if "db" in v:
        v["db"][0] = totals(v, "coef")
    if "dw" not in v:
        return
    w = np.ascontiguousarray(v["w"])
    factor = wide(v["factor"]) if "factor" in v else np.empty((0, 0))
    gradient_by_latent(wide(v["coef"]), v["coef"].shape[1], v["start"][0], v["entry"].reshape(-1), wide(v["u"]),
                       v["u"].shape[1] // w.shape[1], op.ints["capacity"], optional(v, "groups", np.int32), w, factor,
                       bool(op.ints["unit"]), wide(v["dw"]))  # fmt: skip


def give(out, value, add):
    out[...] = out + value if add else value


def latent_sum(step, op, v):
    give(v["sum"][0], totals(v, "coef"), op.ints["add"])


@_jit
def saturating_totals(val, columns, start, entry, p0, norms):
    """The sum of p0 val (1 − tanh²(p0 val |w_j|)) over each latent's positive entries, float64."""
    total = np.zeros(len(start) - 1)
    for j in range(len(total)):
        for a in range(start[j], start[j + 1]):
            e = np.float64(val[entry[a] // columns, entry[a] % columns])
            if e > 0:
                h = math.tanh(p0 * e * norms[j])
                total[j] += p0 * e * (1.0 - h * h)
    return total


def norm_factor(step, op, v):
    norms = space_norms(np.ascontiguousarray(v["w"]), max(op.ints["spaces"], 1))
    s = strength(step, op) / step.m
    if p0 := op.floats["p0"]:
        total = saturating_totals(wide(v["val"]), v["val"].shape[1], v["start"][0], v["entry"].reshape(-1), p0,
                                  norms.sum(axis=0))  # fmt: skip
    else:
        total = totals(v, "val", True)
    np.divide(s * total, norms, out=v["factor"], where=norms > 0)
    v["factor"][norms == 0] = 0


@_jit
def sum_rows(dy, p):
    total = np.zeros(p)
    for r in range(dy.shape[0]):
        for j in range(p):
            total[j] += dy[r, j]
    return total


def bias_grad(step, op, v):
    give(v["db"][0], sum_rows(wide(v["dy"]), v["dy"].shape[1]), op.ints["add"])


def pre_bias_grad(step, op, v):
    v["dbias"] -= v["dbias"].dtype.type(op.floats["scale"]) * (v["db"] @ v["w"])


@_jit
def count_rows(val, idx, count, c, s, since):
    since += val.shape[0]
    for r in range(val.shape[0]):
        for q in range(c):
            for i in range(q * s, q * s + min(count[r, q], s)):
                if val[r, i] != 0:
                    since[idx[r, i]] = 0


def fired(step, op, v):
    count_rows(wide(v["val"]), wide(v["idx"]), wide(v["count"]), *sizes(v), v["since"][0])


def dead(step, op, v):
    which = np.flatnonzero(v["since"][0] >= op.ints["limit"])
    v["list"][0, : len(which)], v["n_dead"][0, 0] = which, len(which)


@_jit
def mix(w, decay, mean):
    for i in range(len(w)):
        mean[i] = decay * mean[i] + (1.0 - decay) * w[i]


def average(step, op, v):
    mix(v["w"].reshape(-1), op.floats["decay"], v["mean"].reshape(-1))
