"""What a fitted sparse autoencoder is made of: arrays that are views of one memory, and plans that read it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..plan import schema
from ..plan.plan import Plan, Source, aligned_bytes
from ..plan.sparse import SPARSE_BATCH, sparse_inference_plan
from ..spec.options import unknown
from ..spec.sparse import JumpReLU, SparseNetwork
from ..validation import check_rows
from .base import CompiledModel, _Compiled, inference_rows

CODES = {"f": 0, "d": 1, "e": 2}  # the kernels' numbers of float32, float64, float16
CURVES = ("loss_curve_", "l0_curve_", "fvu_curve_", "dead_curve_")


class CompiledCode(_Compiled):
    """An inference plan whose parameters are the model's own memory, not a copy."""

    def __init__(self, backend: Any, plan: Plan, theta: np.ndarray):
        super().__init__(backend, plan)
        self.spaces[schema.THETA] = theta

    def few(self, X: np.ndarray, external: list[np.ndarray]) -> None:
        """Rows that the compiled kernels can read as they lie, on one thread: a call and nothing else."""
        m, p = X.shape
        self.handle.run([*self.spaces, *external], [(X, CODES[X.dtype.char], p, None, None, None)], m, None, 0,
                        -(-m // self.plan.batch), schema.GRADIENT, None, None, 0, 0, 1, None)  # fmt: skip


class SparseMemory(CompiledModel):
    """Base of `SparseAutoencoder`: arrays, their memory, and the plans over it."""

    network_: SparseNetwork
    _arrays: dict[str, np.ndarray]
    _theta: np.ndarray  # the plan's space that arrays are views of
    _dtype: np.dtype
    _state: Any
    _live: Any
    _left_behind = ("_compiled", "_live", "_theta")

    # ---- arrays ---

    def _set_arrays(self, network: SparseNetwork, dtype: np.dtype, arrays: dict[str, np.ndarray], threshold: float,
                    since: np.ndarray | None = None) -> None:  # fmt: skip
        """Fitted attributes of a model from arrays (rows, columns) by parameter."""
        plan = sparse_inference_plan(network, dtype)
        theta = aligned_bytes(plan.sizes[schema.THETA])
        spaces = [np.empty(0, np.uint8), theta]
        for name, value in arrays.items():
            plan.view(spaces, name)[...] = value
        plan.view(spaces, "batch_threshold")[...] = threshold
        if since is not None:
            plan.view(spaces, "since")[0] = since
        if network.groups is not None:
            plan.view(spaces, "groups")[0] = network.groups
        self._use(network, dtype, theta)
        backend = self._backend()
        self.backend_, self.device_ = backend.name, backend.device
        self.n_iter_ = self.t_ = 0
        for name in CURVES:
            setattr(self, name, [])
        self.seed_ = 0
        self._state = None

    def _use(self, network: SparseNetwork, dtype: np.dtype, theta: np.ndarray) -> None:
        """Takes a space of parameters as the model's own."""
        self.network_, self._dtype, self._theta = network, np.dtype(dtype), theta
        self._name_arrays()
        self._forget_compiled()
        self.n_parameters_ = sum(rows * columns for _, rows, columns in network.parameters)
        self.input_scale_ = network.input_scale

    def _name_arrays(self) -> None:
        plan = sparse_inference_plan(self.network_, self._dtype)
        spaces = [np.empty(0, np.uint8), self._theta]
        views = {name: plan.view(spaces, name) for name, _, _ in self.network_.parameters}
        flat = ("bias", "threshold", "log_scale")
        self._arrays = {name: view[0] if name.endswith(flat) else view for name, view in views.items()}
        self._constants = {name: plan.view(spaces, name)[0] for name in ("since", "batch_threshold")}

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        state.pop("_constants", None)
        if "_theta" in self.__dict__:
            state["_packed_theta"] = np.array(self._theta)
            state.pop("_arrays")
        return state

    def __setstate__(self, state: dict) -> None:
        theta = state.pop("_packed_theta", None)
        super().__setstate__(state)
        if theta is not None:
            self._theta = aligned_bytes(theta.nbytes)
            self._theta[...] = theta
            self._name_arrays()
            self._forget_compiled()

    @property
    def arrays_(self) -> dict[str, np.ndarray]:
        """Weights and biases by name; who asks for them may change them in place, so packed copies are made anew."""
        arrays = self._arrays  # AttributeError before a fit
        self._forget_compiled()
        return arrays

    @property
    def dictionary_(self) -> np.ndarray:
        """Decoder rows (n, q)."""
        return self.arrays_["decoder"]

    @property
    def batch_threshold_(self) -> float:
        """Threshold of a batch_topk model; not meant for others."""
        return float(self._constants["batch_threshold"][0])

    @property
    def threshold_(self) -> np.ndarray | None:
        """What pre-activations must exceed: (n,) of JumpReLU, (1,) of batch_topk, None of the others."""
        network = self.network_
        if isinstance(network.sparsity, JumpReLU):
            t = self._arrays["threshold"]
            return np.exp(t) if network.sparsity.logarithm else t
        return self._constants["batch_threshold"] if network.selection.name == "batch_topk" else None

    @property
    def rows_since_fired_(self) -> np.ndarray:
        """int64 (n,): rows of training since each latent was last active."""
        return self._constants["since"]

    @property
    def _n_features_out(self) -> int:
        return self.network_.n_components

    def _fitted(self) -> SparseNetwork:
        if "_arrays" not in self.__dict__:
            check_is_fitted(self, "_arrays")
        return self.network_

    # ---- plans ---

    def _backend(self) -> Any:
        if self.precision == "tf32":
            raise unknown("precision", self.precision, ("auto", "float32", "float64", "bfloat16"))
        return super()._backend()

    def _space(self, dtype: np.dtype) -> np.ndarray:
        """The parameters in a dtype: the model's own memory where it has it."""
        if dtype == self._dtype:
            return self._theta
        key = ("theta", dtype)
        cache = self.__dict__.setdefault("_compiled", {})
        if key not in cache:
            plan, own = sparse_inference_plan(self.network_, dtype), sparse_inference_plan(self.network_, self._dtype)
            theta = aligned_bytes(plan.sizes[schema.THETA])
            empty = np.empty(0, np.uint8)
            for buffer in plan.buffers:
                if buffer.space == schema.THETA:
                    plan.view([empty, theta], buffer.name)[...] = own.view([empty, self._theta], buffer.name)
            cache[key] = theta
        return cache[key]

    def _compile(self, part: str, dtype: np.dtype, k: int | None, capacity: int | None = None) -> CompiledCode:
        backend, network = self._backend(), self.network_
        key = (part, dtype, k, capacity, self._bf16, backend)
        cache = self.__dict__.setdefault("_compiled", {})
        if key not in cache:
            batch = inference_rows(backend, SPARSE_BATCH, max(network.n_features, network.n_targets))
            plan = sparse_inference_plan(network, dtype, batch, part=part, k=k, capacity=capacity, bf16=self._bf16)
            cache[key] = CompiledCode(backend, plan, self._space(dtype))
        return cache[key]

    def _rows(self, X: Any, min_rows: int = 1) -> tuple[Source, np.dtype]:
        return check_rows(self, X, reset=False, backend=self._backend(), precision=self.precision, min_rows=min_rows)

    # ---- scikit-learn's face, files ---

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def save(self, path: Any) -> None:
        """Writes the fitted model to one .safetensors file, atomically; `fastae.load` reads it.

        path : of the file, str or PathLike
        """
        from ..io.model_file import save_estimator

        self._fitted()
        save_estimator(self, path)
