"""Rows in, dense layers and their gradients, activations. Products are NumPy's BLAS."""

import numpy as np
from numba import njit

from ...catalog import BY_INDEX
from ..interpreter import operand
from . import formulas
from .random import mask

_jit = njit(cache=True, nogil=True, error_model="numpy")


def parameters(op, dtype, n=4):
    """The formula's parameters as an array of the plan's dtype."""
    return np.array([op.floats.get(f"p{i}", 0.0) for i in range(n)], dtype=dtype)


def flat(array):
    return array.reshape(-1)


def gather(step, op, v):
    source = step.job.sources[op.ints["source"]]
    rows = step.places
    if source.indptr is not None:
        scatter(source.data, source.indptr, source.indices, rows, v["x"])
    elif source.data.dtype.name in ("float32", "float64") and source.data.dtype == v["x"].dtype:
        np.take(source.data, rows, axis=0, out=v["x"], mode="clip")
    else:
        v["x"][...] = source.data[rows]
    if "weight" in v:
        v["weight"][:, 0] = 1.0 if source.weight is None else source.weight[rows]
    if "rows" in v:
        v["rows"][:, 0] = rows + step.job.first_row


@_jit
def scatter(data, indptr, indices, rows, x):
    """x ← rows of a CSR matrix; duplicates add up."""
    x[:] = 0
    for r in range(len(rows)):
        for q in range(indptr[rows[r]], indptr[rows[r] + 1]):
            x[r, indices[q]] += data[q]


def pack(step, op, v):
    """Nothing to do: products take weights as they lie."""


def take(step, op, v):
    source, rows = step.job.sources[op.ints["source"]], v["rows"][:, 0]
    if source.indptr is not None:
        scatter(source.data, source.indptr, source.indices, rows, v["x"])
    else:
        v["x"][...] = source.data[rows]


def weight(op, v):
    """w as (units, inputs), as products read it."""
    w = operand(op, v["w"])
    return w.T if op.ints["transposed"] else w


def dense(step, op, v):
    y, z = v["y"], v.get("z")
    np.matmul(operand(op, v["x"]), weight(op, v).T, out=y)
    if "b" in v:
        y += v["b"]
    if z is not None:
        z[...] = y
    if op.ints["activation"]:
        formulas.ACTIVATION[op.ints["activation"]][0](flat(y), parameters(op, y.dtype), flat(y))
    if op.floats["rate"]:
        mask(step, op, y, v["rows"], y)


def activation(step, op, v):
    x, y = np.ascontiguousarray(v["x"]), v["y"]
    formulas.ACTIVATION[op.ints["activation"]][0](flat(x), parameters(op, y.dtype), flat(y))


def _chain(step, op, v, dy, dz):
    """dz ← dropout'(dy) a'(saved); saved = y after dropout, or z, as the catalogue says. dz may be dy."""
    rate, index = op.floats["rate"], op.ints["activation"]
    if "saved" not in v:
        if dz is not dy:
            dz[...] = dy
        return
    saved = v["saved"]
    if rate:
        mask(step, op, dy, v["rows"], dz)
        dy = dz
        if BY_INDEX["activation"][index].needs == "y":
            saved = saved * saved.dtype.type(1.0 - rate)
    formulas.ACTIVATION[index][1](flat(saved), parameters(op, dz.dtype), flat(dy), flat(dz))


def activation_grad(step, op, v):
    _chain(step, op, v, v["dy"], v["dz"])


def dense_grad(step, op, v):
    dz = operand(op, v["dz"])
    if "dw" in v:
        x = operand(op, v["x"])
        left, right = (x, dz) if op.ints["transposed"] else (dz, x)
        if op.ints["add"]:
            v["dw"] += left.T @ right
        else:
            np.matmul(left.T, right, out=v["dw"])
    if "db" in v:
        column_sums(v["dz"], v["db"][0], op.ints["add_bias"])
    if "dx" in v:
        np.matmul(dz, weight(op, v), out=v["dx"])
        _chain(step, op, v, v["dx"], v["dx"])


@_jit
def column_sums(dz, out, add):
    if not add:
        out[:] = 0
    for r in range(dz.shape[0]):
        for j in range(dz.shape[1]):
            out[j] += dz[r, j]


def add(step, op, v):
    np.add(v["x"], v["y"], out=v["sum"])


@_jit
def largest_pieces(z, y):
    n = y.shape[1]
    for r in range(y.shape[0]):
        for j in range(n):
            top = z[r, j]
            for q in range(j + n, z.shape[1], n):
                if z[r, q] > top or z[r, q] != z[r, q]:
                    top = z[r, q]
            y[r, j] = top


def maxout(step, op, v):
    largest_pieces(v["z"], v["y"])


@_jit
def to_largest_piece(dy, z, dz):
    n = dy.shape[1]
    for r in range(dy.shape[0]):
        for j in range(n):
            best = j
            for q in range(j + n, z.shape[1], n):
                if z[r, q] > z[r, best]:
                    best = q
            for q in range(j, z.shape[1], n):
                dz[r, q] = dy[r, j] if q == best else 0


def maxout_grad(step, op, v):
    to_largest_piece(v["dy"], v["z"], v["dz"])


@_jit
def softmax_rows(z, y):
    for r in range(z.shape[0]):
        top = z[r, 0]
        for j in range(z.shape[1]):
            if z[r, j] > top or z[r, j] != z[r, j]:
                top = z[r, j]
        total = 0.0
        for j in range(z.shape[1]):
            y[r, j] = np.exp(z[r, j] - top)
            total += y[r, j]
        for j in range(z.shape[1]):
            y[r, j] /= total


def softmax(step, op, v):
    softmax_rows(v["z"], v["y"])


@_jit
def softmax_grad_rows(dy, y, dz):
    for r in range(y.shape[0]):
        dot = 0.0
        for j in range(y.shape[1]):
            dot += dy[r, j] * y[r, j]
        for j in range(y.shape[1]):
            dz[r, j] = y[r, j] * (dy[r, j] - dot)


def softmax_grad(step, op, v):
    softmax_grad_rows(v["dy"], v["y"], v["dz"])
