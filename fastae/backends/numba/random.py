"""Philox4x32-10 in Numba, and what is drawn from it: masks, noise, permutations."""

import math

import numpy as np
from numba import njit

from ...plan.schema import NOISE_KINDS, SHUFFLE_STREAM

_jit = njit(cache=True, nogil=True, error_model="numpy")
_GAUSSIAN, _MASKING, _SALT_AND_PEPPER, _SWAP = (
    NOISE_KINDS.index(kind) for kind in ("gaussian", "masking", "salt_and_pepper", "swap")
)


@_jit
def block(seed, epoch, stream, row, group, out):
    """out[0:4] ← words of columns 4 group .. 4 group + 3 of a row."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    k0, k1 = seed & low, seed >> shift
    c0 = np.uint64(group) | (np.uint64(stream) << np.uint64(24))
    c1, c2, c3 = np.uint64(row) & low, np.uint64(row) >> shift, np.uint64(epoch)
    for _ in range(10):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    out[0], out[1], out[2], out[3] = c0, c1, c2, c3


@_jit
def apply_dropout(x, rows, seed, epoch, stream, threshold, scale, y):
    """y ← x scale where kept, 0 where dropped; y may be x."""
    w = np.empty(4, np.uint64)
    m, n = x.shape
    for r in range(m):
        for j in range(n):
            if j % 4 == 0:
                block(seed, epoch, stream, rows[r, 0], j // 4, w)
            y[r, j] = x[r, j] * scale if w[j % 4] >= threshold else x.dtype.type(0)


@_jit
def apply_noise(kind, x, rows, seed, epoch, stream, amount, threshold, low, high, y):
    w, q = np.empty(4, np.uint64), np.empty(4, np.uint64)
    m, p = x.shape
    for r in range(m):
        for j in range(p):
            i = j % 4
            if i == 0:
                block(seed, epoch, stream, rows[r, 0], j // 4, w)
                if kind == _SWAP:
                    block(seed, epoch, stream + 1, rows[r, 0], j // 4, q)
            if kind == _GAUSSIAN:
                pair = i - i % 2
                u1 = (np.float64(w[pair] >> np.uint64(8)) + 0.5) * 2.0**-24
                u2 = np.float64(w[pair + 1] >> np.uint64(8)) * 2.0**-24
                radius = math.sqrt(-2.0 * math.log(u1)) * amount
                angle = 2.0 * math.pi * u2
                y[r, j] = x[r, j] + radius * (math.cos(angle) if i % 2 == 0 else math.sin(angle))
            elif w[i] >= threshold:
                y[r, j] = x[r, j]
            elif kind == _MASKING:
                y[r, j] = 0
            elif kind == _SALT_AND_PEPPER:
                y[r, j] = low if w[i] < threshold // np.uint64(2) else high
            else:
                y[r, j] = x[np.int64((q[i] * np.uint64(m)) >> np.uint64(32)), j]


@_jit
def shuffled(seed, epoch, n):
    order = np.arange(n)
    w = np.empty(4, np.uint64)
    shift = np.uint64(32)
    held = np.int64(-1)
    for i in range(n - 1, 0, -1):
        column = 2 * (i % 2**19)
        if held != i // 2:
            held = i // 2
            block(seed, epoch, SHUFFLE_STREAM, i // 2**19, column // 4, w)
        high, low, bound = w[column % 4], w[column % 4 + 1], np.uint64(i + 1)
        j = np.int64((high * bound + ((low * bound) >> shift)) >> shift)
        order[i], order[j] = order[j], order[i]
    return order


def key(step):
    return np.uint64(step.job.seed), np.uint64(step.job.epoch)


def mask(step, op, x, rows, y):
    """y ← inverted dropout of x with the op's rate and stream."""
    rate = op.floats["rate"]
    scale = x.dtype.type(1.0 / (1.0 - rate))
    apply_dropout(x, rows, *key(step), op.ints["stream"], np.uint64(int(rate * 2**32)), scale, y)


def dropout(step, op, v):
    mask(step, op, v["x"], v["rows"], v["y"])


def noise(step, op, v):
    kind, amount = op.ints["kind"], op.floats["amount"]
    threshold = np.uint64(0 if kind == _GAUSSIAN else int(amount * 2**32))
    real = v["x"].dtype.type
    low, high = real(op.floats["low"]), real(op.floats["high"])
    apply_noise(kind, v["x"], v["rows"], *key(step), op.ints["stream"], amount, threshold, low, high, v["y"])


@_jit
def draw_neighbours(data, indptr, indices, rows, seed, epoch, stream, out, coefficient):
    w = np.empty(4, np.uint64)
    for r in range(len(rows)):
        row = rows[r]
        first, last = indptr[row], indptr[row + 1]
        total = 0.0
        for q in range(first, last):
            total += data[q]
        coefficient[r] = 0.5 * total
        out[r] = row
        if not total > 0:
            continue
        block(seed, epoch, stream, row, 0, w)
        target = (np.float64(w[0]) + 0.5) * 2.0**-32 * total
        reached = 0.0
        for q in range(first, last):
            reached += data[q]
            out[r] = indices[q]
            if reached > target:
                break


def neighbour(step, op, v):
    """A neighbour of each row, drawn by edge weight from one word; half the row's weights."""
    graph = step.job.sources[op.ints["source"]]
    draw_neighbours(graph.data, graph.indptr, graph.indices, v["rows"][:, 0], *key(step), op.ints["stream"],
                    v["out"][:, 0], v["coefficient"][:, 0])  # fmt: skip
