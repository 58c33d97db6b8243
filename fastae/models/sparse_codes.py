"""What a fitted sparse autoencoder does with rows: codes, reconstructions, scores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..plan import schema
from ..plan.plan import Job, Plan, Source, aligned_bytes
from ..plan.sparse import SPARSE_BATCH, capacity_of, sparse_inference_plan
from ..spec.options import number
from ..spec.sparse import JumpReLU, SparseNetwork
from ..validation import check_rows, computing_dtype
from .base import CompiledModel
from .reconstruction import row_checker

_RAGGED_ROWS = 1024  # of a ragged code made at a time
_MAX_CSR = 2**31 - 1
_FEW_ROWS = 32  # a panel of rows: codes of so many are made by one thread
_CODES = {"f": 0, "d": 1, "e": 2}  # the kernels' numbers of float32, float64, float16
_CALIBRATED = 1 << 25  # pre-activations looked at for a threshold
CURVES = ("loss_curve_", "l0_curve_", "fvu_curve_", "dead_curve_")


class _CompiledCode:
    """An inference plan with its memory; parameters are the model's own, not copies."""

    def __init__(self, backend: Any, plan: Plan, theta: np.ndarray):
        self.plan, self.backend = plan, backend
        self.handle = backend.compile(plan)
        self.spaces = [plan.allocate()[0], theta, np.empty(0, np.uint8), np.empty(0, np.uint8)]
        # packed weights live in the arena; Python backends use the rest of it too, so they take turns
        self.lock = threading.Lock()
        self.packed = False

    def run(self, source: Source, external: list[np.ndarray], n_rows: int, n_threads: int, rows: Any = None) -> None:
        job = Job([*self.spaces, *external], (source,), n_rows, rows, n_steps=-(-n_rows // self.plan.batch),
                  phases=schema.GRADIENT, n_threads=n_threads)  # fmt: skip
        if self.packed and self.backend.name == "native":
            self.backend.run(self.handle, job)
            return
        with self.lock:
            job.phases = schema.GRADIENT | (0 if self.packed else schema.PREPARE)
            self.backend.run(self.handle, job)
            self.packed = True

    def few(self, X: np.ndarray, external: list[np.ndarray]) -> None:
        """Rows that the compiled kernels can read as they lie, on one thread: a call and nothing else."""
        m, p = X.shape
        self.handle.run([*self.spaces, *external], [(X, _CODES[X.dtype.char], p, None, None, None)], m, None, 0,
                        -(-m // self.plan.batch), schema.GRADIENT, None, None, 0, 0, 1, None)  # fmt: skip


class SparseCodes(CompiledModel):
    """Base of `SparseAutoencoder`: everything after fitting."""

    network_: SparseNetwork
    arrays_: dict[str, np.ndarray]
    _theta: np.ndarray  # the plan's space that arrays_ are views of
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
        self.backend_, self.device_ = self._backend().name, "cpu"
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
        self.arrays_ = {name: view[0] if name.endswith(flat) else view for name, view in views.items()}
        self._constants = {name: plan.view(spaces, name)[0] for name in ("since", "batch_threshold")}

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        state.pop("_constants", None)
        if "_theta" in self.__dict__:
            state["_packed_theta"] = np.array(self._theta)
            state.pop("arrays_")
        return state

    def __setstate__(self, state: dict) -> None:
        theta = state.pop("_packed_theta", None) if "_packed_theta" in state else None
        super().__setstate__(state)
        if theta is not None:
            self._theta = aligned_bytes(theta.nbytes)
            self._theta[...] = theta
            self._name_arrays()
            self._forget_compiled()

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
            t = self.arrays_["threshold"]
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
        if "arrays_" not in self.__dict__:
            check_is_fitted(self, "arrays_")
        return self.network_

    # ---- plans ---

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

    def _compile(self, part: str, dtype: np.dtype, k: int | None, capacity: int | None = None,
                 batch: int = SPARSE_BATCH) -> _CompiledCode:  # fmt: skip
        backend = self._backend()
        key = (part, dtype, k, capacity, batch, backend.name, getattr(backend, "isa", ""))
        cache = self.__dict__.setdefault("_compiled", {})
        if key not in cache:
            plan = sparse_inference_plan(self.network_, dtype, batch, part=part, k=k, capacity=capacity)
            cache[key] = _CompiledCode(backend, plan, self._space(dtype))
        return cache[key]

    def _rows(self, X: Any, min_rows: int = 1) -> tuple[Source, np.dtype]:
        return check_rows(self, X, reset=False, backend=self._backend(), precision=self.precision, min_rows=min_rows)

    def _check_k(self, k: int | None) -> int | None:
        """k of a call, None for the fitted one's."""
        network = self.network_
        if k is None:
            return None
        if network.k is None:
            raise ValueError(f"k={k} was given, but sparsity={network.sparsity.name!r} has no k; leave it out")
        n = network.n_components
        k = number("k", k, 1, 2**31 - 2, integer=True)
        if k > n:
            raise ValueError(f"k={k} must be <= n_components={n}; lower k")
        return k

    def _ranked(self, k: int | None) -> bool:
        return not self.network_.ragged or k is not None

    def _fixed(self, source: Source, dtype: np.dtype, k: int | None, out: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Values and indices (N, k) of the top-k kinds."""
        network, m = self.network_, source.n_rows
        width = k if k is not None else network.k or 1
        if out is None:
            out = np.empty((m, width), dtype), np.empty((m, width), np.int32)
        else:
            _check_out(out, (m, width), dtype, source.data)
        val, idx = out
        count = np.empty((m, 1), np.int32)
        self._compile("encode", dtype, width).run(source, [val, idx, count], m, self._threads())
        self._check_overflow("pre-activations", val, count)
        return val, idx

    def _check_overflow(self, what: str, values: np.ndarray, count: np.ndarray | None = None) -> None:
        """Raises where finite rows led to numbers that are not: the kernels give such a row a negative count."""
        bad = None if count is None or count.min(initial=0) >= 0 else int((count[:, 0] < 0).argmax())
        if bad is None and not self._backend().all_finite(values):
            bad = int((~np.isfinite(values).all(axis=1)).argmax())
        if bad is not None:
            raise ValueError(
                f"{what} of row {bad} overflow {values.dtype.name}; scale X to numbers that can be multiplied"
            )

    def _ragged(
        self, source: Source, dtype: np.dtype
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # values, indices, count of blocks of rows
        network = self.network_
        capacity = capacity_of(network, _RAGGED_ROWS)
        size = min(_RAGGED_ROWS, source.n_rows)
        val = idx = None
        for start in range(0, source.n_rows, size):
            rows = np.arange(start, min(start + size, source.n_rows), dtype=np.int64)
            m = len(rows)
            while True:
                if val is None or idx is None or val.shape[1] != capacity:
                    val, idx = np.empty((size, capacity), dtype), np.empty((size, capacity), np.int32)
                count = np.empty((m, 1), np.int32)
                compiled = self._compile("encode", dtype, None, capacity)
                compiled.run(source, [val[:m], idx[:m], count], m, self._threads(), rows)
                self._check_overflow("pre-activations", np.zeros((1, 1), dtype), count)
                most = int(count.max(initial=0))
                if most <= capacity:
                    break
                capacity = min(network.n_components, max(most, 2 * capacity))
            inside = np.arange(most)[None, :] < count
            yield val[:m, :most][inside], idx[:m, :most][inside], count[:, 0]

    def _csr(self, source: Source, dtype: np.dtype, k: int | None = None):
        """Codes of rows as a csr_array without stored zeros."""
        from scipy.sparse import csr_array

        network, m = self.network_, source.n_rows
        if self._ranked(k):
            val, idx = self._fixed(source, dtype, k)
            on = val != 0
            counts, data, indices = on.sum(axis=1), val[on], idx[on]
        else:
            parts = list(self._ragged(source, dtype))
            data, indices, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
            if not data.all():
                row = np.repeat(np.arange(m), counts)
                counts = np.bincount(row[data != 0], minlength=m)
                data, indices = data[data != 0], indices[data != 0]
        if len(data) > _MAX_CSR:
            raise ValueError(f"the code has {len(data)} entries, more than a csr_array's 2^31 − 1; use encode_to")
        indptr = np.zeros(m + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        return csr_array((data, indices, indptr), shape=(m, network.n_components))

    # ---- codes ---

    def transform(self, X: Any):
        """Code of each row, scipy csr_array (N, n_components).

        X : array, sparse matrix or frame (N, p)
        Raises ValueError beyond 2³¹ − 1 entries; `encode` and `encode_to` have no such bound.
        """
        self._fitted()
        return self._csr(*self._rows(X))

    def encode(self, X: Any, *, k: int | None = None, prefix: int | None = None, out: Any = None) -> Any:
        """Active latents of each row.

        X : array, sparse matrix or frame (N, p)
        k : latents per row instead of the fitted k; of batch_topk, the k largest instead of those above the threshold
        prefix : only the first so many latents
        out : (values, indices) to write to, for the kinds with k latents a row
        returns : values (N, k) and indices int32 (N, k), ascending in a row; entries that are not positive have value
            0. For the kinds with as many as pass (relu, jumprelu, gated, batch_topk) a csr_array (N, n_components).
        """
        if prefix is not None:
            return self._prefixed(prefix).encode(X, k=k, out=out)
        if (code := self._few(X, k, out)) is not None:
            return code
        self._fitted()
        k = self._check_k(k)
        source, dtype = self._rows(X)
        if self._ranked(k):
            return self._fixed(source, dtype, k, out)
        if out is not None:
            raise ValueError(f"out is for codes of k latents a row; sparsity={self.network_.sparsity.name!r} gives a "
                             "csr_array")  # fmt: skip
        return self._csr(source, dtype)

    def _few(self, X: Any, k: int | None, out: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Codes of a few rows without the checks that cost more than the codes; None where one is needed after all."""
        network = self.__dict__.get("network_")
        if (
            network is None or type(X) is not np.ndarray or X.dtype.char not in _CODES or X.ndim != 2
            or not X.flags.c_contiguous or not 0 < len(X) <= _FEW_ROWS or X.shape[1] != network.n_features
            or (network.ragged and k is None) or "feature_names_in_" in self.__dict__
        ):  # fmt: skip
            return None
        key = (X.dtype.char, k, self.backend, self.device, self.precision, os.environ.get("FASTAE_BACKEND"))
        live = self.__dict__["_compiled"].get("few")
        if live is None or live[0] != key:
            self._fixed(*self._rows(X), self._check_k(k))  # compiled and packed
            dtype, width = computing_dtype(X.dtype, self.precision), k if k is not None else network.k or 1
            live = self.__dict__["_compiled"]["few"] = key, self._compile("encode", dtype, width), dtype, width
        _, compiled, dtype, width = live
        if compiled.backend.name != "native":
            return None
        m = len(X)
        if out is None:
            out = np.empty((m, width), dtype), np.empty((m, width), np.int32)
        else:
            _check_out(out, (m, width), dtype, X)
        count = np.empty((m, 1), np.int32)
        compiled.few(X, [*out, count])
        if count.min() < 0 or not np.isfinite(out[0]).all():  # the ordinary way words the error
            return None
        return out[0], out[1]

    def encode_to(self, path: Any, source: Any, *, k: int | None = None, **options: Any) -> dict:
        """Codes of any number of rows into .npy files in a folder, block by block; resumable after a crash.

        path : folder; values.npy and indices.npy, or of the kinds with as many latents as pass data.npy, indices.npy
            and indptr.npy
        source : what `fastae.stream.open_rows` takes: arrays, .npy files, iterables of blocks
        k : as of `encode`
        options : of `fastae.encode_to`: block_rows, resume, dtype, progress
        returns : the manifest, as `fastae.encode_to` does
        """
        from ..encode import encode_to

        k = self._check_k(k) if self._fitted() else None
        digest = hashlib.sha256(repr((self.network_, k)).encode())
        digest.update(self._theta.data)
        known = {"n_components": self.network_.n_components, "model": f"sha256:{digest.hexdigest()}"}
        return encode_to(lambda block: self.encode(block, k=k), path, source, **{**known, **options})

    def _code_and_reconstruction(self, X: Any) -> tuple[Any, np.ndarray]:
        """`encode` and `reconstruct`, encoding once where the code is enough to decode."""
        network = self._fitted()
        if network.transcoder:
            raise ValueError(
                "a transcoder's targets are not its inputs; give report.update targets and reconstructions"
            )
        code = self.encode(X)
        if network.ragged or network.normalization == "layer":
            return code, self.reconstruct(X)
        return code, self.decode(*code)

    def _prefixed(self, n: int) -> Any:
        cache = self.__dict__.setdefault("_compiled", {})
        if ("prefix", n) not in cache:
            cache["prefix", n] = self.prefix(n)
        return cache["prefix", n]

    # ---- back to rows ---

    def decode(self, values: Any, indices: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Rows (N, q) of codes: values (N, s) and indices (N, s), as `encode` gives them."""
        network = self._fitted()
        values, indices = np.asarray(values), np.asarray(indices)
        if values.ndim != 2 or values.shape != indices.shape or indices.dtype.kind not in "iu":
            raise ValueError(
                f"values has shape {values.shape}, indices has {indices.shape} and dtype {indices.dtype}; wanted both "
                "(N, s), indices integer"
            )
        if network.normalization == "layer":
            raise ValueError(
                "normalization='layer' restores each row's own mean and deviation, which codes don't tell; use "
                "reconstruct"
            )
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < network.n_components:
            raise ValueError(f"indices has values outside 0..{network.n_components - 1}")
        dtype = np.dtype(np.float64 if values.dtype == np.float64 else np.float32)
        m, s = values.shape
        if out is not None:
            _check_rows_out(out, (m, network.n_targets), dtype, values, indices)
        val, idx = np.ascontiguousarray(values, dtype), np.ascontiguousarray(indices, np.int32)
        return self._decoded(val, idx, np.full((m, 1), s, np.int32), dtype, out)

    def _decoded(self, val: np.ndarray, idx: np.ndarray, count: np.ndarray, dtype: np.dtype,
                 out: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        network, (m, s) = self.network_, val.shape
        if out is None:
            out = np.empty((m, network.n_targets), dtype)
        if m and s:
            # a capacity for the ragged kinds, k for the others: either is the width of the code
            ranked = {"k": s} if not network.ragged else {"k": None, "capacity": s}
            compiled = self._compile("decode", dtype, **ranked)
            compiled.run(Source(np.empty((m, 0), np.float32)), [val, idx, count, out], m, self._threads())
        elif m:
            out[...] = self.arrays_["decoder_bias"] / network.input_scale
        return out

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows (N, q) of codes X (N, n_components), dense or sparse."""
        from scipy.sparse import csr_array, issparse

        network = self._fitted()
        if network.normalization == "layer":
            raise ValueError(
                "normalization='layer' restores each row's own mean and deviation, which codes don't tell; use "
                "reconstruct"
            )
        codes = row_checker(type(self).__name__)()
        if issparse(X):
            X = X.tocsr()
        source, dtype = check_rows(codes, X, reset=True, backend=self._backend(), precision=self.precision)
        if source.columns != network.n_components:
            raise ValueError(
                f"X has {source.columns} columns, codes of this model have n_components={network.n_components}; "
                "give what transform returns"
            )
        rows = csr_array(X, copy=True) if issparse(X) else csr_array(np.asarray(source.data))
        rows.sum_duplicates()
        count = np.diff(rows.indptr).astype(np.int32)
        out = np.empty((rows.shape[0], network.n_targets), dtype)
        for start in range(0, rows.shape[0], _RAGGED_ROWS):
            part = slice(start, min(start + _RAGGED_ROWS, rows.shape[0]))
            c = count[part]
            width = int(c.max(initial=0))
            inside = np.arange(width)[None, :] < c[:, None]
            span = slice(rows.indptr[part.start], rows.indptr[part.stop])
            val, idx = np.zeros(inside.shape, dtype), np.zeros(inside.shape, np.int32)
            val[inside], idx[inside] = rows.data[span], rows.indices[span]
            self._decoded(val, idx, c[:, None].copy(), dtype, out[part])
        return out

    def reconstruct(self, X: Any, *, k: int | None = None, prefix: int | None = None, out: Any = None) -> np.ndarray:
        """Reconstruction of each row (of a transcoder: its target), (N, q). k, prefix: as of `encode`."""
        if prefix is not None:
            return self._prefixed(prefix).reconstruct(X, k=k, out=out)
        network = self._fitted()
        k = self._check_k(k)
        source, dtype = self._rows(X)
        shape = (source.n_rows, network.n_targets)
        if out is None:
            out = np.empty(shape, dtype)
        else:
            _check_rows_out(out, shape, dtype, source.data)
        capacity = None if self._ranked(k) else network.n_components
        k = k if k is not None else None if network.ragged else network.k
        self._compile("reconstruct", dtype, k, capacity).run(source, [out], source.n_rows, self._threads())
        self._check_overflow("reconstructions", out)
        return out

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """−(mean squared reconstruction error) of each row, (N,), float64. y: targets of a transcoder."""
        network = self._fitted()
        source, dtype = self._rows(X)
        target: Source | None = None
        if network.transcoder:
            if y is None:
                raise ValueError("a transcoder is judged on its targets; give y")
            rows = row_checker(type(self).__name__)()
            target, _ = check_rows(rows, y, reset=True, backend=self._backend(), precision=self.precision)
            if (target.n_rows, target.columns) != (source.n_rows, network.n_targets):
                raise ValueError(
                    f"y has shape {(target.n_rows, target.columns)}; wanted {(source.n_rows, network.n_targets)}"
                )
        from ..sparse_training import dense_rows

        scores = np.empty(source.n_rows)
        capacity = network.n_components if network.ragged else None
        compiled = self._compile("reconstruct", dtype, None if network.ragged else network.k, capacity)
        for start in range(0, source.n_rows, 4096):
            rows = np.arange(start, min(start + 4096, source.n_rows), dtype=np.int64)
            made = np.empty((len(rows), network.n_targets), dtype)
            compiled.run(source, [made], len(rows), self._threads(), rows)
            error = dense_rows(source if target is None else target, rows) - made
            scores[rows] = -np.einsum("ij,ij->i", error, error) / network.n_targets
        return scores

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        self._fitted()
        return float(self.score_samples(X, y if self.network_.transcoder else None).mean())

    def _threshold_for(self, X: Any, l0: float) -> float:
        """The threshold that ``l0`` pre-activations a row of X exceed on average (those that are positive)."""
        network = self.network_
        source, dtype = self._rows(X)
        width = min(network.n_components, max(16, int(4 * l0)))
        while True:
            # as many rows, evenly spread, as there is memory for
            rows = np.unique(np.linspace(0, source.n_rows - 1, max(256, _CALIBRATED // width)).astype(np.int64))
            m = len(rows)
            plan = sparse_inference_plan(network, dtype, SPARSE_BATCH, part="encode", k=width)
            val, idx = np.empty((m, width), dtype), np.empty((m, width), np.int32)
            compiled = _CompiledCode(self._backend(), plan, self._space(dtype))
            compiled.run(source, [val, idx, np.empty((m, 1), np.int32)], m, self._threads(), rows)
            flat = np.sort(val, axis=None)[::-1]
            theta = float(flat[min(round(l0 * m), len(flat) - 1)])
            # a row all of whose values are above it may have more that were left out
            if width < network.n_components and (val > theta).all(axis=1).any():
                width = min(network.n_components, 2 * width)
                continue
            if theta > 0:
                return theta
            raise ValueError(
                f"l0={l0} cannot be reached: a row of X has {np.count_nonzero(val > 0) / m:.1f} positive "
                "pre-activations on average; give a smaller l0"
            )

    # ---- scikit-learn's face, files ---

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def save(self, path: Any) -> None:
        """Writes the fitted model to one .safetensors file, atomically; `fastae.load` reads it."""
        from ..io.model_file import save_estimator

        self._fitted()
        save_estimator(self, path)


def _check_rows_out(out: Any, shape: tuple[int, int], dtype: np.dtype, *inputs: np.ndarray) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}; wanted an array of shape {shape} and dtype {dtype}")
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; wanted a writeable C-contiguous array of shape {shape} "
            f"and dtype {dtype}"
        )
    if any(np.shares_memory(out, array) for array in inputs):
        raise ValueError("out shares memory with an input; give an array of its own")


def _check_out(out: Any, shape: tuple[int, int], dtype: np.dtype, rows: np.ndarray) -> None:
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError("out must be a pair of arrays (values, indices)")
    for name, array, kind in zip(("values", "indices"), out, (dtype, np.dtype(np.int32)), strict=True):
        if array.shape != shape or array.dtype != kind or not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError(
                f"out: {name} has shape {array.shape} and dtype {array.dtype}; wanted a writeable C-contiguous array "
                f"of shape {shape} and dtype {kind}"
            )
        if np.may_share_memory(array, rows) and np.shares_memory(array, rows):
            raise ValueError(f"out: {name} shares memory with X; give an array of its own")
