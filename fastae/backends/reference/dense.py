"""Rows in, dense layers and their gradients, activations."""

import numpy as np

from . import formulas
from .random import dropped, kept


def parameters(op, n=4):
    return [op.floats.get(f"p{i}", 0.0) for i in range(n)]


def gather(step, op, v):
    source = step.job.sources[op.ints["source"]]
    rows = step.row_ids
    v["x"][...] = step.read(source, rows)
    if "weight" in v:
        v["weight"][:, 0] = 1.0 if source.weight is None else source.weight[rows]
    if "rows" in v:
        v["rows"][:, 0] = rows


def pack(step, op, v):
    """Nothing to do: products take weights as they lie."""


def dense(step, op, v):
    z = v["x"].astype(np.float64) @ v["w"].astype(np.float64).T
    if "b" in v:
        z = z + v["b"]
    if "z" in v:
        v["z"][...] = z
    y, _ = formulas.ACTIVATION[op.ints["activation"]]
    factor = kept(step, op, v["rows"], z.shape[1]) if op.floats.get("rate", 0.0) else 1.0
    v["y"][...] = dropped(y(z, parameters(op)), factor)


def activation(step, op, v):
    y, _ = formulas.ACTIVATION[op.ints["activation"]]
    v["y"][...] = y(v["x"].astype(np.float64), parameters(op))


def _chain(step, op, v, dy):
    """dropout'(dy) a'(saved); saved = y after dropout, or z, as the catalogue says."""
    from ...catalog import ACTIVATIONS

    rate = op.floats.get("rate", 0.0)
    index = op.ints.get("activation", 0)
    if "saved" not in v:
        return dy
    saved = v["saved"].astype(np.float64)
    if rate:
        dy = dropped(dy, kept(step, op, v["rows"], dy.shape[1]))
        if ACTIVATIONS[index].needs == "y":
            saved = saved * (1.0 - rate)
    return dy * formulas.ACTIVATION[index][1](saved, parameters(op))


def activation_grad(step, op, v):
    v["dz"][...] = _chain(step, op, v, v["dy"].astype(np.float64))


def dense_grad(step, op, v):
    dz = v["dz"].astype(np.float64)
    if "dw" in v:
        v["dw"][...] = dz.T @ v["x"].astype(np.float64)
    if "db" in v:
        v["db"][...] = dz.sum(axis=0)
    if "dx" in v:
        v["dx"][...] = _chain(step, op, v, dz @ v["w"].astype(np.float64))


def softmax(step, op, v):
    z = v["z"].astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    v["y"][...] = e / e.sum(axis=1, keepdims=True)


def softmax_grad(step, op, v):
    dy, y = v["dy"].astype(np.float64), v["y"].astype(np.float64)
    v["dz"][...] = y * (dy - (dy * y).sum(axis=1, keepdims=True))
