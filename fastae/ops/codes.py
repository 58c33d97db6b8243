"""Sparse codes as functions of NumPy arrays: encoding with a selection that is fused with the product."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import namespace, to_host
from ..plan import schema
from ..spec.options import number
from ._call import check_apart, check_shape, output, real_array, row_vector, run_ops


def topk(
    x: ArrayLike, w: ArrayLike, b: ArrayLike | None, k: int, *, magnitude: bool = False,
    out: tuple[np.ndarray, np.ndarray] | None = None, backend: Any = "auto", n_threads: int | None = None,
) -> tuple[NDArray, NDArray]:  # fmt: skip
    """The k largest of z = x wᵀ + b in each row; z itself is never stored.

    x : (m, p); w : (n, p), a latent a row; b : (n,) or None
    k : latents of a row, 1 ≤ k ≤ n; ties: the lowest index
    magnitude : whether the largest |z| are wanted, with their sign
    out : (values, indices) to write to, values like x, indices int32, both (m, k)
    returns : values (m, k), max(z, 0) or with ``magnitude`` z; indices (m, k) int32, ascending in each row. Both are
    the same bits for any batch and number of threads, and those of a selection from `dense`. A z that is NaN, as of a
    latent whose weights are, comes after all numbers.
    Raises ValueError or TypeError for shapes, dtypes and aliasing that don't fit, for rows with NaN or infinity, and
    for rows with fewer than k numbers among z, of which −∞ is none on the compiled backend.
    """
    a = real_array("x", x)
    weight = real_array("w", w, a.dtype)
    (m, p), n = a.shape, weight.shape[0]
    check_shape("w", weight, (n, p))
    k = number("k", k, 1, 2**31 - 1, integer=True)
    if k > n:
        raise ValueError(f"k={k} must be <= the {n} rows of w; lower k or give more latents")
    if out is not None and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"out is a {type(out).__name__}; wanted (values, indices)")
    given = (None, None) if out is None else out
    values = output("out[0] (values)", given[0], (m, k), a.dtype, x, w, b)
    indices = output("out[1] (indices)", given[1], (m, k), np.dtype(np.int32), x, w, b)
    check_apart({"out[0] (values)": values, "out[1] (indices)": indices})
    count = np.empty((m, 1), np.int32)
    arrays = {"x": a, "w": weight, "val": values, "idx": indices, "count": count}
    if b is not None:
        arrays["b"] = row_vector("b", b, a.dtype, n)
    kind = "abs_topk" if magnitude else "topk"
    slots = {name: name for name in arrays} | {"kind": schema.CODE_KINDS.index(kind), "k": k, "k_scalar": -1,
                                               "overflow": -1}  # fmt: skip
    run_ops(backend, a.dtype, m, arrays, [("encode", slots)], {"x", "val", "idx", "count"}, n_threads)
    bad = np.flatnonzero(count[:, 0] < 0) if m else count
    if len(bad):
        raise ValueError(f"x has NaN or infinity in row {bad[0]}; remove or impute such rows ({len(bad)} in all)")
    xp = namespace(values)
    short = np.flatnonzero((count[:, 0] < k) | to_host(xp.any(xp.isnan(values), axis=1)))
    if len(short):
        raise ValueError(
            f"row {short[0]} has fewer than k={k} pre-activations that are numbers above -infinity: they overflow "
            f"{a.dtype}, or w or b has NaN or infinity; scale x, mend w and b, or lower k"
        )
    return values, indices
