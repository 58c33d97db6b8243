"""What a fitted model is made of, and how model files hold it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..initializers import from_arrays
from ..spec.network import Network
from . import weights
from .base import DenseModel, seed_of


@dataclass
class Optimizer:
    """What a later ``partial_fit`` or warm start goes on from: the rule's state and how far training has come."""

    memory: np.ndarray  # bytes of the plan's state space
    rule: str
    dtype: np.dtype
    steps: int
    epochs: int
    first_epoch: int
    learning_rate: tuple[float, float] | None  # as `training.State` has it

    def describe(self) -> dict:
        """All but the memory, as JSON."""
        return {"rule": self.rule, "steps": self.steps, "epochs": self.epochs, "first_epoch": self.first_epoch,
                "learning_rate": self.learning_rate}  # fmt: skip

    @classmethod
    def restored(cls, memory: np.ndarray, described: dict, dtype: np.dtype) -> Optimizer:
        if memory.dtype != np.uint8 or memory.ndim != 1:
            raise ValueError(f"optimizer has dtype {memory.dtype} and {memory.ndim} dimensions; wanted bytes")
        watched = described["learning_rate"]
        rates = None if watched is None else (float(watched[0]), float(watched[1]))
        return cls(memory, str(described["rule"]), np.dtype(dtype), int(described["steps"]), int(described["epochs"]),
                   int(described["first_epoch"]), rates)  # fmt: skip


class Stored(DenseModel):
    """Base of estimators that model files can hold. Subclasses give ``_network(n_features)``."""

    loss_curve_: list[float]
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    _state: Optimizer | None

    def _network(self, n_features: int) -> Network:
        raise NotImplementedError

    def _restore(self, network: Network, pairs: weights.Weights, norms: weights.Norms) -> None:
        """Fitted attributes of a model that was not trained here."""
        self.network_ = network
        self.weights_, self.norms_ = pairs, norms
        self.n_features_in_ = network.n_features
        self.n_parameters_ = weights.n_parameters(network)
        self.seed_ = seed_of(self.random_state)
        self.n_iter_ = self.t_ = 0
        self.loss_curve_, self.loss_ = [], np.nan
        self.validation_scores_ = self.best_validation_score_ = None
        backend = self._backend()
        self.backend_, self.device_ = backend.name, backend.device
        self._state = None
        self._forget_compiled()

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Tensors and JSON-able state for the model file."""
        self._fitted_network()
        self._check_unchanged()
        tensors = weights.tensors(self.network_, *self._arrays)
        if getattr(self, "basis_", None) is not None:
            tensors["basis"] = self.basis_
        if self._state is not None:
            tensors["optimizer"] = self._state.memory
        state = {
            "n_features": self.n_features_in_,
            "feature_names": list(getattr(self, "feature_names_in_", [])) or None,
            "seed": str(self.seed_),
            "masked": self.network_.missing is not None,
            "n_iter": self.n_iter_,
            "loss_curve": self.loss_curve_,
            "validation_scores": self.validation_scores_,
            "best_validation_score": self.best_validation_score_,
            "optimizer": None if self._state is None else self._state.describe(),
            "backend": self.backend_,
        }
        return tensors, state

    def _check_unchanged(self) -> None:
        """A file holds parameters and arrays: they must be of one model."""
        now, then = self._network(self.n_features_in_), self.network_
        missing = (now.missing, then.missing)
        same = (now.layers, now.loss, now.reduction, now.input_transform, now.n_directions) == (
            then.layers, then.loss, then.reduction, then.input_transform, then.n_directions
        )  # fmt: skip
        if not same or (now.missing is not None and repr(missing[0]) != repr(missing[1])):
            raise ValueError(
                "parameters were changed after fit, so that they describe another network than the fitted one; undo "
                "the change, or call fit, before saving"
            )

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        network = self._network(int(state["n_features"]))
        if state.get("masked") and network.missing is None:  # fitted with a mask
            network = replace(network, missing=math.nan)
        pairs, norms = weights.from_tensors(network, tensors)
        checked = from_arrays(pairs, network)
        dtype = np.dtype(np.float64) if pairs[0][0].dtype == np.float64 else np.dtype(np.float32)
        self._restore(network, [(w.astype(dtype), b.astype(dtype)) for w, b in checked], norms)
        if network.n_directions:
            self.basis_ = np.array(tensors["basis"], dtype=np.float64).reshape(network.n_directions, network.n_features)
        if state["feature_names"]:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        self.seed_ = int(state["seed"])
        self.n_iter_, self.loss_curve_ = int(state["n_iter"]), list(state["loss_curve"])
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else np.nan
        self.validation_scores_ = state["validation_scores"]
        self.best_validation_score_ = state["best_validation_score"]
        if state["optimizer"] is not None:
            self._state = Optimizer.restored(tensors["optimizer"], state["optimizer"], dtype)
            self.t_ = self._state.steps
