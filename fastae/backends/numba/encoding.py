"""Products of 8-bit integers, and codes stored in fewer bits."""

import numpy as np
from numba import njit

from . import formulas
from .dense import flat, parameters

_jit = njit(cache=True, nogil=True, error_model="numpy")
LEAST = np.float32(2.0**-100)  # rows without anything larger are stored as 0


@_jit
def quantized(x, q, scale):
    """q = round(x 127 / max |x|) by rows, scale = max |x| / 127; a row that is not finite: 0 and scale NaN."""
    for r in range(x.shape[0]):
        most = np.float32(0)
        for j in range(x.shape[1]):
            size = abs(x[r, j])
            if size > most or size != size:
                most = size
        finite = most - most == 0
        if not finite or most < LEAST:
            q[r, :] = 0
            scale[r] = np.float32(0) if finite else np.float32(np.nan)
            continue
        inverse = np.float32(127) / most
        for j in range(x.shape[1]):
            q[r, j] = np.int16(np.rint(x[r, j] * inverse))
        scale[r] = most / np.float32(127)


def integers(words, k):
    """The int16 that a buffer of words holds, (rows, k)."""
    return words.view(np.int16)[:, :k]


def pack_int8(step, op, v):
    n, k = v["w"].shape
    quantized(v["w"], integers(v["packed"], k)[:n], v["scale"][0])


def quantize(step, op, v):
    quantized(v["x"], integers(v["q"], v["x"].shape[1]), v["scale"][:, 0])


@_jit
def product(q, w, x_scale, w_scale, y):
    for r in range(q.shape[0]):
        for j in range(y.shape[1]):
            total = np.int32(0)
            for p in range(q.shape[1]):
                total += np.int32(q[r, p]) * np.int32(w[j, p])
            y[r, j] = np.float32(total) * (x_scale[r] * w_scale[j])


def dense_int8(step, op, v):
    y, k = v["y"], op.ints["depth"]
    product(integers(v["q"], k), integers(v["packed"], k), v["x_scale"][:, 0], v["w_scale"][0], y)
    if "b" in v:
        y += v["b"]
    if op.ints["activation"]:
        formulas.ACTIVATION[op.ints["activation"]][0](flat(y), parameters(op, y.dtype), flat(y))


def store_half(step, op, v):
    v["out"][...] = v["x"]


def store_int8(step, op, v):
    quantized(v["x"], v["out"], v["scale"][:, 0])
