"""What model files hold of a sparse autoencoder; with the optimiser's state they are checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..plan import schema
from ..plan.sparse import sparse_training_plan
from ..sparse_training import Position, Totals
from ..spec.sparse import SparseNetwork
from .sparse_codes import SparseCodes
from .sparse_memory import CURVES


@dataclass
class SparseOptimizer:
    """What training goes on from: the rule's state, weights before averaging, and how far it has come."""

    memory: np.ndarray  # bytes of the plan's state space
    raw: np.ndarray | None  # the weights of the last step where the fitted ones are their running average
    guess: float
    rule: str
    steps: int
    epochs: int
    first_epoch: int
    position: Position


class SparseState(SparseCodes):
    """Base of `SparseAutoencoder`: to and from model files."""

    _state: SparseOptimizer | None
    _stopped: bool  # by a callback

    def _network(self, n_features: int, n_targets: int | None = None, **known: Any) -> SparseNetwork:
        raise NotImplementedError

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Tensors and JSON-able state for the model file; with the optimiser's, it is a checkpoint."""
        check_is_fitted(self, "network_")
        network = self.network_
        self._check_unchanged()
        tensors = dict(self._arrays)
        tensors |= {"rows_since_fired": self._constants["since"], "batch_threshold": self._constants["batch_threshold"]}
        state: dict[str, Any] = {
            "n_features": network.n_features, "n_targets": network.n_targets, "input_scale": network.input_scale,
            "dead_after": network.dead_after, "seed": str(self.seed_), "dtype": self._dtype.name,
            "feature_names": list(getattr(self, "feature_names_in_", [])) or None, "backend": self.backend_,
            "curves": {name: getattr(self, name) for name in CURVES}, "n_iter": self.n_iter_,
            "data": getattr(self, "_data", None), "stopped": getattr(self, "_stopped", False), "optimizer": None,
        }  # fmt: skip
        if self._state is not None:
            s = self._state
            tensors["optimizer"] = s.memory
            if s.raw is not None:
                tensors["raw_parameters"] = s.raw
            state["optimizer"] = {
                "rule": s.rule, "steps": s.steps, "epochs": s.epochs, "first_epoch": s.first_epoch, "guess": s.guess,
                "step": s.position.step, "capacity": s.position.capacity, "totals": asdict(s.position.totals),
            }  # fmt: skip
        return tensors, state

    def _check_unchanged(self) -> None:
        """A file holds parameters and arrays: they must be of one model."""
        then = self.network_
        try:
            now = self._network(then.n_features, then.n_targets, input_scale=then.input_scale)
        except (ValueError, TypeError):
            now = None
        # what only later training needs may change
        same = now is not None and replace(
            now, solver=then.solver, dead_after=then.dead_after, ema=then.ema, loss=then.loss, unit_norm=then.unit_norm
        ) == then  # fmt: skip
        if not same:
            raise ValueError(
                "parameters were changed after fit, so that they describe another network than the fitted one; undo "
                "the change, or call fit, before saving"
            )

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        network = self._network(int(state["n_features"]), int(state["n_targets"]), n_rows=None,
                                input_scale=float(state["input_scale"]))  # fmt: skip
        network = replace(network, dead_after=int(state["dead_after"]))
        known = {name for name, _, _ in network.parameters}
        extra = set(tensors) - known - {"rows_since_fired", "batch_threshold", "optimizer", "raw_parameters"}
        if extra or known - set(tensors):
            raise ValueError(f"tensors {sorted(extra)} are unknown, {sorted(known - set(tensors))} are missing")
        shaped = {}
        for name, rows, columns in network.parameters:
            wanted = (columns,) if tensors[name].ndim == 1 else (rows, columns)
            if tensors[name].shape != wanted or tensors[name].size != rows * columns:
                raise ValueError(f"{name} has shape {tensors[name].shape}; wanted {wanted}")
            if tensors[name].dtype.kind != "f" or not np.isfinite(tensors[name]).all():
                raise ValueError(f"{name} has dtype {tensors[name].dtype}, NaN or infinity; wanted finite floats")
            shaped[name] = tensors[name].reshape(rows, columns)
        if state["dtype"] not in ("float32", "float64") or not 0 < network.input_scale < np.inf:
            raise ValueError(f"dtype {state['dtype']!r} or input_scale {network.input_scale} cannot be")
        self._set_arrays(network, np.dtype(state["dtype"]), shaped, float(tensors["batch_threshold"][0]),
                         tensors["rows_since_fired"])  # fmt: skip
        self.n_features_in_ = network.n_features
        if state["feature_names"]:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        self.seed_, self.n_iter_, self._data = int(state["seed"]), int(state["n_iter"]), state["data"]
        for name in CURVES:
            setattr(self, name, list(state["curves"][name]))
        self._stopped = bool(state["stopped"])
        if state["optimizer"] is not None:
            self._state = _restored(network, self._dtype, tensors, state["optimizer"])
            self.t_ = self._state.steps


def _restored(network: SparseNetwork, dtype: np.dtype, tensors: dict[str, np.ndarray], o: dict) -> SparseOptimizer:
    """The optimiser's state of a file; ValueError where it does not fit the network."""
    memory, raw, rule = tensors["optimizer"], tensors.get("raw_parameters"), str(o["rule"])
    counts = {name: int(o[name]) for name in ("steps", "epochs", "first_epoch", "step")}
    capacity = 1 if o["capacity"] is None else int(o["capacity"])
    if min(counts.values()) < 0 or max(counts.values()) > 2**62 or not 1 <= capacity <= network.n_components:
        raise ValueError(f"the optimizer has counts {counts} and capacity {capacity}")
    plan = sparse_training_plan(network, dtype, 1)
    wanted = {"optimizer": plan.sizes[schema.STATE] if rule == network.solver.name else memory.nbytes}
    if network.ema is not None:
        flat = plan.buffers[plan.index["theta"]]
        wanted["raw_parameters"] = flat.columns * dtype.itemsize
    for name, size in wanted.items():
        array = tensors[name]
        if array.dtype != np.uint8 or array.shape != (size,):
            raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}; wanted {size} bytes")
    t = o["totals"]
    totals = Totals(int(t["rows"]), *(float(t[name]) for name in ("loss", "other", "l0", "variance", "error")))
    return SparseOptimizer(memory, raw, float(o["guess"]), rule, counts["steps"], counts["epochs"],
                           counts["first_epoch"], Position(counts["step"], capacity, totals))  # fmt: skip
