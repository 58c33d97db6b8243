"""Input of the estimators: any array, frame or sparse matrix → rows that the kernels can read.

Conforming arrays (2-D, real, contiguous columns) are taken as they are, without scikit-learn's checks (about 50 µs);
everything else goes through scikit-learn's, which also words the errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .plan.plan import Source

# stored types that every backend reads directly; ml_dtypes' bfloat16 is known by its name
READABLE = frozenset("float16 bfloat16 float32 float64 uint8 int8 uint16 int16 uint32 int32 uint64 int64 bool".split())
FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))


def computing_dtype(stored: np.dtype, precision: str) -> np.dtype:
    """float64 for float64 input and float32 for everything else, unless ``precision`` says otherwise."""
    if precision in ("float32", "float64"):
        return np.dtype(precision)
    return np.dtype(np.float64 if stored == np.float64 else np.float32)


def readable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where kernels could not read it: byte order, Fortran order, negative strides."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    rows, columns = array.shape
    item = array.itemsize
    contiguous = (columns <= 1 or array.strides[1] == item) and (
        rows <= 1 or (array.strides[0] >= 0 and array.strides[0] % item == 0)
    )
    return array if contiguous else np.ascontiguousarray(array)


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
    else:
        values = X.to_numpy()
    return values if values.dtype.kind in "fiub" else None


def check_rows(
    estimator: Any, X: Any, *, reset: bool, backend: Any, precision: str = "auto", min_rows: int = 1
) -> tuple[Source, np.dtype]:
    """Rows of X and the dtype to compute in; sets (``reset``) or checks n_features_in_ and feature_names_in_.

    X : array (N, p) of any real dtype, CSR or other sparse matrix, pandas, polars or pyarrow frame
    Raises ValueError or TypeError, worded by scikit-learn, for NaN, infinity, wrong width, too few rows, and so on.
    """
    if type(X) in (np.ndarray, np.memmap) and _conforms(estimator, X, reset, min_rows):
        array = readable(X)
        if array.dtype.name not in FLOATS or backend.all_finite(array):
            if reset:
                estimator.n_features_in_ = X.shape[1]
                estimator.__dict__.pop("feature_names_in_", None)
            return Source(array, columns=array.shape[1]), computing_dtype(X.dtype, precision)
    frame = _frame_array(X)
    if frame is not None and 0 not in frame.shape and len(frame) >= min_rows:
        array = readable(np.asarray(frame))
        if array.dtype.name not in FLOATS or backend.all_finite(array):
            from sklearn.utils.validation import validate_data

            validate_data(estimator, X, reset=reset, skip_check_array=True)
            return Source(array, columns=array.shape[1]), computing_dtype(array.dtype, precision)
    return _by_sklearn(estimator, X, reset, precision, min_rows)


def _conforms(estimator: Any, X: np.ndarray, reset: bool, min_rows: int) -> bool:
    if X.ndim != 2 or X.dtype.name not in READABLE or X.shape[0] < min_rows or X.shape[1] == 0:
        return False
    # names once seen: scikit-learn warns about an array without them
    return reset or (X.shape[1] == estimator.n_features_in_ and not hasattr(estimator, "feature_names_in_"))


def _by_sklearn(estimator, X, reset: bool, precision: str, min_rows: int) -> tuple[Source, np.dtype]:
    from sklearn.utils.validation import validate_data

    checked = validate_data(
        estimator, X, reset=reset, dtype=[np.float64, np.float32], accept_sparse="csr", order="C",
        ensure_min_samples=min_rows, accept_large_sparse=True,
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
    return Source(checked.data, checked.indptr, checked.indices, checked.shape[1]), dtype


def check_target(source: Source, low: float, high: float, loss: str, sums_to_one: bool = False) -> None:
    """Raises unless every element lies in [low, high] (and rows sum to one)."""
    data = source.data
    if data.size and (low > -np.inf or high < np.inf):
        least, most = float(np.min(data)), float(np.max(data))
        if least < low or most > high:
            wanted = f"[{low:g}, {high:g}]" if high < np.inf else f"values >= {low:g}"
            raise ValueError(
                f"X has values from {least:g} to {most:g}; Negative values in data or values out of range cannot be "
                f"used with loss={loss!r}, which wants {wanted}; scale X or choose another loss"
            )
    if sums_to_one:
        if source.indptr is not None:
            sums = np.add.reduceat(np.append(data.astype(np.float64), 0.0), source.indptr[:-1])
            sums[np.diff(source.indptr) == 0] = 0.0
        else:
            sums = data.sum(axis=1, dtype=np.float64)
        worst = float(np.abs(sums - 1).max())
        if worst > 1e-3:
            raise ValueError(
                f"rows of X must sum to 1 for loss={loss!r}, one is {worst:g} away; use loss='multinomial'"
            )


def check_weight(sample_weight: Any, n_rows: int) -> np.ndarray | None:
    """Sample weights as float64 with mean 1, or None."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, (int, float)):
        sample_weight = np.full(n_rows, sample_weight)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight.shape == {weight.shape}, expected {(n_rows,)}: one weight per row")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError("sample_weight must be finite, non-negative and not all zero")
    return weight / weight.mean()
