"""What codes depend on, as a hash, by which `fastae.encode_to` knows a model's codes again."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from . import weights
from .base import CompiledModel, DenseModel
from .encoder import Encoder


def fingerprint(function: Any) -> str | None:
    """Hash of the weights and options of a fitted model's own method or of an `Encoder`; None of other functions.

    Methods that a subclass elsewhere defines are such others. Raises NotFittedError for a model that is not fitted.
    """
    if isinstance(function, Encoder):
        made: tuple = ("Encoder", function._network, function.precision, function.output)
        arrays = weights.tensors(function._network, *function._arrays())
    else:
        model = getattr(function, "__self__", None)
        if not isinstance(model, CompiledModel) or not function.__func__.__module__.startswith("fastae."):
            return None
        check_is_fitted(model)
        network = model.network_
        made = (type(model).__name__, function.__name__, network, model.precision)
        if isinstance(model, DenseModel):
            arrays = weights.tensors(network, *model._arrays)
        else:
            arrays = {"theta": model._theta}  # a sparse model's, in one piece
    digest = hashlib.sha256(repr(made).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"
