"""Losses by rows, what unobserved entries do to them, and likelihoods with several outputs per feature."""

import math

import numpy as np
from numba import njit

from ...plan.schema import COSINE, INPUT_TRANSFORMS, MASK_MODES, MULTINOMIAL, SMALLEST_SIZE
from . import formulas
from .dense import flat, parameters

_jit = njit(cache=True, nogil=True, error_model="numpy")
_LOG1P = INPUT_TRANSFORMS.index("log1p")


@_jit
def transform_rows(x, missing, log1p, seen, target, with_seen, with_target):
    """seen ← x or log1p(x), 0 where missing; target ← x, NaN where missing."""
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            e = x[r, j]
            there = e == e and e != missing
            if with_target:
                target[r, j] = e if there else np.nan
            if with_seen:
                seen[r, j] = (math.log1p(e) if log1p else e) if there else 0


def transform_input(step, op, v):
    x, seen, target = v["x"], v.get("y"), v.get("target")
    transform_rows(x, x.dtype.type(op.floats["missing"]), op.ints["transform"] == _LOG1P, x if seen is None else seen,
                   x if target is None else target, seen is not None, target is not None)  # fmt: skip


@_jit
def observed(t, filled, count):
    """filled ← t with 0 for NaN; count[r] ← how many are not NaN."""
    for r in range(t.shape[0]):
        count[r] = 0
        for j in range(t.shape[1]):
            there = t[r, j] == t[r, j]
            filled[r, j] = t[r, j] if there else 0
            count[r] += there


@_jit
def forget(t, a):
    """a ← 0 where t is NaN."""
    for r in range(t.shape[0]):
        for j in range(t.shape[1]):
            if t[r, j] != t[r, j]:
                a[r, j] = 0


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
def multinomial_rows(z, t, masked, out, dy, with_gradient):
    """out[r] ← Σ t (log Σ exp z − z); dy ← softmax(z) Σ t − t. Masked: over the entries whose t is not NaN."""
    for r in range(z.shape[0]):
        top, total, sums, dot = -np.inf, 0.0, 0.0, 0.0
        for j in range(z.shape[1]):
            if (not masked or t[r, j] == t[r, j]) and (z[r, j] > top or z[r, j] != z[r, j]):
                top = z[r, j]
        for j in range(z.shape[1]):
            if not masked or t[r, j] == t[r, j]:
                total += t[r, j]
                sums += np.exp(z[r, j] - top)
                dot += t[r, j] * (z[r, j] - top)
        out[r] = total * np.log(sums) - dot if sums != 0 else 0.0
        if with_gradient:
            for j in range(z.shape[1]):
                if masked and t[r, j] != t[r, j]:
                    dy[r, j] = 0
                else:
                    dy[r, j] = np.exp(z[r, j] - top) * (total / sums) - t[r, j]


@_jit
def cosine_rows(y, t, masked, out, dy, with_gradient):
    """out[r] ← 1 − cos(y, t) = ½ |u − v|² of the unit vectors, dy ← its derivative; 1 and 0 where one is zero."""
    for r in range(y.shape[0]):
        top_y = top_t = square_y = square_t = value = 0.0
        count = 0
        for j in range(y.shape[1]):
            if not masked or t[r, j] == t[r, j]:
                count += 1
                a, b = abs(np.float64(y[r, j])), abs(np.float64(t[r, j]))
                top_y = a if a > top_y or a != a else top_y
                top_t = b if b > top_t or b != b else top_t
        if top_y == 0 or top_t == 0:
            out[r] = 1.0 if count or not masked else 0.0
            if with_gradient:
                dy[r] = 0
            continue
        for j in range(y.shape[1]):
            if not masked or t[r, j] == t[r, j]:
                square_y += (y[r, j] / top_y) ** 2
                square_t += (t[r, j] / top_t) ** 2
        length_y, length_t = math.sqrt(square_y), math.sqrt(square_t)
        for j in range(y.shape[1]):
            if not masked or t[r, j] == t[r, j]:
                value += (y[r, j] / top_y / length_y - t[r, j] / top_t / length_t) ** 2
        out[r] = value = 0.5 * value
        if with_gradient:
            for j in range(y.shape[1]):
                if masked and t[r, j] != t[r, j]:
                    dy[r, j] = 0
                else:
                    u = y[r, j] / top_y / length_y
                    dy[r, j] = (u - t[r, j] / top_t / length_t - value * u) / length_y / top_y


def _give(step, op, v, rows, count):
    """Row values, the run's value and scaled gradients, from sums over a row and derivatives in dy."""
    m, scale = len(rows), op.floats["scale"]
    if MASK_MODES[op.ints["masked"]] == "mean":
        scale = np.where(count > 0, scale / np.maximum(count, 1), 0.0)
    weight = v["weight"][:, 0].astype(np.float64) if "weight" in v else np.ones(m)
    rows *= scale
    if "row_value" in v:
        v["row_value"][:, 0] = rows + (v["row_value"][:, 0] if op.ints["accumulate"] else 0.0)
    step.add_value(op, float((rows * weight).sum() / m))
    if "dy" in v:
        scale_rows(v["dy"], (weight * (scale / m)).astype(v["dy"].dtype))


def _filled(op, t):
    """Targets with 0 where they are NaN, and the number of the others in each row."""
    if not op.ints["masked"]:
        return t, None
    filled, count = np.empty_like(t), np.empty(len(t))
    observed(t, filled, count)
    return filled, count


def loss(step, op, v):
    y, t, dy = v["y"], v["target"], v.get("dy")
    masked, rows = op.ints["masked"] > 0, np.empty(len(y))
    filled, count = _filled(op, t)
    if op.ints["loss"] in (MULTINOMIAL, COSINE):
        kernel = multinomial_rows if op.ints["loss"] == MULTINOMIAL else cosine_rows
        kernel(y, t, masked, rows, y if dy is None else dy, dy is not None)
    else:
        value, slope = formulas.LOSS[op.ints["loss"]]
        p, each = parameters(op, y.dtype), np.empty_like(y)
        value(flat(y), flat(filled), p, flat(each))
        if masked:
            forget(t, each)
        row_sums(each, rows)
        if dy is not None:
            slope(flat(y), flat(filled), p, flat(dy))
            if masked:
                forget(t, dy)
    _give(step, op, v, rows, count)


def size_factor(step, op, v):
    t = v["target"]
    filled, count, sums = np.empty_like(t), np.empty(len(t)), np.empty(len(t))
    observed(t, filled, count)
    row_sums(filled, sums)
    v["size"][:, 0] = np.log(np.maximum(sums / np.maximum(count, 1), SMALLEST_SIZE))


def likelihood(step, op, v):
    y, t, dy = v["y"], v["target"], v.get("dy")
    m, n = t.shape
    filled, count = _filled(op, t)
    outputs = [np.ascontiguousarray(y[:, k : k + n]) for k in range(0, y.shape[1], n)]
    size = np.repeat(v["size"], n, axis=1) if "size" in v else np.zeros_like(t)
    value, slopes, _ = formulas.LIKELIHOOD[op.ints["likelihood"]]
    p, each, rows = parameters(op, y.dtype), np.empty_like(t), np.empty(m)
    arguments = [*map(flat, outputs), flat(filled), flat(size), p, flat(each)]
    value(*arguments)
    if op.ints["masked"]:
        forget(t, each)
    row_sums(each, rows)
    if dy is not None:
        for k, slope in enumerate(slopes):
            slope(*arguments)
            if op.ints["masked"]:
                forget(t, each)
            dy[:, k * n : (k + 1) * n] = each
    _give(step, op, v, rows, count)


def distribution(step, op, v):
    y, out = v["y"], v["out"]
    size = np.repeat(v["size"], y.shape[1], axis=1) if "size" in v else np.zeros_like(y)
    shown = formulas.LIKELIHOOD[op.ints["likelihood"]][2][op.ints["output"]]
    shown(flat(y), flat(size), parameters(op, y.dtype), flat(out))
