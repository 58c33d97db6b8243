"""Class labels: checked, coded, weighted, held out by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from ..plan.plan import Source
from ..validation import below_one, mean_one, refuse_masked


def check_labels(y: Any, n_rows: int, name: str) -> np.ndarray:
    """Labels (n_rows,) of any dtype with an order; raises what scikit-learn's classifiers raise."""
    if y is None:
        raise ValueError(f"This {name} estimator requires y to be passed, but the target y is None.")
    refuse_masked("y", y, "or leave these rows out")
    labels = column_or_1d(y, warn=True)
    _refuse_missing("y", labels)
    check_classification_targets(labels)
    if len(labels) != n_rows:
        raise ValueError(f"X has {n_rows} rows and y {len(labels)}; they must be equal: a class for each row")
    return labels


def _refuse_missing(name: str, labels: np.ndarray) -> None:
    """Raises for NaN, None, NaT and pandas' NA, which are no class."""
    kind, nothing = labels.dtype.kind, {"NoneType", "NAType", "NaTType"}
    if (kind == "O" and not nothing.isdisjoint(type(value).__name__ for value in labels)) or (
        kind == "M" and np.isnat(labels).any()
    ):
        raise ValueError(f"{name} has missing labels (None, NA or NaT); leave such rows out, or give them a class")
    if kind in "fcO":
        assert_all_finite(labels, input_name=name)


def check_classes(classes: Any) -> np.ndarray:
    """Sorted distinct classes; at least two."""
    labels = column_or_1d(classes)
    _refuse_missing("classes", labels)
    distinct = np.unique(labels)
    if len(distinct) < 2:
        raise ValueError(
            f"a classifier needs samples of at least 2 classes; got {len(distinct)} class"
            + (f", {distinct.tolist()[0]!r}" if len(distinct) else "")
        )
    return distinct


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Index into ``classes`` of each label, int32."""
    if (classes.dtype.kind in "biuf") != (labels.dtype.kind in "biuf"):
        raise ValueError(f"y has dtype {labels.dtype}, the classes are {classes.tolist()}; give labels of one kind")
    codes = np.searchsorted(classes, labels)
    codes[codes == len(classes)] = 0
    strange = classes[codes] != labels
    if np.any(strange):
        raise ValueError(
            f"y has classes {np.unique(labels[strange]).tolist()} that are not among {classes.tolist()}; give "
            "partial_fit all classes at its first call, or fit anew with warm_start=False"
        )
    return codes.astype(np.int32)


def one_hot(codes: np.ndarray, n_classes: int) -> Source:
    """One-hot rows (N, n_classes) as CSR: 13 bytes a row, however many classes there are."""
    n = len(codes)
    return Source(np.ones(n, np.uint8), np.arange(n + 1, dtype=np.int64), codes, n_classes)


def codes_of(targets: Source) -> np.ndarray:
    """The class index of each row of `one_hot`."""
    assert targets.indices is not None
    return targets.indices


def weigh_classes(
    class_weight: Any, classes: np.ndarray, codes: np.ndarray, weight: np.ndarray | None, backend: Any = None, *,
    whole: bool = True,
) -> np.ndarray | None:  # fmt: skip
    """Row weights times class weights, of mean 1; "balanced" makes all classes weigh the same in total.

    backend : which shares the mean between ranks where several train one model; "balanced" is of each rank's rows
    whole : whether these are all rows. A part, that may be of one class, keeps the weights that its classes have among
        all classes
    """
    if class_weight is None:
        return weight
    balanced = isinstance(class_weight, str) and class_weight == "balanced"
    if balanced:
        totals = np.bincount(codes, weights=weight, minlength=len(classes))
        factors = np.divide(1.0, totals, out=np.zeros(len(classes)), where=totals > 0)
    else:
        if not isinstance(class_weight, dict):
            raise ValueError(f"class_weight={class_weight!r} must be None, 'balanced' or a dict from class to weight")
        known = classes.tolist()
        strange = [key for key in class_weight if key not in known]
        if strange and len(class_weight) - len(strange) < len(known):  # a class may be absent, a name may not be wrong
            raise ValueError(f"class_weight names {strange}, which are not among the classes {known}; use these")
        try:
            factors = np.array([float(class_weight.get(value, 1.0)) for value in known])
        except (TypeError, ValueError):
            factors = np.array([np.nan])
        if not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise ValueError(f"class_weight={class_weight!r} must have finite weights >= 0")
    factors = below_one(factors)
    product = factors[codes] if weight is None else factors[codes] * weight
    if not product.any():
        raise ValueError(f"class_weight={class_weight!r} leaves every row of y with weight 0; give its classes some")
    if not whole:
        return product / factors.mean()
    return mean_one(product, None if balanced else backend)


def stratified(order: np.ndarray, codes: np.ndarray, n_out: int) -> np.ndarray:
    """Which of the rows in ``order`` to hold out, bool: ``n_out`` shared among the classes by their sizes.

    The shares are rounded by largest remainders; a class keeps at least one row to train on, so that fewer than
    ``n_out`` are held out where classes have one or two rows.
    """
    sizes = np.bincount(codes)
    ideal = sizes * (n_out / len(codes))
    share = np.floor(ideal).astype(np.int64)
    largest = np.argsort(share - ideal, kind="stable")
    share[largest[: n_out - share.sum()]] += 1
    share = np.minimum(share, np.maximum(sizes - 1, 0))
    by_class = np.argsort(codes[order], kind="stable")  # places in order, class after class
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank < share[codes[order]]


def described(classes: np.ndarray) -> dict:
    """Classes as JSON: numbers, bools or strings."""
    values = classes.tolist()
    if not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise TypeError(
            f"classes of dtype {classes.dtype} cannot be stored in a model file; fit on numbers or strings, or pickle"
        )
    return {"dtype": "object" if classes.dtype == object else classes.dtype.str, "values": values}


def restored(description: dict) -> np.ndarray:
    """The inverse of `described`."""
    return np.array(description["values"], dtype=np.dtype(str(description["dtype"])))


__all__ = [
    "check_classes", "check_labels", "codes_of", "described", "encode_labels", "one_hot", "restored", "stratified",
    "weigh_classes",
]  # fmt: skip
