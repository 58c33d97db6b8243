"""Encoders: a fitted model's encoder as a plain function of rows, for pipelines."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..backends import get_backend
from ..ops._call import output as checked_output
from ..plan.build import INFERENCE_BATCH, inference_plan
from ..plan.plan import Source
from ..spec import options
from ..spec.network import Network
from ..validation import check_mark, check_rows, check_transform, is_nan, is_readable
from . import weights
from .base import DenseModel, _Compiled, inference_rows
from .reconstruction import row_checker

PRECISIONS = ("auto", "float32", "float64", "bfloat16", "int8")
OUTPUTS = ("auto", "float32", "float64", "float16", "int8")
_BLOCK = 4096  # rows converted at a time


class EncodingError(NamedTuple):
    """Of codes against those of the same encoder in full precision, on a sample.

    relative_rms : root of (sum of squared differences / sum of squares); 0 where both are 0
    largest : largest absolute difference
    """

    relative_rms: float
    largest: float


class Encoder:
    """Codes of rows: ``encoder(X, out=None)``. Made by `fastae.Autoencoder.encoder`; immutable, thread-safe, picklable.

    X : array (N, p), N >= 1, of any real dtype (float16, bfloat16, float32, float64, integers, bool), read as it lies
        and converted in registers; what is not an array with contiguous columns (lists, frames, sparse matrices, other
        orders) goes a longer way. float64 is computed in float32 unless the encoder is of float64.
    out : array (N, n_components) to write to, or None; C-contiguous, of the encoder's ``output``, apart from X. What it
        holds after an error is undefined
    returns : array (N, n_components) of dtype ``output``: the bits of the model's ``transform`` computed in ``dtype``.
        "float16" is rounded to nearest even (beyond 65,504 infinite).
        "int8" returns a pair, and takes one as ``out``: q int8 (N, n_components) and scale float32 (N,), the code being
        ``q * scale[:, None]``, with scale = max |code of the row| / 127 and q = round(code · 127 / max |code|), ties to
        even. A row whose code is 0 (below 2⁻¹⁰⁰) has scale 0; one that is not finite has q = 0 and scale NaN.

    Raises ValueError or TypeError as ``transform`` does, for NaN (unless the model has ``missing=nan``), infinity,
    wrong width, dtype or number of dimensions, and for an ``out`` that does not fit or shares memory with X. It takes
    no part in scikit-learn's configuration, checks column names of frames only, and releases the GIL when the work
    takes more than about 10 µs. Beyond X and the codes it needs memory for 192 rows a thread.

    Attributes
    ----------
    precision, output : str; dtype : numpy dtype that is computed in; n_threads : int
    n_features_in, n_components : int
    error : `EncodingError` on the sample, or None without
    """

    dtype: np.dtype
    error: EncodingError | None
    n_components: int
    n_features_in: int
    n_threads: int
    output: str
    precision: str
    _backend: Any
    _device: str
    _columns: Any
    _compiled: _Compiled
    _direct: Any
    _marks: bool
    _name: str
    _network: Network
    _threads: int | None

    __slots__ = tuple(__annotations__)

    def __init__(self, network: Network, arrays: weights.Arrays, *, name: str, columns: Any, marks: bool, backend: Any,
                 device: str, precision: str, dtype: np.dtype, output: str, n_threads: int | None,
                 error: EncodingError | None = None):  # fmt: skip
        # for errors: the model's class, its names of columns, whether it has a parameter `missing`
        stored = output if output in ("float16", "int8") else "real"
        there = get_backend(backend, device)
        plan = inference_plan(
            network, dtype, inference_rows(there, INFERENCE_BATCH, network.widest), int8=precision == "int8",
            bf16={"bfloat16": 1, "tf32": 2}.get(precision, 0), output=stored,
        )  # fmt: skip
        compiled = _Compiled(there, plan)
        weights.write(plan, compiled.spaces, network, *arrays)
        compiled.connect(network)
        threads.register_threadpoolctl()
        values = {
            "dtype": dtype, "error": error, "n_components": network.n_components, "n_features_in": network.n_features,
            "n_threads": threads.resolve_threads(n_threads), "output": output, "precision": precision,
            "_backend": backend, "_device": device, "_columns": columns, "_compiled": compiled,
            "_direct": compiled.direct,
            "_marks": marks, "_name": name, "_network": network, "_threads": n_threads,
        }  # fmt: skip
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __call__(self, X: Any, out: Any = None) -> Any:
        if self._direct is not None and (code := self._direct(X, out, self.n_threads, -1)) is not None:
            return code
        return self._longer_way(X, out)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an encoder is immutable, {name} cannot be set; make another one with model.encoder(…)")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __repr__(self) -> str:
        error = self.error
        measured = "" if error is None else (
            f", error: relative RMS {error.relative_rms:.2g}, largest {error.largest:.2g}")  # fmt: skip
        return (
            f"Encoder({self.n_features_in} → {self.n_components}, precision={self.precision!r}, "
            f"output={self.output!r}, n_threads={self.n_threads}{measured})"
        )

    def _arrays(self) -> weights.Arrays:
        return weights.read(self._compiled.plan, self._compiled.spaces, self._network, self.dtype)

    def __reduce__(self) -> tuple:
        settings = {
            "name": self._name, "columns": self._columns, "marks": self._marks, "backend": self._backend,
            "device": self._device, "precision": self.precision, "dtype": self.dtype, "output": self.output,
            "n_threads": self._threads,
            "error": self.error,
        }  # fmt: skip
        return _restored, (self._network, self._arrays(), settings)

    # ---- whatever is not an array that kernels read as it lies ------------------------------------------------------

    def _longer_way(self, X: Any, out: Any) -> Any:
        if isinstance(X, np.ndarray) and X.ndim == 2 and len(X) > _BLOCK and not is_readable(X):
            results = self._results(out, len(X), X)
            for start in range(0, len(X), _BLOCK):
                block = slice(start, start + _BLOCK)
                self._longer_way(X[block], tuple(r[block] for r in results) if len(results) > 1 else results[0][block])
        else:
            source = self._rows(X)
            results = self._results(out, source.n_rows, X, source.data)
            self._run(source, results)
        return results[0] if len(results) == 1 else tuple(results)

    def _rows(self, X: Any) -> Source:
        """Checked rows, with the errors of ``transform``."""
        checker = row_checker(self._name)()
        checker.n_features_in_ = self.n_features_in
        if self._marks:
            checker.missing = self._network.missing
        if self._columns is not None and not isinstance(X, (np.ndarray, list)):
            checker.feature_names_in_ = self._columns
        source, _ = check_rows(checker, X, reset=False, backend=self._compiled.backend, precision=self.dtype.name,
                               allow_nan=is_nan(self._network.missing))  # fmt: skip
        check_transform(source, self._network)
        check_mark(source, self.dtype, self._network.missing)
        return source

    def _results(self, out: Any, n_rows: int, *inputs: Any) -> list[np.ndarray]:
        """Codes, and their scales where there are any: new, or the caller's after checks."""
        shape = (n_rows, self.n_components)
        if self.output != "int8":
            return [checked_output("out", out, shape, np.dtype(self.output), *inputs)]
        if out is not None and not (isinstance(out, (tuple, list)) and len(out) == 2):
            raise TypeError(f"out is a {type(out).__name__}; wanted a pair of arrays, q int8 and scale float32")
        q, scale = out or (None, None)
        q = checked_output("out[0]", q, shape, np.dtype(np.int8), *inputs)
        return [q, checked_output("out[1]", scale, (n_rows,), np.dtype(np.float32), *inputs, q)]

    def _run(self, source: Source, results: list[np.ndarray], rows: np.ndarray | None = None) -> None:
        self._compiled.run(source, [r if r.ndim == 2 else r[:, None] for r in results], self.n_threads, rows)

    def _measured(self, exact: Encoder, sample: Any) -> EncodingError:
        """Error against an encoder that computes and stores in full."""
        source = exact._rows(sample)
        squares, size, largest = 0.0, 0.0, 0.0
        for start in range(0, source.n_rows, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, source.n_rows))
            wanted, results = exact._results(None, len(rows))[0], self._results(None, len(rows))
            exact._run(source, [wanted], rows)
            self._run(source, results, rows)
            code = results[0].astype(np.float64)
            if len(results) > 1:
                code *= results[1][:, None]
            difference = code - wanted
            squares += float((difference**2).sum())
            size += float((wanted.astype(np.float64) ** 2).sum())
            largest = max(largest, float(np.abs(difference).max()))
        return EncodingError((squares / size) ** 0.5 if size else float(squares > 0), largest)


def _restored(network: Network, arrays: weights.Arrays, settings: dict) -> Encoder:
    return Encoder(network, arrays, **settings)


def model_encoder(model: DenseModel, precision: str, n_threads: int | None, output: str, sample: Any) -> Encoder:
    """The encoder of a fitted model; see `DenseModel.encoder`."""
    network = model._fitted_network().encoding
    model._backend()  # checks of the model's parameters
    for name, value, known in (("precision", precision, PRECISIONS), ("output", output, OUTPUTS)):
        if not isinstance(value, str) or value not in known:
            raise options.unknown(name, value, known)
    threads.resolve_threads(n_threads, "n_threads")
    n_layers = len(network.layers)
    pairs, norms = model._arrays
    arrays = pairs[:n_layers], norms[:n_layers]
    if precision == "auto":
        precision = arrays[0][0][0].dtype.name if model.precision == "auto" else model.precision
    if precision == "int8" and sample is None:
        raise ValueError(
            "precision='int8' needs sample: rows like those to come, on which the encoder measures its error; give "
            "sample=X, or use precision='float32'"
        )
    dtype = np.dtype("float32" if precision in ("bfloat16", "tf32", "int8") else precision)
    if output == "auto":
        output = dtype.name
    if output != dtype.name and (dtype == np.float64 or output == "float64"):
        raise ValueError(
            f"output={output!r} does not go with precision={precision!r}; an encoder of float64 stores float64, others "
            "'float32', 'float16' or 'int8'"
        )
    settings: dict[str, Any] = {
        "name": type(model).__name__, "columns": getattr(model, "feature_names_in_", None), "backend": model.backend,
        "device": model.device, "dtype": dtype, "marks": hasattr(model, "missing"),
        "n_threads": model.n_jobs if n_threads is None else n_threads,
    }  # fmt: skip
    encoder = Encoder(network, arrays, precision=precision, output=output, **settings)
    if sample is not None:
        exact = Encoder(network, arrays, precision=dtype.name, output=dtype.name, **settings)
        object.__setattr__(encoder, "error", encoder._measured(exact, sample))
    return encoder
