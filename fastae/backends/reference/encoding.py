"""Products of 8-bit integers, and codes stored in fewer bits.

The scales are computed in float32 here as well: the integers, and so their sums, are the same on every backend.
"""

import numpy as np

from . import formulas
from .dense import parameters

LEAST = np.float32(2.0**-100)  # rows without anything larger are stored as 0


def quantized(x):
    """(q, scale): q = round(x 127 / max |x|) by rows, float32 integers; a row that is not finite: 0 and scale NaN."""
    most = np.abs(x).max(axis=1, initial=0.0)  # NaN where there is one
    finite = np.isfinite(most)
    zero = ~finite | ~(most >= LEAST)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=~zero)
    q = np.rint(np.where(zero[:, None], np.float32(0), x) * inverse[:, None])
    scale = np.where(zero, np.float32(0), most / np.float32(127))
    return q, np.where(finite, scale, np.float32(np.nan))


def integers(words, k):
    """The int16 that a buffer of words holds, (rows, k)."""
    return words.view(np.int16)[:, :k]


def pack_int8(step, op, v):
    n, k = v["w"].shape
    q, v["scale"][0] = quantized(v["w"])
    integers(v["packed"], k)[:n] = q


def quantize(step, op, v):
    q, v["scale"][:, 0] = quantized(v["x"])
    integers(v["q"], v["x"].shape[1])[...] = q


def dense_int8(step, op, v):
    n, k = v["y"].shape[1], op.ints["depth"]
    q, w = integers(v["q"], k).astype(np.int64), integers(v["packed"], k)[:n].astype(np.int64)
    z = (q @ w.T) * (v["x_scale"].astype(np.float64) * v["w_scale"])
    if "b" in v:
        z = z + v["b"]
    v["y"][...] = formulas.ACTIVATION[op.ints["activation"]][0](z, parameters(op))


def store_half(step, op, v):
    v["out"][...] = v["x"]


def store_int8(step, op, v):
    v["out"][...], v["scale"][:, 0] = quantized(v["x"])
