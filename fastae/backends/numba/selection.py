"""Which latents a row's code has: candidates by blocks of BLAS products, decided by one fixed sum per product.

The bits of a BLAS product depend on its place in the block. So it only says which latents may be among the largest:
those within ``error`` of the bound. Their pre-activations are summed again in an order that depends on nothing but the
number of inputs: equal latents tie, and no result depends on blocks. Candidates lie in pools, one per row or one for
the batch, that are thinned whenever they are full.
"""

import numpy as np
from numba import njit

from ...plan import schema
from ..interpreter import operand
from ..reference.codes import active_k, present_decay, report_overflow
from .candidates import SPAN, collect, decide, largest_norm, pre_activation, rounding
from .codes import optional, wide

_jit = njit(cache=True, nogil=True, error_model="numpy")
ROWS, LATENTS = 512, 2048  # of a block of products; large, as each product wakes the threads of BLAS


def pack_encoder(step, op, v):
    """packed ← the largest norm of a latent, a float64."""
    v["packed"].reshape(-1)[:8].view(np.float64)[0] = largest_norm(np.ascontiguousarray(operand(op, v["w"])))


@_jit
def store_rows(top, x, w, b, error, k, magnitude, size, score, row, latent, scratch, val, pre, idx, count, with_pre):
    for q in range(len(size)):
        r = top + q
        if error[r] != error[r]:
            count[r, 0] = -1
            continue
        n = decide(x, w, b, error, k, magnitude, size[q], score[q], row[q], latent[q], scratch)
        count[r, 0] = n
        for i in range(n):
            j = latent[q, i]
            z = pre_activation(x[r], w, b, j)
            idx[r, i], val[r, i] = j, 0 if z < 0 and not magnitude else z
            if with_pre:
                pre[r, i] = z


@_jit
def store_batch(n, score, row, latent, val, idx, count, capacity):
    """The smallest of the positive scores (0: none), and the number of entries in the longest row."""
    smallest, most = 0.0, 0
    count[:, 0] = 0
    for i in range(n):
        if score[i] > 0:
            r, c = row[i], count[row[i], 0]
            if c < capacity:
                idx[r, c], val[r, c] = latent[i], score[i]
            count[r, 0] = c + 1
            most = max(most, c + 1)
            smallest = score[i] if smallest == 0 else min(smallest, score[i])
    return smallest, most


@_jit
def store_above(z, top, latents, x, w, b, error, t, margin, val, pre, idx, count, with_pre, capacity):
    """Appends the latents with z > t − margin; the number of entries in the longest row."""
    most = 0
    for i in range(z.shape[0]):
        r = top + i
        if error[r] != error[r]:
            count[r, 0] = -1
            continue
        limit = margin + error[r]
        n = count[r, 0]
        for start in range(0, z.shape[1], SPAN):
            stop = min(start + SPAN, z.shape[1])
            hits = 0
            for j in range(start, stop):
                hits += not z[i, j] <= t[j] - limit
            if hits == 0:
                continue
            for j in range(start, stop):
                if z[i, j] <= t[j] - limit:
                    continue
                exact = pre_activation(x[r], w, b, latents[j])
                if exact > t[j] - margin:
                    if n < capacity:
                        idx[r, n], val[r, n] = latents[j], exact if exact > t[j] else 0
                        if with_pre:
                            pre[r, n] = exact
                    n += 1
        count[r, 0] = n
        most = max(most, n)
    return most


def products(x, w, b, latents):
    """Blocks of x wT + b: the latents of the columns, and products in memory that the next block takes."""
    space = np.empty(len(x) * min(LATENTS, len(latents)), w.dtype)
    for first in range(0, len(latents), LATENTS):
        some = latents[first : first + LATENTS]
        rows = w[first : first + LATENTS] if len(latents) == len(w) else w[some]
        z = space[: len(x) * len(some)].reshape(len(x), len(some))
        np.matmul(x, rows.T, out=z)
        if len(b):
            z += b[some]
        yield some, z


def operands(op, v):
    """x, w and b (empty without) as the loops want them, and the rounding error of each row's products."""
    x, w = (np.ascontiguousarray(operand(op, v[name])) for name in ("x", "w"))
    b, error, info = optional(v, "b", w.dtype), np.empty(len(x)), np.finfo(w.dtype)
    norm_w = v["packed"].reshape(-1)[:8].view(np.float64)[0] if "packed" in v else largest_norm(w)
    rounding(x, float(norm_w), b, float(info.eps), float(info.tiny), error)
    return x, w, b, error


def pools(n, k, n_candidates, bound):
    """n empty pools of candidates for the k largest: bound, size, score, row, latent, scratch."""
    capacity = min(2 * k + 64, n_candidates + 1)
    return (np.full(n, bound), np.zeros(n, np.int64), np.empty((n, capacity)), np.empty((n, capacity), np.int32),
            np.empty((n, capacity), np.int32), np.empty(capacity))  # fmt: skip


def encode(step, op, v):
    x, w, b, error = operands(op, v)
    latents = np.arange(len(w), dtype=np.int32)
    if "subset" in v:
        latents = np.ascontiguousarray(v["subset"][0, : v["n_subset"][0, 0]])
    val, idx, count = wide(v["val"]), wide(v["idx"]), wide(v["count"])
    pre, with_pre, kind = wide(v["pre"]) if "pre" in v else val, "pre" in v, schema.CODE_KINDS[op.ints["kind"]]
    k = min(active_k(step, op), len(latents))
    t = np.broadcast_to(v["threshold"][0] if "threshold" in v else 0.0, len(w)).astype(np.float64)
    capacity, most = v["val"].shape[1], 0
    v["count"][...] = np.where(np.isnan(error), -1, 0)[:, None]
    if kind != "threshold" and k == 0:
        return
    for top in range(0, len(x), ROWS):
        rows = x[top : top + ROWS]
        pool = pools(len(rows), k, len(latents), -np.inf)
        for some, z in products(rows, w, b, latents):
            if kind == "threshold":
                longest = store_above(z, top, some, x, w, b, error, t[some], op.floats["margin"], val, pre, idx, count,
                                      with_pre, capacity)  # fmt: skip
                most = max(most, longest)
            else:
                collect(z, top, some, x, w, b, error, k, kind == "abs_topk", *pool)
        if kind != "threshold":
            store_rows(top, x, w, b, error, k, kind == "abs_topk", *pool[1:], val, pre, idx, count, with_pre)
    if most > capacity:
        report_overflow(step, op)


def batch_topk(step, op, v):
    x, w, b, error = operands(op, v)
    limit = step.job.scalars[step.number, op.ints["k_scalar"]] if op.ints["k_scalar"] >= 0 else op.ints["k"]
    n_products = len(x) * len(w)
    wanted = min(int(np.floor(min(limit, op.ints["k"]) * len(x))), n_products)
    bound, size, *candidates = pools(1, wanted, n_products, 0.0)
    latents = np.arange(len(w), dtype=np.int32)
    n = 0
    if wanted:
        for top in range(0, len(x), ROWS):
            for some, z in products(x[top : top + ROWS], w, b, latents):
                collect(z, top, some, x, w, b, error, wanted, False, bound, size, *candidates)
        score, row, latent, scratch = candidates
        n = decide(x, w, b, error, wanted, False, size[0], score[0], row[0], latent[0], scratch)
    score, row, latent, _ = candidates
    capacity = v["val"].shape[1]
    smallest, most = store_batch(n, score[0], row[0], latent[0], wide(v["val"]), wide(v["idx"]), wide(v["count"]),
                                 capacity)  # fmt: skip
    if most > capacity:
        report_overflow(step, op)
    if "threshold" in v and most:
        old, decay = float(v["threshold"][0, 0]), present_decay(step, op)
        v["threshold"][0, 0] = smallest if old < 0 else decay * old + (1 - decay) * smallest
