"""The row-wise kernels of csrc/cuda once more, in numba.cuda: readable, and a second opinion on every bit.

Nothing in the package runs them. One thread has a whole row and plays its sixteen virtual lanes: column j goes to lane
j % 16 in float64, lanes are added as a fixed tree. In Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``) the bits are the
device kernels' wherever exp does not enter, which is Python's there and the catalogue's in the kernels. On a GPU they
may differ: Numba contracts products and sums into fused multiply-adds.

Every cast is written out (``real``: the arrays' type), since NumPy, which is the simulator's arithmetic, and Numba give
mixed expressions different types.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numba import cuda

LANES, THREADS = 16, 32
NONE, SUM, MEAN = range(3)  # as in schema.MASK_MODES
WORD, SHIFT, STREAM_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(24)
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # Philox's multipliers
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # and increments of the key
Array = np.ndarray


# ---- sums and maxima over a row: device.cuh ---


@cuda.jit(device=True)
def fill(lanes, value):
    for lane in range(LANES):
        lanes[lane] = value


@cuda.jit(device=True)
def tree_sum(lanes):
    """lanes_sum: halves are added to halves."""
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@cuda.jit(device=True)
def larger(a, b):
    """With a NaN in either argument NaN; of two equal ones (zeros of different signs) the second."""
    return a if a > b or a != a else b


@cuda.jit(device=True)
def tree_max(lanes):
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] = larger(lanes[lane], lanes[lane + half])
        half //= 2
    return lanes[0]


# ---- softmax, maxout: dense.cuh ---


@cuda.jit
def softmax_kernel(z, y):
    r = cuda.grid(1)
    if r < z.shape[0]:
        real = z.dtype.type
        tops, lanes = cuda.local.array(LANES, z.dtype), cuda.local.array(LANES, np.float64)
        fill(tops, real(-math.inf))
        for j in range(z.shape[1]):
            tops[j % LANES] = larger(z[r, j], tops[j % LANES])
        top = tree_max(tops)
        fill(lanes, 0.0)
        for j in range(z.shape[1]):
            y[r, j] = real(math.exp(z[r, j] - top))
            lanes[j % LANES] += np.float64(y[r, j])
        total = real(tree_sum(lanes))
        for j in range(z.shape[1]):
            y[r, j] = y[r, j] / total


@cuda.jit
def softmax_grad_kernel(dy, y, dz):
    r = cuda.grid(1)
    if r < y.shape[0]:
        lanes = cuda.local.array(LANES, np.float64)
        fill(lanes, 0.0)
        for j in range(y.shape[1]):
            lanes[j % LANES] += np.float64(dy[r, j] * y[r, j])
        dot = y.dtype.type(tree_sum(lanes))
        for j in range(y.shape[1]):
            dz[r, j] = y[r, j] * (dy[r, j] - dot)


@cuda.jit
def maxout_kernel(z, y):
    r = cuda.grid(1)
    if r < y.shape[0]:
        for j in range(y.shape[1]):
            top = z[r, j]
            for q in range(j + y.shape[1], z.shape[1], y.shape[1]):
                top = larger(top, z[r, q])
            y[r, j] = top


# ---- layer normalisation: norm.cuh; all in float64 ---


@cuda.jit
def layer_norm_kernel(x, gamma, beta, epsilon, y, statistics):
    r = cuda.grid(1)
    if r < x.shape[0]:
        n = x.shape[1]
        lanes = cuda.local.array(LANES, np.float64)
        fill(lanes, 0.0)
        for j in range(n):
            lanes[j % LANES] += np.float64(x[r, j])
        mean = tree_sum(lanes) / np.float64(n)
        fill(lanes, 0.0)
        for j in range(n):
            distance = np.float64(x[r, j]) - mean
            lanes[j % LANES] += distance * distance
        deviation = math.sqrt(tree_sum(lanes) / np.float64(n) + epsilon)
        statistics[r, 0], statistics[r, 1] = mean, deviation
        for j in range(n):
            normal = (np.float64(x[r, j]) - mean) / deviation
            y[r, j] = normal * np.float64(gamma[0, j]) + np.float64(beta[0, j])


@cuda.jit
def layer_norm_grad_kernel(dy, x, gamma, statistics, dx):
    r = cuda.grid(1)
    if r < x.shape[0]:
        n = x.shape[1]
        mean, deviation = statistics[r, 0], statistics[r, 1]
        lanes, along_lanes = cuda.local.array(LANES, np.float64), cuda.local.array(LANES, np.float64)
        fill(lanes, 0.0)
        fill(along_lanes, 0.0)
        for j in range(n):
            g = np.float64(dy[r, j]) * np.float64(gamma[0, j])
            lanes[j % LANES] += g
            along_lanes[j % LANES] += g * ((np.float64(x[r, j]) - mean) / deviation)
        total, along = tree_sum(lanes) / np.float64(n), tree_sum(along_lanes) / np.float64(n)
        for j in range(n):
            g = np.float64(dy[r, j]) * np.float64(gamma[0, j])
            normal = (np.float64(x[r, j]) - mean) / deviation
            dx[r, j] = (g - total - normal * along) / deviation


# ---- losses of rows: losses.cuh ---


@cuda.jit(device=True)
def observed(t, masked):
    """Whether a target counts: NaN does not where the loss is masked."""
    return masked == NONE or t == t


@cuda.jit(device=True)
def masked_scale(t, r, scale, masked):
    """What a row's sum is multiplied by; nothing observed is nothing lost."""
    if masked != MEAN:
        return scale
    count = 0.0  # whole numbers: the order of their sum does not matter
    for j in range(t.shape[1]):
        count += 1.0 if t[r, j] == t[r, j] else 0.0
    return scale / count if count > 0.0 else 0.0


@cuda.jit
def squared_error_kernel(y, t, weight, scale, masked, row_value, dy):
    r = cuda.grid(1)
    if r < y.shape[0]:
        real = y.dtype.type
        size = masked_scale(t, r, scale, masked)
        slope = real(np.float64(weight[r, 0]) / np.float64(y.shape[0]) * size)
        lanes = cuda.local.array(LANES, np.float64)
        fill(lanes, 0.0)
        for j in range(y.shape[1]):
            dy[r, j] = real(0)
            if observed(t[r, j], masked):
                difference = y[r, j] - t[r, j]
                lanes[j % LANES] += np.float64(difference * difference)
                dy[r, j] = slope * (real(2) * difference)
        row_value[r, 0] = size * tree_sum(lanes)


@cuda.jit
def multinomial_kernel(y, t, weight, scale, masked, row_value, dy):
    """sum_j t_j (log sum exp z - z_j), z = y; its derivative softmax(z) sum t - t"""
    r = cuda.grid(1)
    if r < y.shape[0]:
        real = y.dtype.type
        size = masked_scale(t, r, scale, masked)
        slope = real(np.float64(weight[r, 0]) / np.float64(y.shape[0]) * size)
        tops, powers = cuda.local.array(LANES, y.dtype), cuda.local.array(LANES, np.float64)
        totals, dots = cuda.local.array(LANES, np.float64), cuda.local.array(LANES, np.float64)
        fill(tops, real(-math.inf))
        for j in range(y.shape[1]):
            seen = y[r, j] if observed(t[r, j], masked) else real(-math.inf)
            tops[j % LANES] = larger(seen, tops[j % LANES])
        top = tree_max(tops)
        fill(powers, 0.0)
        fill(totals, 0.0)
        fill(dots, 0.0)
        for j in range(y.shape[1]):
            counts = observed(t[r, j], masked)
            target = t[r, j] if counts else real(0)
            dy[r, j] = real(math.exp(y[r, j] - top)) if counts else real(0)
            powers[j % LANES] += np.float64(dy[r, j])
            totals[j % LANES] += np.float64(target)
            dots[j % LANES] += np.float64(target * (y[r, j] - top))
        power, total, dot = tree_sum(powers), tree_sum(totals), tree_sum(dots)
        nothing = masked != NONE and power == 0.0
        ratio = real(0) if nothing else real(total / power)
        for j in range(y.shape[1]):
            target = t[r, j] if observed(t[r, j], masked) else real(0)
            dy[r, j] = real(0) if nothing else slope * (dy[r, j] * ratio - target)
        row_value[r, 0] = size * (0.0 if nothing else total * math.log(power) - dot)


# ---- inverted dropout: philox.h, device.cuh ---


@cuda.jit(device=True)
def philox(c, key0, key1):
    """Philox4x32-10: the counter's words become random ones. Words of 32 bits lie in 64, so that products fit."""
    for _ in range(10):
        p0, p1 = M0 * c[0], M1 * c[2]
        c[0], c[1] = (p1 >> SHIFT) ^ c[1] ^ key0, p1 & WORD
        c[2], c[3] = (p0 >> SHIFT) ^ c[3] ^ key1, p0 & WORD
        key0, key1 = (key0 + W0) & WORD, (key1 + W1) & WORD


@cuda.jit
def dropout_kernel(x, rows, rate, stream, seed, epoch, y):
    r = cuda.grid(1)
    if r < x.shape[0]:
        real = x.dtype.type
        scale, threshold, row = real(1.0 / (1.0 - rate)), np.uint64(rate * 4294967296.0), np.uint64(rows[r, 0])
        words = cuda.local.array(4, np.uint64)
        for j in range(x.shape[1]):
            if j % 4 == 0:  # one block of words for four columns
                words[0], words[1] = np.uint64(j // 4) | stream << STREAM_SHIFT, row & WORD
                words[2], words[3] = row >> SHIFT, epoch & WORD
                philox(words, seed & WORD, seed >> SHIFT)
            y[r, j] = x[r, j] * scale if words[j % 4] >= threshold else real(0)


# ---- the same over NumPy arrays: what a kernel writes is returned ---


def _by_rows(kernel, inputs: tuple, *outputs: Array):
    """Launches a kernel with a thread for each row."""
    rows = max(1, len(inputs[0]))
    threads = min(THREADS, rows)
    kernel[-(-rows // threads), threads](*inputs, *outputs)
    return outputs if len(outputs) > 1 else outputs[0]


def softmax(z: Array) -> Array:
    return _by_rows(softmax_kernel, (z,), np.empty_like(z))


def softmax_grad(dy: Array, y: Array) -> Array:
    return _by_rows(softmax_grad_kernel, (dy, y), np.empty_like(y))


def maxout(z: Array, n: int) -> Array:
    """n units, of as many pieces as z's columns allow"""
    return _by_rows(maxout_kernel, (z,), np.empty((len(z), n), z.dtype))


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> tuple[Array, Array]:
    """y, and (m, 2) float64 mean and deviation of each row; gamma, beta (1, n)"""
    return _by_rows(layer_norm_kernel, (x, gamma, beta, float(epsilon)), np.empty_like(x), np.empty((len(x), 2)))


def layer_norm_grad(dy: Array, x: Array, gamma: Array, statistics: Array) -> Array:
    """dx alone: dgamma and dbeta are sums over rows"""
    return _by_rows(layer_norm_grad_kernel, (dy, x, gamma, statistics), np.empty_like(x))


def _loss(kernel, y: Array, t: Array, weight: Array, scale: float = 1.0, masked: int = NONE) -> tuple[Array, Array]:
    """(m, 1) float64 values of rows, and the derivative in y of their weighted mean; weight (m, 1)"""
    return _by_rows(kernel, (y, t, weight, float(scale), masked), np.empty((len(y), 1)), np.empty_like(y))


squared_error, multinomial = partial(_loss, squared_error_kernel), partial(_loss, multinomial_kernel)


def dropout(x: Array, rows: Array, rate: float, stream: int, seed: int, epoch: int) -> Array:
    """rows (m, 1) int64: the ids that rows' masks are drawn for"""
    key = np.uint64(stream), np.uint64(seed), np.uint64(epoch)
    return _by_rows(dropout_kernel, (x, rows, float(rate), *key), np.empty_like(x))
