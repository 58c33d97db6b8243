"""Codes of s entries a row, ``indices`` (m, s) into n latents: decoding and its gradients, without (m, n) arrays.

One row may name a latent more than once, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import asarray, namespace
from ..spec.options import number
from ._call import check_shape, output, real_array, row_vector, run_ops


def index_array(indices: ArrayLike, n: int, of: str = "the rows of w") -> np.ndarray:
    """The indices as contiguous int32 (m, s), all of them in 0 .. n − 1; ``of``: what these are, for the error."""
    array = asarray(indices)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices have dtype {array.dtype}; wanted integers")
    if array.ndim != 2:
        raise ValueError(f"indices have {array.ndim} dimensions; wanted 2")
    if array.size and not (0 <= array.min() and array.max() < n):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"indices hold {wrong}; wanted 0 .. {n - 1}, {of}")
    return namespace(array).ascontiguousarray(array, dtype=np.int32)


def full_count(indices: np.ndarray) -> np.ndarray:
    return np.full((len(indices), 1), indices.shape[1], np.int32)


def decode(
    values: ArrayLike, indices: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, out: np.ndarray | None = None,
    backend: Any = "auto", n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """y[r] = b + Σ_i values[r, i] w[indices[r, i]].

    values, indices : (m, s), integers in 0 .. n − 1; w : (n, p), a row for each latent; b : (p,) or None
    out : (m, p) for y
    returns : y (m, p)
    Where a value is 0 and its row of w is not finite, the compiled backend leaves the row out, unread, and others
    give NaN.
    Raises ValueError or TypeError for shapes, dtypes, aliasing or indices that don't fit.
    """
    val = real_array("values", values)
    weight = real_array("w", w, val.dtype)
    idx = index_array(indices, len(weight))
    check_shape("values", val, idx.shape)
    (m, s), p = val.shape, weight.shape[1]
    y = output("out", out, (m, p), val.dtype, values, indices, w, b)
    bias = None if b is None else row_vector("b", b, val.dtype, p)
    if not s or not p:
        y[...] = 0 if bias is None else bias
        return y
    arrays = {"val": val, "idx": idx, "count": full_count(idx), "w": weight, "y": y}
    if bias is not None:
        arrays["b"] = bias
    run_ops(backend, val.dtype, m, arrays, [("decode", {name: name for name in arrays})],
         {"val", "idx", "count", "y"}, n_threads)  # fmt: skip
    return y


def code_grad(
    dy: ArrayLike, indices: ArrayLike, w: ArrayLike, out: np.ndarray | None = None, backend: Any = "auto",
    n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Gradient of `decode` in its values: dval[r, i] = dy[r] · w[indices[r, i]].

    dy : (m, p); indices : (m, s), integers in 0 .. n − 1; w : (n, p)
    out : (m, s) for dval
    returns : dval (m, s)
    """
    grad = real_array("dy", dy)
    weight = real_array("w", w, grad.dtype)
    idx = index_array(indices, len(weight))
    check_shape("dy", grad, (len(idx), weight.shape[1]))
    dval = output("out", out, idx.shape, grad.dtype, dy, indices, w)
    if not dval.size or not weight.shape[1]:
        dval[...] = 0
        return dval
    arrays = {"dy": grad, "idx": idx, "count": full_count(idx), "w": weight, "dval": dval}
    run_ops(backend, grad.dtype, len(idx), arrays, [("code_grad", {name: name for name in arrays})],
         set(arrays) - {"w"}, n_threads)  # fmt: skip
    return dval


def latent_grad(
    coef: ArrayLike, indices: ArrayLike, u: ArrayLike, n: int, out: np.ndarray | None = None, backend: Any = "auto",
    n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Sums by latent: dw[j] = Σ coef[r, i] u[r] over the entries with indices[r, i] = j.

    With values and dy that is the gradient of `decode` in w; with dval and x, the gradient of the encoder's weights.
    Entries are added in ascending order, whatever the number of threads.

    coef, indices : (m, s), integers in 0 .. n − 1; u : (m, p); n : number of latents
    out : (n, p) for dw
    returns : dw (n, p)
    Where a coefficient is 0 and its row of u is not finite, compiled and CUDA backends leave the row out.
    """
    c = real_array("coef", coef)
    n = number("n", n, 1, 2**31 - 1, integer=True)
    idx = index_array(indices, n, f"as n={n}")
    rows = real_array("u", u, c.dtype)
    check_shape("coef", c, idx.shape)
    (m, s), p = c.shape, rows.shape[1]
    check_shape("u", rows, (m, p))
    dw = output("out", out, (n, p), c.dtype, coef, indices, u)
    if not c.size or not p:
        dw[...] = 0
        return dw
    arrays = {"coef": c, "idx": idx, "count": full_count(idx), "u": rows, "dw": dw,
              "start": np.empty((1, n + 1), np.int64), "entry": np.empty((m, s), np.int64)}  # fmt: skip
    listed = {"start": "start", "entry": "entry", "capacity": s}
    # w only gives the shape here
    records = [("by_latent", {"idx": "idx", "count": "count", **listed}),
               ("latent_grad", {"coef": "coef", "u": "u", "w": "dw", "dw": "dw", **listed})]  # fmt: skip
    run_ops(backend, c.dtype, m, arrays, records, {"coef", "idx", "count", "u", "entry"}, n_threads)
    return dw


__all__ = ["code_grad", "decode", "latent_grad"]
