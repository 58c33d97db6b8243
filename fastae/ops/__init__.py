"""The kernels as functions of arrays, for pipelines of one's own.

Arrays are NumPy's, or lie on a GPU (CuPy's, ``__cuda_array_interface__``, DLPack): then the GPU computes, and results
are CuPy's. Arrays of the host beside these are copied there.

Each call is a plan of one or two ops over the caller's arrays, run by a backend like any other plan. One array says
what is computed in, float64 if it is float64, else float32, and the others are converted: the first argument that is an
array, except that it is x of `dense_grad`, dy of `activation_grad`, and a packed w of `dense`. Inputs are made
contiguous where they are not; ``out`` must have the right shape and dtype, be C-contiguous and writeable, and share no
memory with an input, except that of elementwise ops, softmax and dropout it may be the input itself.
Masked arrays with masked entries are refused. ``key = (seed, epoch, stream)`` names a random mask, the same on every
backend, and ``rows``, (m,) non-negative integers, say which row of it a row takes, None: 0 … m − 1. ``backend`` is
"auto", "native", "numba", "reference" or "cuda"; ``n_threads=None`` takes FASTAE_NUM_THREADS, OMP_NUM_THREADS, or all
cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import asarray, namespace, on_device
from ..backends import get_backend
from ..catalog import INDEX, UPDATE_RULES
from ..plan import schema
from ..plan.dense import PACK_ROUND
from ..plan.losses import loss_record
from ..spec import options
from ..spec.options import number, unknown
from ._call import (
    Key,
    activation_attributes,
    as_rows,
    backend_for,
    check_apart,
    check_key,
    check_shape,
    output,
    real_array,
    row_ids,
    row_vector,
    run_ops,
)
from .codes import topk
from .sparse import code_grad, decode, latent_grad

__all__ = [
    "PackedWeight", "activation", "activation_grad", "code_grad", "decode", "dense", "dense_grad", "dropout",
    "latent_grad", "loss", "noise", "pack", "penalty", "permutation", "softmax", "state_names", "topk", "update",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class PackedWeight:
    """A weight matrix in the layout of a backend's products; made by `pack`, taken by `dense` in place of ``w``.

    w, packed, backend : the matrix (n, k), the same as the backend lays it out, and the backend
    """

    def __init__(self, w: np.ndarray, packed: np.ndarray, backend: Any):
        self.w, self.packed, self.backend = w, packed, backend
        self.shape, self.dtype = w.shape, w.dtype

    def __repr__(self) -> str:
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype}, backend={self.backend.name!r})"


def pack(w: ArrayLike, backend: Any = "auto", n_threads: int | None = None) -> PackedWeight:
    """Packs w (n, k) once for repeated products; the array is copied, later changes to it are not seen."""
    a = real_array("w", w).copy()
    n, k = a.shape
    chosen = backend_for(backend, {"w": a})
    packed = namespace(a).zeros((-(-n // PACK_ROUND) * PACK_ROUND, k), a.dtype)
    if a.size:
        run_ops(chosen, a.dtype, 1, {"w": a, "packed": packed}, [("pack", {"w": "w", "packed": "packed"})], set(),
             n_threads)  # fmt: skip
    return PackedWeight(a, packed, chosen)


def dense(
    x: ArrayLike, w: ArrayLike | PackedWeight, b: ArrayLike | None = None, activation: Any = "identity",
    dropout: float = 0.0, key: Key | None = None, rows: ArrayLike | None = None, out: np.ndarray | None = None,
    preact_out: np.ndarray | None = None, backend: Any = "auto", n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """y = dropout(a(x wᵀ + b)).

    x : (m, k); w : (n, k) or PackedWeight; b : (n,) or None
    activation : name or option; dropout : rate in [0, 1), with ``key`` and the rows' ids
    out, preact_out : (m, n) for y and for z = x wᵀ + b
    returns : y (m, n)
    Raises ValueError or TypeError for shapes, dtypes, aliasing or names that don't fit.
    """
    packed = w if isinstance(w, PackedWeight) else None
    if packed is not None and backend != "auto" and get_backend(backend) is not packed.backend:
        raise ValueError(
            f"w is packed for backend={packed.backend.name!r}, not for {backend!r}; leave backend at 'auto', or pack w "
            "for that one"
        )
    a = real_array("x", x, None if packed is None else packed.dtype)
    weight = packed.w if packed else real_array("w", w, a.dtype)
    (m, k), n = a.shape, weight.shape[0]
    check_shape("w", weight, (n, k))
    rate = number("dropout", dropout, 0.0, 1.0, "left")
    key = check_key(key, rate)
    y = output("out", out, (m, n), a.dtype, x, w, b)
    arrays = {"x": a, "w": weight, "y": y}
    slots = {"x": "x", "w": "w", "y": "y", "rate": rate, "stream": key[2], **activation_attributes(activation)}
    if b is not None:
        arrays["b"], slots["b"] = row_vector("b", b, a.dtype, n), "b"
    if preact_out is not None:
        arrays["z"], slots["z"] = output("preact_out", preact_out, (m, n), a.dtype, x, w, b, out), "z"
    if packed is not None:
        arrays["packed"], slots["packed"] = packed.packed, "packed"
    if rate:
        arrays["rows"], slots["rows"] = row_ids(rows, m), "rows"
    run_ops(packed.backend if packed else backend, a.dtype, m, arrays, [("dense", slots)], {"x", "y", "z", "rows"},
         n_threads, key)  # fmt: skip
    return y


def dense_grad(
    dy: ArrayLike, saved: ArrayLike, x: ArrayLike, w: ArrayLike, activation: Any = "identity", need_dx: bool = True,
    backend: Any = "auto", n_threads: int | None = None,
) -> tuple[NDArray | None, NDArray, NDArray]:  # fmt: skip
    """Gradients of `dense` without dropout: δ = dy a'(saved); dx = δ w, dw = δᵀ x, db = Σ_rows δ.

    dy : (m, n); saved : (m, n), the output y, or the pre-activation for activations whose derivative needs it
    (gelu, gelu_tanh, silu); x : (m, k); w : (n, k); need_dx : whether dx is wanted
    returns : dx (m, k) or None, dw (n, k), db (n,)
    """
    a = real_array("x", x)
    weight, grad, kept = real_array("w", w, a.dtype), real_array("dy", dy, a.dtype), real_array("saved", saved, a.dtype)
    (m, k), n = a.shape, weight.shape[0]
    check_shape("w", weight, (n, k))
    check_shape("dy", grad, (m, n))
    check_shape("saved", kept, (m, n))
    xp = namespace(a)
    dz, dw, db = xp.empty((m, n), a.dtype), xp.zeros((n, k), a.dtype), xp.zeros((1, n), a.dtype)
    arrays = {"x": a, "w": weight, "dy": grad, "saved": kept, "dz": dz, "dw": dw, "db": db}
    chain = {"dy": "dy", "saved": "saved", "dz": "dz", **activation_attributes(activation)}
    slots = {"dz": "dz", "x": "x", "w": "w", "dw": "dw", "db": "db"}
    dx = None
    if not n:
        return xp.zeros((m, k), a.dtype) if need_dx else None, dw, db[0]
    if need_dx:
        dx = arrays["dx"] = xp.empty((m, k), a.dtype)
        slots["dx"] = "dx"
    run_ops(backend, a.dtype, m, arrays, [("activation_grad", chain), ("dense_grad", slots)],
         {"x", "dy", "saved", "dz", "dx"}, n_threads)  # fmt: skip
    return dx, dw, db[0]


def activation(
    name: Any, x: ArrayLike, out: np.ndarray | None = None, backend: Any = "auto", n_threads: int | None = None
) -> np.ndarray:
    """y = a(x), elementwise; x of any shape, ``out`` may be x itself. name : of the activation, or its option"""
    a, shape = as_rows("x", x)
    y = output("out", out, shape, a.dtype, same=a)
    slots = {"x": "x", "y": "y", **activation_attributes(name)}
    if a.size:
        run_ops(backend, a.dtype, len(a), {"x": a, "y": y.reshape(a.shape)}, [("activation", slots)], {"x", "y"},
                n_threads)  # fmt: skip
    return y


def activation_grad(
    name: Any, saved: ArrayLike, dy: ArrayLike, out: np.ndarray | None = None, backend: Any = "auto",
    n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """dz = dy a'(saved), elementwise; ``saved`` is y, or x for gelu, gelu_tanh and silu. ``out`` may be dy itself.

    name : of the activation, or its option
    """
    g, shape = as_rows("dy", dy)
    kept, saved_shape = as_rows("saved", saved, g.dtype)
    if saved_shape != shape:
        raise ValueError(f"saved has shape {saved_shape}; wanted dy's, {shape}")
    z = output("out", out, shape, g.dtype, saved, same=g)
    slots = {"dy": "dy", "saved": "saved", "dz": "dz", **activation_attributes(name)}
    if g.size:
        run_ops(backend, g.dtype, len(g), {"dy": g, "saved": kept, "dz": z.reshape(g.shape)},
                [("activation_grad", slots)], {"dy", "saved", "dz"}, n_threads)  # fmt: skip
    return z


def softmax(
    z: ArrayLike, out: np.ndarray | None = None, backend: Any = "auto", n_threads: int | None = None
) -> np.ndarray:
    """Softmax over each row of z (m, n)."""
    a = real_array("z", z)
    y = output("out", out, a.shape, a.dtype, same=a)
    if a.shape[1]:
        run_ops(backend, a.dtype, len(a), {"z": a, "y": y}, [("softmax", {"z": "z", "y": "y"})], {"z", "y"}, n_threads)
    return y


def dropout(
    x: ArrayLike, rate: float, key: Key, rows: ArrayLike | None = None, out: np.ndarray | None = None,
    backend: Any = "auto", n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Inverted dropout of x (m, p): the mask is a function of (key, row id, column) alone.

    rate : in [0, 1), of elements that become 0; the others are divided by 1 − rate
    """
    a = real_array("x", x)
    rate = number("rate", rate, 0.0, 1.0, "left")
    key = check_key(key, rate)
    y = output("out", out, a.shape, a.dtype, same=a)
    slots = {"x": "x", "y": "y", "rows": "rows", "rate": rate, "stream": key[2]}
    arrays = {"x": a, "y": y, "rows": row_ids(rows, len(a))}
    run_ops(backend, a.dtype, len(a), arrays, [("dropout", slots)], set(arrays), n_threads, key)
    return y


def noise(
    option: Any, x: ArrayLike, key: Key, rows: ArrayLike | None = None, out: np.ndarray | None = None,
    backend: Any = "auto", n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """x (m, p) corrupted by a noise option such as ``fastae.MaskingNoise(0.3)``; swap noise also takes stream + 1."""
    option = options.choose("noise", option, options.NOISES)
    kind = next(name for name, cls in options.NOISES.items() if isinstance(option, cls))
    a = real_array("x", x)
    key = check_key(key, 1.0)
    y = output("out", out, a.shape, a.dtype, x)
    slots = {"x": "x", "y": "y", "rows": "rows", "kind": schema.NOISE_KINDS.index(kind), "stream": key[2],
             "amount": option.std if kind == "gaussian" else option.rate,
             "low": getattr(option, "low", 0.0), "high": getattr(option, "high", 0.0)}  # fmt: skip
    arrays = {"x": a, "y": y, "rows": row_ids(rows, len(a))}
    items = [("noise", slots)]
    run_ops(backend, a.dtype, len(a), arrays, items, set(arrays), n_threads, key)
    return y


def loss(
    name: Any, y: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None, backend: Any = "auto",
    n_threads: int | None = None,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """Mean over rows and features of a loss, and its gradient with respect to y.

    name : name or option; y, target : (m, p). y is the logit for binary_cross_entropy, the log-rate for poisson, the
    unnormalised log-probability for multinomial and categorical_cross_entropy; for negative_binomial it is (m, 2p), the
    log-means and the log-dispersions, and zero_inflated_negative_binomial has p logits of the dropout after these.
    cosine is a mean over rows only.
    mask : bool (m, p), True where the target is observed: others count as nothing, and the mean of a row is over its
    observed entries
    returns : value (float64), dy like y
    """
    option = options.choose("loss", name, options.ALL_LOSSES)
    a = real_array("y", y)
    t = real_array("target", target, a.dtype)
    check_shape("target", t, (a.shape[0], a.shape[1] // option.n_outputs))
    check_shape("y", a, (t.shape[0], t.shape[1] * option.n_outputs))
    if not a.size:
        raise ValueError(f"y has shape {a.shape}; a mean needs at least one element")
    if mask is not None:
        observed = asarray(mask)
        if observed.dtype != bool or observed.shape != t.shape:
            raise ValueError(
                f"mask has shape {observed.shape} and dtype {observed.dtype}; wanted bool of shape {t.shape}"
            )
        xp = namespace(t)
        observed = xp.asarray(observed)
        if xp.any(xp.logical_and(xp.isnan(t), observed)):
            raise ValueError("target has NaN where mask is True; mask these entries too")
        t = xp.where(observed, t, a.dtype.type(np.nan))
    kind, attributes = loss_record(option, t.shape[1], mean=True, masked=mask is not None)
    arrays = {"y": a, "target": t, "dy": namespace(a).empty_like(a), "row_value": np.empty((len(a), 1))}
    slots = {name: name for name in arrays} | {"value": 0, **attributes}
    records = [(kind, slots)]
    if getattr(option, "size_factor", False):
        arrays["size"], slots["size"] = namespace(a).empty((len(a), 1), a.dtype), "size"
        records.insert(0, ("size_factor", {"target": "target", "size": "size"}))
    return run_ops(backend, a.dtype, len(a), arrays, records, set(arrays), n_threads), arrays["dy"]


def penalty(
    name: Any, z: ArrayLike, strength: float | None = None, backend: Any = "auto", n_threads: int | None = None
) -> tuple[float, np.ndarray]:
    """Sum of a penalty over all elements of z, and its (sub)gradient; ``strength`` replaces the option's.

    name : of the penalty, or its option; z : of any shape
    returns : value (float64), dz like z
    """
    option = options.choose("penalty", name, options.PENALTIES)
    values = list(options.values(option))
    if strength is not None:
        if not values or option._row.parameters[0].name != "strength":
            raise ValueError(f"penalty {option!r} has no strength; give its own parameters in the option")
        values[0] = number("strength", strength, 0.0, float("inf"), "left")
    array = asarray(z)
    a = real_array("z", array.reshape(1, -1))  # one row: the op takes the mean over rows
    dz, row_value = namespace(a).zeros_like(a), np.empty((1, 1))
    arrays = {"h": a, "dh": dz, "row_value": row_value}
    slots: dict[str, Any] = {name: name for name in arrays} | {"penalty": option._index, "value": 0}
    slots |= {f"p{i}": v for i, v in enumerate(values)}
    value = run_ops(backend, a.dtype, int(a.size > 0), arrays, [("activity", slots)], set(arrays), n_threads)
    return value, dz.reshape(array.shape)


def update(
    rule: Any, param: np.ndarray, grad: ArrayLike, state: tuple[np.ndarray, ...] | list[np.ndarray],
    learning_rate: float, step: int, backend: Any = "auto", n_threads: int | None = None, **parameters: float,
) -> None:  # fmt: skip
    """One step of an update rule, in place on ``param`` and ``state``.

    rule : name, with its ``parameters`` as keywords, or option; learning_rate : > 0
    grad : of param's shape; state : one array like param for each of the rule's states (`state_names`)
    step : counted from 1
    An option's ``clip_value`` and ``clip_norm`` clip a copy of ``grad`` first, the norm being that of this array alone.
    """
    if isinstance(rule, str):
        if rule not in options.SOLVERS:
            raise unknown("rule", rule, options.SOLVERS)
        rule = options.SOLVERS[rule](**parameters)
    elif parameters:
        raise ValueError(f"parameters {sorted(parameters)} were given beside the option {rule!r}; put them into it")
    row = UPDATE_RULES[INDEX["update"][options.choose("rule", rule, options.SOLVERS).name]]
    rate = number("learning_rate", learning_rate, 0.0, float("inf"), "neither")
    t = number("step", step, 1, 2**62, integer=True)
    if len(state) != len(row.states):
        raise ValueError(f"{row.name} has the states {row.states}, got {len(state)} arrays; give one array each")
    arrays = {"w": param, **{f"s{i}": s for i, s in enumerate(state)}}
    for name, array in arrays.items():
        shown = "param" if name == "w" else f"state[{name[1:]}]"
        if not (isinstance(array, np.ndarray) or on_device(array)) or array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{shown} must be a float32 or float64 array of NumPy or CuPy, as it is changed in place")
        output(shown, array, param.shape, param.dtype)
    slope = asarray(grad)
    check_shape("grad", slope, param.shape)
    g = real_array("grad", slope.reshape(1, -1), param.dtype)
    check_apart({"param": param, **{f"state[{i}]": s for i, s in enumerate(state)}, "grad": g})
    names = {p.name: getattr(rule, p.name) for p in row.parameters}
    constants = [float(eval(text, {"__builtins__": {}}, {"lr": rate, "t": float(t), **names})) for _, text in row.step]
    flat = {name: array.reshape(1, -1) for name, array in arrays.items()} | {"g": g}
    slots = {name: name for name in flat} | {"rule": INDEX["update"][row.name]}
    slots |= {f"p{i}": float(v) for i, v in enumerate(options.values(rule))}
    limits = [(mode, limit) for mode, limit in enumerate((rule.clip_value, rule.clip_norm)) if limit is not None]
    records = [("clip_gradient", {"g": "g", "mode": mode, "limit": float(limit)}) for mode, limit in limits]
    if limits:
        flat["g"] = g.copy()
    if param.size:
        run_ops(backend, param.dtype, 1, flat, [*records, ("update", slots)], set(), n_threads,
                scalars=np.array([constants]))  # fmt: skip


def state_names(rule: str) -> tuple[str, ...]:
    """Names of an update rule's state arrays, in the order that `update` takes them."""
    if rule not in options.SOLVERS:
        raise unknown("rule", rule, options.SOLVERS)
    return UPDATE_RULES[INDEX["update"][rule]].states


def permutation(n: int, seed: int, epoch: int = 0, backend: Any = "auto") -> np.ndarray:
    """Order of n rows in an epoch, int64: a function of (seed, epoch), the same on every backend."""
    return get_backend(backend).permutation(
        number("seed", seed, 0, 2**64 - 1, integer=True), number("epoch", epoch, 0, 2**32 - 1, integer=True),
        number("n", n, 0, 2**32 - 1, integer=True),
    )  # fmt: skip
