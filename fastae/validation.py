"""Input of the estimators: any array, frame or sparse matrix → rows that the kernels can read.

Conforming arrays (2-D, real, contiguous columns) are taken as they are, without scikit-learn's checks (about 50 µs);
everything else goes through scikit-learn's, which also words the errors.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from numbers import Number, Real
from typing import Any

import numpy as np

from .arrays import asarray, device_number, namespace, of_tensor, on_device, real_of
from .plan.plan import Source
from .spec.network import Network

# stored types that every backend reads directly; ml_dtypes' bfloat16 is known by its name
READABLE = frozenset("float16 bfloat16 float32 float64 uint8 int8 uint16 int16 uint32 int32 uint64 int64 bool".split())
FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))


def computing_dtype(stored: np.dtype, precision: str) -> np.dtype:
    """float64 for float64 input and float32 for everything else, unless ``precision`` says otherwise.

    "bfloat16" is float32 but for the operands of products.
    """
    if precision in ("float32", "float64"):
        return np.dtype(precision)
    if precision in ("bfloat16", "tf32"):
        return np.dtype(np.float32)
    return real_of(stored)


def is_readable(array: np.ndarray) -> bool:
    """Whether kernels can read a 2-D array as it lies: native byte order, contiguous columns, rows in order."""
    rows, columns = array.shape
    item = array.itemsize
    return array.dtype.isnative and (columns <= 1 or array.strides[1] == item) and (
        rows <= 1 or (array.strides[0] >= 0 and array.strides[0] % item == 0)
    )  # fmt: skip


def readable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where kernels could not read it: byte order, Fortran order, negative strides."""
    return array if is_readable(array) else np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _frame_array(X: Any) -> np.ndarray | None:
    """Values of a pandas, polars or pyarrow frame, float32 staying float32; None for anything else."""
    if type(X).__module__.partition(".")[0] not in ("pandas", "polars", "pyarrow") or getattr(X, "ndim", 2) != 2:
        return None
    if type(X).__module__.startswith("pyarrow"):
        if not hasattr(X, "columns") or not hasattr(X, "column_names"):
            return None
        columns = [column.to_numpy(zero_copy_only=False) if not hasattr(column, "combine_chunks")
                   else column.combine_chunks().to_numpy(zero_copy_only=False) for column in X.columns]  # fmt: skip
        values = np.stack(columns, axis=1) if columns else np.empty((X.num_rows, 0))
    elif hasattr(X, "to_numpy"):
        values = X.to_numpy()
    else:
        raise TypeError(f"X is a {type(X).__name__}, which holds no rows yet; give X.collect()")
    return values if values.ndim == 2 and values.dtype.name in READABLE else None


def refuse_masked(name: str, X: Any, remedy: str = "with NaN for a model that has missing=np.nan") -> None:
    """Raises for a masked array that has masked entries: NumPy and scikit-learn read what lies below the mask."""
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise TypeError(
            f"{name} is a masked array, whose masked entries would count as data; fill them by {name}.filled(…), "
            f"{remedy}"
        )


def _refuse_blocks(X: Any) -> None:
    """Raises for rows in files or blocks where only rows in memory will do, and for what holds no rows at all."""
    listed = isinstance(X, (list, tuple)) and bool(X)
    first = X[0] if listed else X
    blocks = listed and len(getattr(first, "shape", ())) == 2
    held = ("__array__", "__len__", "__iter__", "collect")  # the last of a lazy frame, whose error comes later
    rows = any(hasattr(X, name) for name in held) or X is None or isinstance(X, Number)
    if isinstance(first, (str, os.PathLike, Iterator)) or callable(X) or blocks or not rows:
        raise TypeError(
            f"X is a {type(X).__name__}{' of blocks' if blocks else ''}; wanted rows in memory: an array, such as "
            "numpy.load(path, mmap_mode='r'), a sparse matrix or a frame. Files and blocks, in the forms of "
            "fastae.stream.open_rows, are read by fit and partial_fit of models that train on them, and encoded by "
            "fastae.encode_to"
        )


def _finite(array: np.ndarray, backend: Any, allow_nan: bool) -> bool:
    """Whether the kernels may have the array: no infinity, and no NaN unless these are allowed."""
    if array.dtype.name not in FLOATS or backend.all_finite(array):
        return True
    blocks = (array[i : i + 4096] for i in range(0, len(array), 4096))
    return allow_nan and not any(np.isinf(block).any() for block in blocks)


def check_rows(
    estimator: Any, X: Any, *, reset: bool, backend: Any, precision: str = "auto", min_rows: int = 1,
    allow_nan: bool = False,
) -> tuple[Source, np.dtype]:  # fmt: skip
    """Rows of X and the dtype to compute in; sets (``reset``) or checks n_features_in_ and feature_names_in_.

    X : array or tensor (N, p) of any real dtype, CSR or other sparse matrix, pandas, polars or pyarrow frame
    Raises ValueError or TypeError, worded by scikit-learn, for NaN (unless ``allow_nan``), infinity, wrong width, too
    few rows, and so on.
    """
    X = of_tensor(X)
    if type(X) in (np.ndarray, np.memmap) and _conforms(estimator, X, reset, min_rows):
        array = readable(X)
        if _finite(array, backend, allow_nan):
            if reset:
                estimator.n_features_in_ = X.shape[1]
                estimator.__dict__.pop("feature_names_in_", None)
            return Source(array, columns=array.shape[1]), computing_dtype(X.dtype, precision)
    refuse_masked("X", X)
    _refuse_blocks(X)
    if on_device(X):
        return _device_rows(estimator, asarray(X), reset, backend, precision, min_rows, allow_nan)
    frame = _frame_array(X)
    if frame is not None and 0 not in frame.shape and len(frame) >= min_rows:
        array = readable(np.asarray(frame))
        if _finite(array, backend, allow_nan):
            from sklearn.utils.validation import validate_data

            validate_data(estimator, X, reset=reset, skip_check_array=True)
            return Source(array, columns=array.shape[1]), computing_dtype(array.dtype, precision)
    try:
        return _by_sklearn(estimator, X, reset, precision, min_rows, allow_nan)
    except ValueError as error:
        if "contains NaN" in str(error):
            first = str(error).partition("\n")[0]  # what follows advises other estimators
            remedy = "Leave such rows out, or fill these entries in."
            if hasattr(estimator, "missing"):
                remedy = "Set missing=np.nan to learn from the entries that are there, or fill the others in."
            raise ValueError(f"{first} {remedy}") from None
        raise


def _device_rows(
    estimator: Any, X: Any, reset: bool, backend: Any, precision: str, min_rows: int, allow_nan: bool
) -> tuple[Source, np.dtype]:
    """Rows that lie on a GPU: read where they lie, by a backend that runs there."""
    name = type(estimator).__name__
    if backend.name != "cuda":
        raise TypeError(
            f"X lies on a GPU and {name} runs on the CPU; set device='cuda' (or call model.to('cuda')), or give X.get()"
        )
    if (where := device_number(X)) != backend.driver.number:
        raise ValueError(
            f"X lies on cuda:{where} and {name} runs on {backend.device}; copy X there, or set device='cuda:{where}'"
        )
    if X.ndim != 2 or X.dtype.name not in READABLE:
        raise ValueError(f"X has shape {X.shape} and dtype {X.dtype}; wanted real numbers (rows, features)")
    if X.shape[0] < min_rows or X.shape[1] == 0:
        raise ValueError(f"X has shape {X.shape}; {name} wants {min_rows} row(s) and 1 feature at least")
    if not reset and X.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {X.shape[1]} features, but {name} is expecting {estimator.n_features_in_} features as input"
        )
    X = X if is_readable(X) else namespace(X).ascontiguousarray(X)
    if X.dtype.name in FLOATS and not backend.all_finite(X) and not (allow_nan and not _infinite(X)):
        raise ValueError(f"Input X contains NaN or infinity; remove or impute such rows before {name}")
    if reset:
        estimator.n_features_in_ = X.shape[1]
        estimator.__dict__.pop("feature_names_in_", None)
    return Source(X, columns=X.shape[1]), computing_dtype(X.dtype, precision)


def _infinite(X: Any) -> bool:
    xp = namespace(X)
    return bool(xp.any(xp.isinf(X)))


def _conforms(estimator: Any, X: np.ndarray, reset: bool, min_rows: int) -> bool:
    if X.ndim != 2 or X.dtype.name not in READABLE or X.shape[0] < min_rows or X.shape[1] == 0:
        return False
    # names once seen: scikit-learn warns about an array without them
    return reset or (X.shape[1] == estimator.n_features_in_ and not hasattr(estimator, "feature_names_in_"))


def _by_sklearn(estimator, X, reset: bool, precision: str, min_rows: int, allow_nan: bool) -> tuple[Source, np.dtype]:
    from sklearn.utils.validation import validate_data

    checked = validate_data(
        estimator, X, reset=reset, dtype=[np.float64, np.float32], accept_sparse="csr", order="C",
        ensure_min_samples=min_rows, accept_large_sparse=True, ensure_all_finite="allow-nan" if allow_nan else True,
    )  # fmt: skip
    dtype = computing_dtype(checked.dtype, precision)
    if isinstance(checked, np.ndarray):
        return Source(checked, columns=checked.shape[1]), dtype
    # a stored type that scikit-learn widens needlessly
    stored = getattr(X, "dtype", None)
    if stored is not None and stored != np.float64:
        dtype = computing_dtype(np.dtype(np.float32), precision)
    if hasattr(checked, "check_format"):
        checked.check_format(full_check=True)
    if not checked.has_canonical_format:  # entries given twice add up; checks and scaling look at one after the other
        checked = checked.copy()
        checked.sum_duplicates()
    return Source(checked.data, checked.indptr, checked.indices, checked.shape[1]), dtype


def apply_mask(source: Source, dtype: np.dtype, mask: Any, missing: float | None, names: Any = None) -> Source:
    """A copy of dense rows with ``missing`` (None: NaN) where ``mask`` is False. Raises for a mask that doesn't fit.

    names : of the rows' columns, if they have any
    """
    if source.indptr is not None:
        raise TypeError("mask goes with dense rows; for sparse X use missing=0, or store NaN where it is unobserved")
    columns = getattr(mask, "column_names", getattr(mask, "columns", None))
    if names is not None and columns is not None and list(columns) != list(names):
        raise ValueError(f"mask has columns {list(columns)}; wanted those of X, in its order: {list(names)}")
    observed = np.asarray(mask)
    if observed.dtype != bool or observed.shape != source.data.shape:
        raise ValueError(
            f"mask has shape {observed.shape} and dtype {observed.dtype}; wanted bool of X's shape, "
            f"{source.data.shape}: True where an entry is observed"
        )
    data = source.data.astype(source.data.dtype if source.data.dtype.name in FLOATS else dtype)
    data[~observed] = np.nan if missing is None else missing
    if missing is None and np.count_nonzero(np.isnan(data)) != observed.size - np.count_nonzero(observed):
        raise ValueError("X contains NaN where mask is True; set missing=np.nan, or mask these entries too")
    return Source(data, columns=source.columns, weight=source.weight)


def _marked(values: np.ndarray, missing: float) -> np.ndarray:
    """Where values are the mark of what is missing."""
    return np.isnan(values) if np.isnan(missing) else values == missing


def _observed(values: np.ndarray, missing: float | None) -> np.ndarray:
    return values if missing is None else values[~_marked(values, missing)]


def has_missing(source: Source, missing: float | None) -> bool:
    """Whether an entry is marked as missing."""
    if missing is None or not source.data.size:
        return False
    implicit = source.indptr is not None and source.data.size < source.n_rows * source.columns
    if missing == 0 and implicit:
        return True
    parts = np.array_split(source.data, 1 + len(source.data) // 4096)
    return any(_observed(part, missing).size < part.size for part in parts)


def has_observed(source: Source, missing: float | None) -> bool:
    """Whether an entry is not marked as missing; reads on until it has found one."""
    implicit = source.indptr is not None and source.data.size < source.n_rows * source.columns
    if missing is None or (implicit and missing != 0):
        return True
    return any(_observed(source.data[i : i + 4096], missing).size for i in range(0, len(source.data), 4096))


def nothing_observed(missing: float | None) -> ValueError:
    """The error for rows that say nothing."""
    how = "missing=nan, or a mask," if is_nan(missing) else f"missing={missing!r}"
    return ValueError(f"no entry of X is observed: {how} marks all of them; give rows that have others too")


def is_nan(missing: float | None) -> bool:
    """Whether NaN is what marks a missing entry."""
    return missing is not None and math.isnan(missing)


def check_mark(source: Source, dtype: np.dtype, missing: float | None) -> None:
    """Refuses a number as mark of missing entries that X, stored in fewer digits than are computed in, cannot hold."""
    stored = source.data.dtype
    if missing is None or is_nan(missing) or stored.name not in FLOATS or stored == dtype:
        return
    if float(np.asarray(missing).astype(stored)) != missing:
        raise ValueError(
            f"missing={missing!r} is no {stored} number, and X is {stored} while {dtype} is computed in: no entry "
            f"would be found; convert X to {dtype}, or mark with NaN"
        )


def extremes(source: Source, first: int, stop: int, missing: float | None) -> tuple[float, float]:
    """The least and the largest observed (and stored) element of a range of columns; (inf, −inf) for none."""
    if source.indices is None:
        values = source.data[:, first:stop]
        blocks = [values] if missing is None else [values[i : i + 4096] for i in range(0, len(values), 4096)]
    else:
        whole = stop - first == source.columns
        blocks = [source.data if whole else source.data[(source.indices >= first) & (source.indices < stop)]]
    low, high = np.inf, -np.inf
    for block in blocks:
        block = _observed(block, missing)
        if block.size:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    return low, high


def _worst_sum(source: Source, first: int, stop: int, missing: float | None) -> float:
    """How far the sum of a row's elements in a range of columns is from 1; where some are missing, how far above."""
    if source.indptr is not None:
        from scipy.sparse import csr_array

        def sums(values: np.ndarray) -> np.ndarray:
            matrix = csr_array((values, source.indices, source.indptr), shape=(source.n_rows, source.columns))
            return np.asarray(matrix[:, first:stop].sum(axis=1))

        gone = np.zeros(len(source.data), dtype=bool) if missing is None else _marked(source.data, missing)
        away, partial = sums(np.where(gone, 0.0, source.data)) - 1, sums(gone.astype(np.float64)) > 0
    else:
        values = source.data[:, first:stop]
        if missing is None:
            return float(np.abs(values.sum(axis=1, dtype=np.float64) - 1).max())
        gone = _marked(values, missing)
        away, partial = np.where(gone, 0, values).sum(axis=1, dtype=np.float64) - 1, gone.sum(axis=1) > 0
    return float(np.where(partial, np.maximum(away, 0.0), np.abs(away)).max())


def check_target(source: Source, network: Network) -> None:
    """Raises unless every observed element lies where the loss of its column wants it (and rows sum to one)."""
    missing = network.missing
    for block in network.blocks:
        low, high = block.loss.target_range
        what = "X" if block.count == source.columns else f"columns {block.first}..{block.stop - 1} of X"
        if low > -np.inf or high < np.inf:
            least, most = extremes(source, block.first, block.stop, missing)
            if least < low or most > high:
                wanted = f"[{low:g}, {high:g}]" if high < np.inf else f"values >= {low:g}"
                verb = "has" if what == "X" else "have"
                raise ValueError(
                    f"{what} {verb} values from {least:.9g} to {most:.9g}; Negative values in data or values out of "
                    f"range cannot be used with loss={block.loss.name!r}, which wants {wanted}; scale X or choose "
                    "another loss"
                )
        if block.loss.sums_to_one and (worst := _worst_sum(source, block.first, block.stop, missing)) > 1e-3:
            raise ValueError(
                f"rows of {what} must sum to 1 for loss={block.loss.name!r}, one is {worst:g} away; "
                "use loss='multinomial'"
            )


def check_transform(source: Source, network: Network) -> None:
    """Raises for rows that the input transform cannot take."""
    if network.input_transform == "log1p":
        least, _ = extremes(source, 0, source.columns, network.missing)
        if least < 0:
            raise ValueError(
                f"X has values from {least:g} on; Negative values in data cannot be used with input_transform='log1p'; "
                "give counts, or input_transform=None"
            )


def input_seen(rows: np.ndarray, network: Network) -> np.ndarray:
    """What the encoder sees of stored values, float64."""
    seen = np.asarray(rows, dtype=np.float64)
    if network.missing is not None:  # looked for as it is stored: 0.1 of float32 is no 0.1 of float64
        seen = np.where(np.isnan(seen) | (rows == network.missing), 0.0, seen)
    return np.log1p(seen) if network.input_transform == "log1p" else seen


def seen_source(source: Source, network: Network) -> Source:
    """All rows as the encoder sees them; a copy in float64 unless it sees them as they are."""
    if network.missing in (None, 0) and network.input_transform is None:
        return source
    return dataclasses.replace(source, data=input_seen(source.data, network))


def check_weight(sample_weight: Any, n_rows: int, backend: Any) -> np.ndarray | None:
    """Sample weights as float64 with mean 1 over the rows of all that train with them, or None."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n_rows, sample_weight)
    refuse_masked("sample_weight", sample_weight, "with 0 for rows that do not count")
    try:
        weight = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError("sample_weight must be numbers, one weight per row") from None
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {(n_rows,)}: one weight per row")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ValueError("sample_weight must be finite, non-negative and not all zero")
    return mean_one(weight, backend)


def mean_one(weight: np.ndarray, backend: Any) -> np.ndarray:
    """Weights of which not all are 0, brought to mean 1, that of all ranks' where several train one model."""
    below = below_one(weight)
    over_ranks = getattr(backend, "mean_weight", None)
    mean = below.mean()
    return below / (mean if over_ranks is None else over_ranks(float(mean), _exponent(weight), len(weight)))


def below_one(weight: np.ndarray) -> np.ndarray:
    """Weights times a power of two, so that sums of them neither overflow nor lose digits."""
    return np.ldexp(weight, -_exponent(weight))


def _exponent(weight: np.ndarray) -> int:
    return int(np.frexp(weight.max())[1])
