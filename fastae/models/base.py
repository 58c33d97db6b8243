"""What all estimators share: parameters in one flat buffer, compiled plans, encoding, saving."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .. import threads
from ..backends import device_number, get_backend
from ..ops._call import output as checked_output
from ..plan import schema
from ..plan.build import INFERENCE_BATCH, evaluation_plan, inference_plan
from ..plan.plan import Job, Plan, Source
from ..spec import options
from ..spec.network import Network, several
from ..validation import check_mark, check_rows, check_transform, computing_dtype, is_nan
from . import weights
from .inspection import ShownAsHTML

if TYPE_CHECKING:
    from .encoder import Encoder

PRECISIONS = ("auto", "float32", "float64", "bfloat16", "tf32")
_LAYER_BYTES = 1 << 26  # of layer outputs held at a time
_DEVICE_ROWS, _DEVICE_ELEMENTS = 8192, 1 << 25  # of a step on a GPU at most; and rows times the widest layer


def seed_of(random_state: Any) -> int:
    """A 64-bit seed from an int, None, RandomState or Generator; None leaves NumPy's global generator alone.

    Raises TypeError for anything else, True and False too; ValueError for an int that is no 64-bit seed.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        if not 0 <= random_state < 2**64:
            raise ValueError(f"random_state={random_state} must be in 0..2^64-1")
        return int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    from sklearn.utils import check_random_state

    try:
        if isinstance(random_state, bool):  # an int to Python and to scikit-learn
            raise ValueError
        drawn = check_random_state(random_state)
    except ValueError:
        wanted = "an integer, a RandomState, a Generator or None"
        raise TypeError(f"random_state={random_state!r} must be {wanted}") from None
    low, high = drawn.randint(0, 2**31 - 1, size=2, dtype=np.int64)
    return int(low) << 31 | int(high)


def checked_callbacks(value: Any) -> tuple:
    """A callback or several as a tuple."""
    callbacks = (value,) if callable(value) else several("callbacks", value)
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks has {callback!r}; give functions that take an EpochInfo")
    return callbacks


def inference_rows(backend: Any, rows: int, width: int) -> int:
    """Rows of a step of inference: on a CPU as many as its cache wants, on a GPU as many as keep it busy.

    rows : of the CPU's; width : of the widest layer
    """
    return rows if backend.device == "cpu" else max(rows, min(_DEVICE_ROWS, _DEVICE_ELEMENTS // width))


class _Compiled:
    """A plan on a backend with its memory: parameters cast to the plan's dtype, weights packed at the first run."""

    def __init__(self, backend: Any, plan: Plan):
        self.plan, self.backend = plan, backend
        self.handle = backend.compile(plan)
        self.spaces = backend.allocate(plan)
        # the packed weights live in the arena; Python backends use the rest of it too, so they take turns
        self.lock = threading.Lock()
        self.packed = False
        self.direct: Any = None  # the short way from an array to the codes, where there is one

    def connect(self, network: Network) -> None:
        """Packs an encoder's weights; makes ``direct`` where rows need no check but that they are finite."""
        row = Source(np.zeros((1, network.n_features), np.float32), columns=network.n_features)
        results = [buffer for buffer in self.plan.buffers if buffer.space >= schema.EXTERNAL]
        self.run(row, [np.empty((1, b.columns), self.plan.buffer_dtype(b)) for b in results], 1)
        allow_nan = is_nan(network.missing)
        if self.backend.name == "native" and network.input_transform is None and (network.missing is None or allow_nan):
            self.direct = self.backend.encoder(self.handle, self.spaces, allow_nan=allow_nan)

    def run(self, source: Source, external: Any, n_threads: int, rows: np.ndarray | None = None) -> None:
        """Writes the plan's external array (or list of arrays) for all rows of the source, or for those in ``rows``."""
        external = external if isinstance(external, list) else [external]
        n_rows = source.n_rows if rows is None else len(rows)
        job = Job(self.spaces + external, (source,), n_rows, rows, n_steps=-(-n_rows // self.plan.batch),
                  phases=schema.GRADIENT, n_threads=n_threads)  # fmt: skip
        if self.packed and self.backend.name == "native":
            self.backend.run(self.handle, job)
            return
        with self.lock:
            if not self.packed:
                job.phases |= schema.PREPARE
            self.backend.run(self.handle, job)
            self.packed = True


class CompiledModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of all estimators: backend, threads, and what does not travel with a pickle."""

    device: Any
    backend: Any
    precision: Any
    _left_behind: tuple[str, ...] = ("_compiled", "_live")  # handles, packed weights, working memory: made anew

    def _backend(self) -> Any:
        """The backend that the parameters ask for; the fitted one's name is in ``backend_``."""
        if self.precision not in PRECISIONS:
            raise options.unknown("precision", self.precision, PRECISIONS)
        backend = get_backend(self.backend, self.device)
        if self.precision == "tf32" and backend.name != "cuda":
            raise ValueError("precision='tf32' is a GPU's; set device='cuda', or use precision='float32'")
        return backend

    @property
    def _bf16(self) -> int:
        """What products are made in: 1 bfloat16, 2 tf32, 0 the plan's own type."""
        return {"bfloat16": 1, "tf32": 2}.get(self.precision, 0)

    def to(self, device: str) -> Self:
        """Moves the model to "cpu", "cuda" or "cuda:1": what it does from now on is done there. Returns the model."""
        before = self.device, self.backend
        try:
            self.device = device
            if self.backend == "cuda" or not isinstance(self.backend, str) or device_number(device) is not None:
                self.backend = "auto"
            backend = self._backend()
        except Exception:
            self.device, self.backend = before
            raise
        if hasattr(self, "backend_"):
            self.backend_, self.device_ = backend.name, backend.device
            self._forget_compiled()
            self._live: Any = None
        return self

    def _forget_compiled(self) -> None:
        self._compiled: dict = {}

    def _threads(self) -> int:
        threads.register_threadpoolctl()
        return threads.resolve_threads(self.n_jobs)

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """A call that is refused leaves the estimator, fitted or not, as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def __getstate__(self) -> dict:
        state = super().__getstate__().copy()
        for name in self._left_behind:
            state.pop(name, None)
        from ..registry.travel import used

        formulas = used(self.get_params(deep=False))  # a name in a parameter means nothing where it arrives
        return state | ({"_formulas": formulas} if formulas else {})

    def __setstate__(self, state: dict) -> None:
        from ..registry.travel import restored

        for description in state.get("_formulas", ()):
            restored(description)
        super().__setstate__({name: value for name, value in state.items() if name != "_formulas"})


class DenseModel(ShownAsHTML, CompiledModel):
    """Base of estimators over a dense `Network`: everything after fitting."""

    # set by subclasses' fit, with n_features_in_, backend_, device_
    network_: Network
    weights_ = weights.Changeable[weights.Weights]()
    norms_ = weights.Changeable[weights.Norms]()
    plan_: Plan
    _compiled: dict

    # ---- backend and memory ---------------------------------------------------------------------------------------

    @property
    def _arrays(self) -> weights.Arrays:
        """weights_ and norms_, only to be read: plans are kept."""
        return self.__dict__["weights_"], self.__dict__["norms_"]

    def _compile(self, what: str, dtype: np.dtype) -> _Compiled:
        """The inference or evaluation plan for a dtype, made once per set of weights and backend."""
        backend = self._backend()
        key = (what, dtype, self._bf16, backend)
        cache = self.__dict__.setdefault("_compiled", {})
        if key not in cache:
            network: Network = self.network_.encoding if what == "encode" else self.network_
            n_layers = len(network.layers)
            batch = inference_rows(backend, INFERENCE_BATCH, network.widest)
            if what in ("loss", "heads"):
                plan = evaluation_plan(network, dtype, batch, per_head=what == "heads", bf16=self._bf16)
            elif what == "error":
                plan = evaluation_plan(network, dtype, batch, loss=options.LOSSES["squared_error"](), bf16=self._bf16)
            else:
                plan = inference_plan(network, dtype, batch, part=what, bf16=self._bf16)
            compiled = _Compiled(backend, plan)
            pairs, norms = self._arrays
            weights.lock([*pairs, *norms])
            weights.write(plan, compiled.spaces, network, pairs[:n_layers], norms[:n_layers])
            if what == "encode":
                compiled.connect(network)
            cache[key] = compiled
        return cache[key]

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if "weights_" in self.__dict__ and "network_" in self.__dict__:
            arrays, _ = self._arrays
            for i, layer in enumerate(self.network_.layers):
                if layer.tied is not None:  # a copy loses the view of the owner's W
                    arrays[i] = (arrays[layer.tied][0].T, arrays[i][1])

    def _rows(self, X: Any, min_rows: int = 1) -> tuple[Source, np.dtype]:
        """Checked rows for the fitted network."""
        network = self.network_
        source, dtype = check_rows(self, X, reset=False, backend=self._backend(), precision=self.precision,
                                   min_rows=min_rows, allow_nan=is_nan(network.missing))  # fmt: skip
        check_transform(source, network)
        check_mark(source, dtype, network.missing)
        return source, dtype

    def _encode(self, what: str, X: Any, width: int, out: np.ndarray | None = None) -> np.ndarray:
        source, dtype = self._rows(X)
        return self._run(what, source, dtype, width, out)

    def _run(self, what: str, source: Source, dtype: np.dtype, width: int, out: np.ndarray | None = None) -> np.ndarray:
        out = checked_output("out", out, (source.n_rows, width), dtype, source.data)
        self._compile(what, dtype).run(source, out, self._threads())
        return out

    # ---- scikit-learn's face --------------------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.network_.n_components

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        missing = getattr(self, "missing", None)
        tags.input_tags.allow_nan = isinstance(missing, Real) and is_nan(float(missing))
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def transform(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Code of each row.

        X : array, sparse matrix or frame (N, p)
        out : array (N, n_components) to write to, or None
        returns : array (N, n_components), float64 for float64 input, else float32
        """
        network = self._fitted_network()
        if type(X) is np.ndarray and "feature_names_in_" not in self.__dict__:
            direct = self._compile("encode", computing_dtype(X.dtype, self.precision)).direct
            if direct is not None and (code := direct(X, out, self._threads(), -1)) is not None:
                return code
        return self._encode("encode", X, network.n_components, out)

    def encoder(
        self, precision: str = "auto", n_threads: int | None = None, *, output: str = "auto", sample: Any = None
    ) -> Encoder:
        """A function from rows to codes for pipelines: nothing but the arithmetic, of the model as it is now.

        precision : "auto", "float32", "float64", "bfloat16" or "int8"
            What is computed in, whatever the rows are stored as. "auto": the model's ``precision``, else that of its
            weights. "bfloat16": operands of products rounded, all else in float32. "int8": products of 8-bit
            integers, more than twice as fast as float32 where the processor has AVX512_VNNI; weights with a scale per
            unit, rows with a scale each, biases and activations in float32.
        n_threads : int or None
            None takes the model's ``n_jobs``.
        output : "auto", "float32", "float64", "float16" or "int8"
            What codes are stored as; "auto" and the first two: as is computed in. See `fastae.models.encoder.Encoder`.
        sample : array, sparse matrix or frame (N, p)
            Rows like those to come; the encoder measures its own error on them, ``encoder.error``. "int8" needs it.
        returns : `fastae.models.encoder.Encoder`
        """
        from .encoder import model_encoder

        return model_encoder(self, precision, n_threads, output, sample)

    def _layer_outputs(
        self, source: Source, dtype: np.dtype, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Blocks of ``rows`` with the outputs of all layers, (block, n_out) each; the last is the reconstruction."""
        widths = [*(layer.n_out for layer in self.network_.layers[:-1]), self.network_.target_width]
        size = max(1, min(len(rows), _LAYER_BYTES // (dtype.itemsize * sum(widths))))
        plan = inference_plan(self.network_, dtype, min(size, 512), part="layers", bf16=self._bf16)
        compiled = _Compiled(self._backend(), plan)
        weights.write(plan, compiled.spaces, self.network_, *self._arrays)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            outputs = [np.empty((len(block), width), dtype) for width in widths]
            compiled.run(source, outputs, self._threads(), block)
            yield block, outputs

    def _fitted_network(self) -> Network:
        if "weights_" not in self.__dict__:  # scikit-learn's check costs 20 µs
            check_is_fitted(self, "weights_")
        return self.network_

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes the fitted model to one .safetensors file, atomically; `fastae.load` reads it.

        path : of the file, str or PathLike
        """
        from ..io.model_file import save_estimator

        self._fitted_network()
        save_estimator(self, path)
