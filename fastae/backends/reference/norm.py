"""Batch and layer normalisation."""

import numpy as np

from .dense import gradient


def fold_norm(step, op, v):
    scale = v["gamma"] / np.sqrt(v["var"].astype(np.float64) + op.floats["epsilon"])
    v["folded_w"][...] = v["w"] * (scale if op.ints["transposed"] else scale.T)
    v["folded_b"][...] = (v["b"] - v["mean"]) * scale + v["beta"]


def batch_norm(step, op, v):
    x = v["x"].astype(np.float64)
    m, mean, var = len(x), x.mean(axis=0), x.var(axis=0)
    v["mean"][0], v["deviation"][0] = mean, np.sqrt(var + op.floats["epsilon"])
    v["y"][...] = (x - mean) / v["deviation"] * v["gamma"] + v["beta"]
    if "running_mean" in v and m > 1:  # the variance of one row says nothing
        momentum = op.floats["momentum"]
        for name, new in (("running_mean", mean), ("running_var", var * (m / (m - 1)))):
            v[name][0] = (1 - momentum) * v[name][0] + momentum * new


def _scaled(op, v, mean, deviation):
    """Normalised x and dL/d(normalised x); stores the gradients of gamma and beta."""
    normal, dy = (v["x"] - mean) / deviation, v["dy"].astype(np.float64)
    gradient(v, "dgamma", (dy * normal).sum(axis=0), op.ints["add"])
    gradient(v, "dbeta", dy.sum(axis=0), op.ints["add"])
    return normal, dy * v["gamma"]


def batch_norm_grad(step, op, v):
    normal, g = _scaled(op, v, v["mean"], v["deviation"])
    v["dx"][...] = (g - g.mean(axis=0) - normal * (g * normal).mean(axis=0)) / v["deviation"]


def layer_norm(step, op, v):
    x = v["x"].astype(np.float64)
    mean = x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + op.floats["epsilon"])
    if "statistics" in v:
        v["statistics"][...] = np.hstack([mean, deviation])
    v["y"][...] = (x - mean) / deviation * v["gamma"] + v["beta"]


def layer_norm_grad(step, op, v):
    deviation = v["statistics"][:, 1:]
    normal, g = _scaled(op, v, v["statistics"][:, :1], deviation)
    v["dx"][...] = (g - g.mean(axis=1, keepdims=True) - normal * (g * normal).mean(axis=1, keepdims=True)) / deviation
