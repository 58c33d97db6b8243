"""What all public ops share: checks of arrays, and running a plan of a few records over them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import address, asarray, device_number, namespace, on_device, real_of, share_memory
from ..backends import get_backend
from ..catalog import UPDATE_RULES
from ..plan import schema
from ..plan.plan import Job, Plan, PlanBuilder
from ..spec import options
from ..spec.options import number
from ..threads import resolve_threads
from ..validation import refuse_masked

Key = tuple[int, int, int]
_BATCH = schema.BATCH_ROWS


# ---- checks ---------------------------------------------------------------------------------------------------------


def real_array(name: str, value: Any, dtype: np.dtype | None = None, ndim: int = 2) -> np.ndarray:
    """The value as a contiguous real array of ``ndim`` dimensions."""
    refuse_masked(name, value)
    array = asarray(value)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} ({type(value).__name__}) has dtype {array.dtype}; wanted real numbers")
    if array.ndim != ndim:
        raise ValueError(f"{name} has {array.ndim} dimensions; wanted {ndim}")
    if dtype is None:
        dtype = real_of(array.dtype)
    return namespace(array).ascontiguousarray(array, dtype=dtype)


def row_vector(name: str, value: Any, dtype: np.dtype, n: int) -> np.ndarray:
    array = real_array(name, value, dtype, 1)
    if len(array) != n:
        raise ValueError(f"{name} has {len(array)} elements; wanted {n}")
    return array[None, :]


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; wanted {shape}")


def output(
    name: str, out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype, *inputs: Any,
    same: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """The caller's array for a result, or a new one where the inputs lie (on a GPU where one of them does).

    same : the input that it may be, element for element
    """
    if out is None:
        return namespace(*inputs, same).empty(shape, dtype)
    if not isinstance(out, np.ndarray) and not on_device(out):
        raise TypeError(f"{name} is a {type(out).__name__}; wanted a NumPy array, or CuPy's on a GPU")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"{name} has shape {out.shape} and dtype {out.dtype}; wanted {shape} and {dtype}")
    if not (out.flags.c_contiguous and getattr(out.flags, "writeable", True)):
        raise ValueError(f"{name} must be C-contiguous and writeable; allocate it with numpy.empty")
    if any(share_memory(out, array) for array in inputs):
        raise ValueError(f"{name} shares memory with an input; give an array of its own")
    if same is not None and share_memory(out, same) and address(out) != address(same):
        raise ValueError(f"{name} overlaps an input that starts elsewhere; give that input itself or another array")
    return out


def check_apart(arrays: dict[str, np.ndarray]) -> None:
    """Refuses contiguous arrays of which two share memory."""
    names = list(arrays)
    for i, first in enumerate(names):
        for second in names[:i]:
            if share_memory(arrays[first], arrays[second]):
                raise ValueError(f"{first} shares memory with {second}; give each an array of its own")


def row_ids(rows: ArrayLike | None, m: int) -> np.ndarray:
    """Row ids as (m, 1) int64: 0 .. m − 1, or the caller's."""
    if rows is None:
        return np.arange(m, dtype=np.int64)[:, None]
    ids = np.asarray(rows)
    if ids.dtype.kind not in "iu" or ids.shape != (m,) or (m and ids.min() < 0):
        raise ValueError(f"rows must be {m} non-negative integers, got shape {ids.shape} and dtype {ids.dtype}")
    return np.ascontiguousarray(ids, dtype=np.int64)[:, None]


def check_key(key: Key | None, rate: float) -> Key:
    if key is None:
        if rate:
            raise ValueError("a random mask needs key=(seed, epoch, stream), of which it is a function")
        return 0, 0, 0
    if not isinstance(key, (tuple, list)) or len(key) != 3:
        raise ValueError(f"key={key!r} must be (seed, epoch, stream)")
    seed, epoch, stream = key
    return (
        number("key[0] (seed)", seed, 0, 2**64 - 1, integer=True),
        number("key[1] (epoch)", epoch, 0, 2**32 - 1, integer=True),
        number("key[2] (stream)", stream, 0, 254, integer=True),
    )


def activation_attributes(value: Any) -> dict[str, float]:
    """Record attributes of an activation's name or option."""
    option = options.choose("activation", value, options.ACTIVATIONS)
    parameters = {f"p{i}": v for i, v in enumerate(options.values(option))}
    return {"activation": option._index, **parameters}


# ---- one-op plans ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _compiled(backend: Any, dtype: np.dtype, batch: int, buffers: tuple, ops: tuple) -> tuple[Plan, Any]:
    """buffers: (name, rows, columns, dtype code); ops: (kind, slots and attributes as sorted pairs)."""
    builder = PlanBuilder(dtype, batch, "op")
    values = any(name == "value" and value >= 0 for _, items in ops for name, value in items)
    builder.n_values = int(values)
    builder.n_scalars = max((len(UPDATE_RULES[dict(items)["rule"]].step) for kind, items in ops if kind == "update"),
                            default=0)  # fmt: skip
    for name, rows, columns, code in buffers:
        builder.external(name, rows, columns, code)
    for kind, items in ops:
        builder.op(kind, **dict(items))
    plan = builder.build()
    return plan, backend.compile(plan)


def run_ops(
    backend: Any, dtype: np.dtype, m: int, arrays: dict[str, np.ndarray], ops: list[tuple[str, dict]],
    batched: set[str], n_threads: int | None, key: Key = (0, 0, 0), scalars: np.ndarray | None = None,
) -> float:  # fmt: skip
    """Runs ops over the arrays; those in ``batched`` have a row per batch row. Returns the op's value, if any."""
    if m == 0:
        return 0.0
    codes = {np.dtype(np.int32): schema.INT32, np.dtype(np.int64): schema.INT64, np.dtype(np.float64): schema.FLOAT64}
    buffers = tuple(
        (name, _BATCH if name in batched else a.shape[0], a.shape[1],
         schema.REAL if a.dtype == dtype and name != "row_value" else codes[a.dtype])
        for name, a in arrays.items()
    )  # fmt: skip
    records = tuple((kind, tuple(sorted(attributes.items()))) for kind, attributes in ops)
    chosen = backend_for(backend, arrays)
    plan, handle = _compiled(chosen, dtype, m, buffers, records)
    values = np.zeros((1, 1)) if plan.n_values else None
    empty = np.empty(0, np.uint8)
    job = Job(
        [*plan.allocate(arena=True)[:1], empty, empty, empty, *arrays.values()], n_rows=m, phases=schema.GRADIENT,
        seed=key[0], epoch=key[1], n_threads=resolve_threads(n_threads, "n_threads"), scalars=scalars, values=values,
    )  # fmt: skip
    chosen.run(handle, job)
    return float("nan") if values is None else float(values[0, 0])


def backend_for(backend: Any, arrays: dict[str, Any]) -> Any:
    """The backend of a name; "auto" is the GPU of the arrays where one of them lies there."""
    numbers = {name: device_number(array) for name, array in arrays.items() if on_device(array)}
    if len(set(numbers.values())) > 1:
        where = ", ".join(f"{name} on cuda:{number}" for name, number in numbers.items())
        raise ValueError(f"arrays lie on several GPUs ({where}); copy them to one")
    if not numbers or not isinstance(backend, str):
        return get_backend(backend)
    if backend not in ("auto", "cuda"):
        raise ValueError(f"backend={backend!r} runs on the CPU, and an array lies on a GPU; use backend='auto'")
    return get_backend("auto", f"cuda:{next(iter(numbers.values()))}")


def as_rows(name: str, value: Any, dtype: np.dtype | None = None) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array of any shape as (rows, columns), and its shape."""
    array = asarray(value)
    shape = array.shape
    flat = array.reshape(math.prod(shape[:-1]), shape[-1]) if array.ndim >= 2 else array.reshape(1, -1)
    return real_array(name, flat, dtype), shape
