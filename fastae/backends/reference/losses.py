"""Losses by rows, what unobserved entries do to them, and likelihoods with several outputs per feature."""

import numpy as np

from ...plan.schema import COSINE, INPUT_TRANSFORMS, MASK_MODES, MULTINOMIAL, SMALLEST_SIZE
from . import formulas
from .dense import parameters


def transform_input(step, op, v):
    x = v["x"].astype(np.float64)
    there = ~np.isnan(x) & (v["x"] != v["x"].dtype.type(op.floats["missing"]))
    if "y" in v:
        seen = np.where(there, x, 0.0)
        v["y"][...] = np.log1p(seen) if INPUT_TRANSFORMS[op.ints["transform"]] == "log1p" else seen
    if "target" in v:
        v["target"][...] = np.where(there, x, np.nan)


def _multinomial(y, t, there):
    """Values and derivatives; the softmax is over the entries that are there."""
    top = np.max(y, axis=1, keepdims=True, initial=-np.inf, where=there)
    shifted = np.where(there, y - np.where(np.isinf(top) & (top < 0), 0.0, top), -np.inf)
    sums = np.exp(shifted).sum(axis=1, keepdims=True)
    sums = np.where(there.any(axis=1, keepdims=True), sums, 1.0)
    total = t.sum(axis=1, keepdims=True)
    rows = total[:, 0] * np.log(sums[:, 0]) - (t * np.where(there, shifted, 0.0)).sum(axis=1)
    return rows, np.exp(shifted) / sums * total - t


def _cosine(y, t, there):
    """Values 1 − cos(y, t) = ½ |u − v|² of the unit vectors, and derivatives; 1 and 0 where one is zero."""
    y = np.where(there, y, 0.0)
    tops = [np.abs(a).max(axis=1, keepdims=True) for a in (y, t)]
    zero = (tops[0] == 0) | (tops[1] == 0)
    tops = [np.where(zero, 1.0, top) for top in tops]
    lengths = [np.sqrt(((a / top) ** 2).sum(axis=1, keepdims=True)) for a, top in zip((y, t), tops, strict=True)]
    u, w = (a / top / np.where(zero, 1.0, length) for a, top, length in zip((y, t), tops, lengths, strict=True))
    value = 0.5 * ((u - w) ** 2).sum(axis=1, keepdims=True)
    slope = (u - w - value * u) / np.where(zero, 1.0, tops[0] * lengths[0])
    nothing = ~there.any(axis=1)
    return np.where(zero[:, 0], np.where(nothing, 0.0, 1.0), value[:, 0]), np.where(zero, 0.0, slope)


def _give(step, op, v, rows, slopes, there):
    """Row values, the run's value and gradients, from sums over the entries that are there; slopes: one per output."""
    m = len(rows)
    scale = np.full(m, op.floats["scale"])
    if MASK_MODES[op.ints["masked"]] == "mean":
        count = there.sum(axis=1)
        scale = np.where(count > 0, scale / np.maximum(count, 1), 0.0)
    weight = v["weight"][:, 0].astype(np.float64) if "weight" in v else np.ones(m)
    rows = scale * rows
    if "row_value" in v:
        v["row_value"][:, 0] = rows + (v["row_value"][:, 0] if op.ints["accumulate"] else 0.0)
    step.add_value(op, float((rows * weight).sum() / m))
    if "dy" in v:
        v["dy"][...] = np.hstack([(weight * scale / m)[:, None] * np.where(there, slope, 0.0) for slope in slopes])


def _observed(op, v):
    """Targets with 0 where they are unobserved, and where they are there."""
    t = v["target"].astype(np.float64)
    there = ~np.isnan(t) if op.ints["masked"] else np.ones(t.shape, dtype=bool)
    return np.where(there, t, 0.0), there


def loss(step, op, v):
    y, (t, there) = v["y"].astype(np.float64), _observed(op, v)
    if op.ints["loss"] in (MULTINOMIAL, COSINE):
        rows, slope = (_multinomial if op.ints["loss"] == MULTINOMIAL else _cosine)(y, t, there)
    else:
        value, dy = formulas.LOSS[op.ints["loss"]]
        rows = np.where(there, value(y, t, parameters(op)), 0.0).sum(axis=1)
        slope = dy(y, t, parameters(op))
    _give(step, op, v, rows, [slope], there)


def size_factor(step, op, v):
    t = v["target"].astype(np.float64)
    there = ~np.isnan(t)
    mean = np.where(there, t, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    v["size"][:, 0] = np.log(np.maximum(mean, SMALLEST_SIZE))


def likelihood(step, op, v):
    t, there = _observed(op, v)
    n = t.shape[1]
    y = v["y"].astype(np.float64)
    outputs = [y[:, k : k + n] for k in range(0, y.shape[1], n)]
    size = v["size"].astype(np.float64) if "size" in v else np.zeros((len(y), 1))
    value, slopes, _ = formulas.LIKELIHOOD[op.ints["likelihood"]]
    arguments = [*outputs, t, size, parameters(op)]
    rows = np.where(there, value(*arguments), 0.0).sum(axis=1)
    _give(step, op, v, rows, [slope(*arguments) for slope in slopes], there)


def distribution(step, op, v):
    size = v["size"].astype(np.float64) if "size" in v else np.zeros((len(v["y"]), 1))
    shown = formulas.LIKELIHOOD[op.ints["likelihood"]][2][op.ints["output"]]
    v["out"][...] = shown(v["y"].astype(np.float64), size, parameters(op))
