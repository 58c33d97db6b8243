"""Rows in, dense layers and their gradients, activations."""

import numpy as np

from ...catalog import BY_INDEX
from ..interpreter import operand
from . import formulas
from .random import dropped, kept


def parameters(op, n=4):
    return [op.floats.get(f"p{i}", 0.0) for i in range(n)]


def gather(step, op, v):
    source = step.job.sources[op.ints["source"]]
    rows = step.places
    v["x"][...] = step.read(source, rows)
    if "weight" in v:
        v["weight"][:, 0] = 1.0 if source.weight is None else source.weight[rows]
    if "rows" in v:
        v["rows"][:, 0] = rows + step.job.first_row


def pack(step, op, v):
    """Nothing to do: products take weights as they lie."""


def take(step, op, v):
    v["x"][...] = step.read(step.job.sources[op.ints["source"]], v["rows"][:, 0])


def weight(op, v):
    """w as (units, inputs), as products read it."""
    w = operand(op, v["w"]).astype(np.float64)
    return w.T if op.ints.get("transposed", 0) else w


def dense(step, op, v):
    z = operand(op, v["x"]).astype(np.float64) @ weight(op, v).T
    if "b" in v:
        z = z + v["b"]
    if "z" in v:
        v["z"][...] = z
    y = formulas.ACTIVATION[op.ints["activation"]][0]
    factor = kept(step, op, v["rows"], z.shape[1]) if op.floats.get("rate", 0.0) else 1.0
    v["y"][...] = dropped(y(z, parameters(op)), factor)


def activation(step, op, v):
    y = formulas.ACTIVATION[op.ints["activation"]][0]
    v["y"][...] = y(v["x"].astype(np.float64), parameters(op))


def _chain(step, op, v, dy):
    """dropout'(dy) a'(saved); saved = y after dropout, or z, as the catalogue says."""
    rate = op.floats.get("rate", 0.0)
    index = op.ints.get("activation", 0)
    if "saved" not in v:
        return dy
    saved = v["saved"].astype(np.float64)
    if rate:
        dy = dropped(dy, kept(step, op, v["rows"], dy.shape[1]))
        if BY_INDEX["activation"][index].needs == "y":
            saved = saved * (1.0 - rate)
    return dy * formulas.ACTIVATION[index][1](saved, parameters(op))


def activation_grad(step, op, v):
    v["dz"][...] = _chain(step, op, v, v["dy"].astype(np.float64))


def gradient(v, name, value, add):
    """Stores a parameter's gradient, or adds it where another op has written before."""
    v[name][...] = v[name] + value if add else value


def dense_grad(step, op, v):
    dz = operand(op, v["dz"]).astype(np.float64)
    if "dw" in v:
        dw = dz.T @ operand(op, v["x"]).astype(np.float64)
        gradient(v, "dw", dw.T if op.ints["transposed"] else dw, op.ints["add"])
    if "db" in v:
        gradient(v, "db", v["dz"].astype(np.float64).sum(axis=0), op.ints["add_bias"])
    if "dx" in v:
        v["dx"][...] = _chain(step, op, v, dz @ weight(op, v))


def add(step, op, v):
    v["sum"][...] = v["x"] + v["y"]


def _pieces(v, dy):
    """z as (m, pieces, n), and which piece of each unit is largest."""
    z = v["z"].astype(np.float64).reshape(len(dy), -1, dy.shape[1])
    return z, z.argmax(axis=1)[:, None, :]


def maxout(step, op, v):
    z, largest = _pieces(v, v["y"])
    v["y"][...] = np.take_along_axis(z, largest, axis=1)[:, 0, :]


def maxout_grad(step, op, v):
    z, largest = _pieces(v, v["dy"])
    dz = np.zeros_like(z)
    np.put_along_axis(dz, largest, v["dy"].astype(np.float64)[:, None, :], axis=1)
    v["dz"][...] = dz.reshape(v["dz"].shape)


def softmax(step, op, v):
    z = v["z"].astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    v["y"][...] = e / e.sum(axis=1, keepdims=True)


def softmax_grad(step, op, v):
    dy, y = v["dy"].astype(np.float64), v["y"].astype(np.float64)
    v["dz"][...] = y * (dy - (dy * y).sum(axis=1, keepdims=True))
