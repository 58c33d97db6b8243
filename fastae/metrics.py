"""Numbers about sparse codes and their reconstructions, gathered in one pass over any stream of rows.

Everything is summed in float64, and sums of blocks are merged so that the result does not depend on how the stream
was cut, nor on a large offset of the features (Chan, Golub and LeVeque, 1983, about a shift). Ratios are made of whole
sums at the end: averaging them over batches would give another number.

Where nothing varies there is no variance to explain. Such features follow scikit-learn's ``r2_score``: explained
variance is 1 (unexplained 0) if the reconstruction has no error at all, else 0 (unexplained 1) rather than −∞, so that
numbers stay finite and can be averaged and compared. Without any rows numbers are NaN.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from . import ops
from .io.model_file import write_atomically
from .models.feed import as_fit_reads, names_of, without_names
from .spec.options import number
from .stream import open_rows
from .validation import refuse_masked

SLICE = 1024  # rows that are in float64 at a time
BIN = 0.25  # width of a bin of log10 frequencies
_FEATURES = ("shift", "mean", "spread", "squared_error")
_LATENTS = ("fired", "total")


class SparseReport:
    """How well sparse codes reconstruct, and how the latents are used.

    n_components, n_features : widths of code and rows
    Feed it with `update`; numbers are properties, NaN without rows. An entry of a code counts as active where it is not
    0.

    Sums kept: n_rows; per feature (p,) ``shift`` (the first row), ``mean`` of x − shift, ``spread`` Σ(x − x̄)²,
    ``squared_error`` Σ(x − x̂)²; ``cosine_sum``; per latent (n,) ``fired`` (rows in which it is active) and ``total``
    (sum of its values).
    """

    def __init__(self, n_components: int, n_features: int):
        self.n_components = number("n_components", n_components, 1, 2**31 - 1, integer=True)
        self.n_features = number("n_features", n_features, 1, 2**31 - 1, integer=True)
        self.n_rows = 0
        self.cosine_sum = 0.0
        self.shift, self.mean, self.spread, self.squared_error = np.zeros((4, self.n_features))
        self.fired = np.zeros(self.n_components, dtype=np.int64)
        self.total = np.zeros(self.n_components)

    @classmethod
    def of(
        cls, model: Any, source: Any, targets: Any = None, *, rows_per_block: int = 4096, max_rows: int | None = None
    ) -> Self:
        """Of a fitted model (``encode`` or ``transform``, and ``reconstruct``) and the rows of a source.

        source : what `fastae.stream.open_rows` takes; also frames, lists of rows and arrays of objects, as in ``fit``
        targets : of a transcoder, what `fastae.stream.open_rows` takes
        rows_per_block : read and encoded at a time
        max_rows : rows after which to stop, or None
        """
        if hasattr(model, "get_params"):
            check_is_fitted(model)
        rows = open_rows(as_fit_reads(model, source), model.n_features_in_, names=names_of(model))
        transcoder = getattr(getattr(model, "network_", None), "transcoder", False)
        if transcoder != (targets is not None):
            raise ValueError("targets go with a transcoder, whose reconstructions are of them; give them there alone")
        wanted = rows if targets is None else open_rows(targets, model.network_.n_targets)
        model = without_names(model)
        encode = getattr(model, "encode", None) or model.transform
        both = getattr(model, "_code_and_reconstruction", None)  # of one encoding
        report: Self | None = None
        blocks = rows.blocks(rows_per_block)
        pairs = ((x, x) for x in blocks) if targets is None else zip_longest(blocks, wanted.blocks(rows_per_block))
        for block, target in pairs:
            if block is None or target is None or block.shape[0] != target.shape[0]:
                raise ValueError("source and targets have different numbers of rows; give a target for each row")
            left = block.shape[0] if max_rows is None else max_rows - (report.n_rows if report else 0)
            if left <= 0:
                break
            block, target = block[:left], target[:left]
            code, made = both(block) if both is not None else (encode(block), model.reconstruct(block))
            if report is None:
                report = cls(_width(model, code), wanted.n_features)
            report.update(target, made, *(code if isinstance(code, tuple) else (code,)))
        if report is None:
            raise ValueError(f"max_rows={max_rows} leaves no rows; wanted 1 or more")
        return report

    # ---- gathering -----------------------------------------------------------------------------------------------

    def update(self, x: Any, reconstruction: Any, values: Any, indices: Any = None) -> Self:
        """Adds a block of rows.

        x, reconstruction : (m, p), arrays or sparse
        values, indices : the code: both (m, k); or a sparse matrix or an array (m, n) without ``indices``
        Raises ValueError for shapes that do not fit, NaN or infinity, and indices outside [0, n_components), TypeError
        for masked entries; nothing is added then.
        """
        x, reconstruction = (a if hasattr(a, "shape") else np.asarray(a) for a in (x, reconstruction))
        m = x.shape[0]
        fired, total = self._active(values, indices, m)
        for name, array in (("x", x), ("reconstruction", reconstruction)):
            if array.shape != (m, self.n_features):
                raise ValueError(f"{name} has shape {array.shape}; wanted {(m, self.n_features)}")
            refuse_masked(name, array)
            _check_finite(name, array.data if hasattr(array, "tocsr") else array)
        for start in range(0, m, SLICE):
            self._add(_double(x[start : start + SLICE]), _double(reconstruction[start : start + SLICE]))
        self.fired += fired
        self.total += total
        return self

    def _add(self, x: np.ndarray, reconstruction: np.ndarray) -> None:
        """x, reconstruction (m, p) float64"""
        if self.n_rows == 0:
            self.shift = x[0].copy()
        error = x - reconstruction
        self.squared_error += (error * error).sum(axis=0)
        norms = np.sqrt((x * x).sum(axis=1)) * np.sqrt((reconstruction * reconstruction).sum(axis=1))
        products = (x * reconstruction).sum(axis=1)
        self.cosine_sum += float(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0).sum())
        moved = x - self.shift
        mean = moved.mean(axis=0)
        moved -= mean
        self._merge_spread(len(x), mean, (moved * moved).sum(axis=0))

    def _merge_spread(self, n: int, mean: np.ndarray, spread: np.ndarray) -> None:
        """Takes in n rows with a mean about the same shift."""
        together = self.n_rows + n
        away = mean - self.mean
        self.spread += spread + away * away * (self.n_rows * n / together)
        self.mean += away * (n / together)
        self.n_rows = together

    def _active(self, values: Any, indices: Any, m: int) -> tuple[np.ndarray, np.ndarray]:
        """How often each latent is active, and the sum of its values."""
        if indices is None and hasattr(values, "tocsr"):
            code = values.tocsr()
            shape, kept, places = code.shape, code.data, code.indices
        else:
            kept = np.asarray(values)
            shape = (len(kept), self.n_components) if indices is not None else kept.shape
            places = np.broadcast_to(np.arange(shape[-1]), kept.shape) if indices is None else np.asarray(indices)
            if places.shape != kept.shape or places.dtype.kind not in "iu":
                raise ValueError(f"indices have shape {places.shape} and dtype {places.dtype}; wanted integers of "
                                 f"values' shape, {kept.shape}")  # fmt: skip
        if shape != (m, self.n_components):
            raise ValueError(f"the code has shape {shape}; wanted {(m, self.n_components)}")
        _check_finite("the code", kept)
        active = kept != 0
        places, kept = places[active], np.asarray(kept[active], dtype=np.float64)
        if places.size and not 0 <= places.min() <= places.max() < self.n_components:
            raise ValueError(f"indices are from {places.min()} to {places.max()}; wanted [0, {self.n_components})")
        return np.bincount(places, minlength=self.n_components), np.bincount(places, kept, self.n_components)

    def merge(self, other: SparseReport) -> Self:
        """Adds the rows of another report, as of another rank or shard.

        other : of as many latents and features, else ValueError
        """
        if (other.n_components, other.n_features) != (self.n_components, self.n_features):
            raise ValueError(f"the other report is of {other.n_components} latents and {other.n_features} features; "
                             f"wanted {self.n_components} and {self.n_features}")  # fmt: skip
        if other.n_rows:
            if not self.n_rows:
                self.shift = other.shift.copy()
            self._merge_spread(other.n_rows, other.mean + (other.shift - self.shift), other.spread)
            self.squared_error += other.squared_error
            self.cosine_sum += other.cosine_sum
            self.fired += other.fired
            self.total += other.total
        return self

    # ---- numbers -------------------------------------------------------------------------------------------------

    @property
    def l0(self) -> float:
        """Mean number of active latents a row."""
        return _ratio(int(self.fired.sum()), self.n_rows)

    @property
    def density(self) -> float:
        """Share of the codes' entries that are active."""
        return _ratio(self.l0, self.n_components)

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean of all rows.

        Of rows that are all the same 0 if the reconstruction is exact, else 1.
        """
        return float(_unexplained(self.squared_error.sum(), self.spread.sum(), self.n_rows))

    @property
    def mse(self) -> float:
        """Mean squared error of an element."""
        return _ratio(float(self.squared_error.sum()), self.n_rows * self.n_features)

    @property
    def explained_variance(self) -> np.ndarray:
        """1 − Σ(x − x̂)² / Σ(x − x̄)² of each feature (p,); where it does not vary 1 if it is exact, else 0."""
        return 1.0 - _unexplained(self.squared_error, self.spread, self.n_rows)

    @property
    def mean_explained_variance(self) -> float:
        """Mean of `explained_variance` over the features that vary, over all where none does; 1 − `fvu` weights them by
        their variance.
        """
        varies = self.spread > 0
        return float(self.explained_variance[varies if varies.any() else slice(None)].mean())

    @property
    def cosine(self) -> float:
        """Mean cosine of x and x̂; a row of zeros counts as 0."""
        return _ratio(self.cosine_sum, self.n_rows)

    @property
    def frequency(self) -> np.ndarray:
        """Share of the rows in which each latent is active (n,)."""
        return self.fired / self.n_rows if self.n_rows else np.full(self.n_components, np.nan)

    @property
    def mean_active(self) -> np.ndarray:
        """Mean value of each latent where it is active (n,); NaN for dead ones."""
        bare = np.full(self.n_components, np.nan)
        return np.divide(self.total, self.fired, out=bare, where=self.fired > 0)

    @property
    def dead(self) -> np.ndarray:
        """Latents that were never active, int64."""
        return np.flatnonzero(self.fired == 0)

    @property
    def dead_fraction(self) -> float:
        return len(self.dead) / self.n_components if self.n_rows else np.nan

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts (b,) and edges (b + 1,) of log10 of the living latents' frequencies, in bins of a quarter."""
        fewest = np.floor(-np.log10(max(self.n_rows, 1)) / BIN) - 1
        edges = np.arange(fewest, 1) * BIN
        alive = self.fired[self.fired > 0]
        counts, _ = np.histogram(np.log10(alive / self.n_rows) if len(alive) else [], edges)
        return counts, edges

    # ---- keeping -------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float | int]:
        """The numbers that are not per feature or latent."""
        names = ("l0", "density", "fvu", "mse", "mean_explained_variance", "cosine", "dead_fraction")
        return {"n_rows": self.n_rows, "n_components": self.n_components, "n_features": self.n_features,
                **{name: float(getattr(self, name)) for name in names}}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``summary`` (undefined numbers None), ``histogram`` {counts, edges}, and ``sums``, all that
        `from_dict` needs. Later versions only add keys."""
        counts, edges = self.histogram()
        sums = {name: getattr(self, name).tolist() for name in (*_FEATURES, *_LATENTS)}
        return {
            "format_version": 1,
            "summary": {name: None if value != value else value for name, value in self.summary().items()},
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
            "sums": {"cosine_sum": self.cosine_sum, **sums},
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """The report of `to_dict`, bit for bit. Raises ValueError for anything else."""
        try:
            if kept["format_version"] > 1:
                raise ValueError("it is of a newer version; upgrade fastae")
            summary, sums = kept["summary"], kept["sums"]
            report = cls(summary["n_components"], summary["n_features"])
            report.n_rows, report.cosine_sum = int(summary["n_rows"]), float(sums["cosine_sum"])
            for name in (*_FEATURES, *_LATENTS):
                getattr(report, name)[:] = sums[name]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no report of fastae ({type(error).__name__}: {error})") from None
        return report

    def save_json(self, path: Any) -> None:
        """Writes `to_dict` to the file ``path``, atomically."""
        text = json.dumps(self.to_dict(), allow_nan=False).encode()
        write_atomically(path, lambda file: file.write(text))

    @classmethod
    def load(cls, path: Any) -> Self:
        """The report that `save_json` wrote to the file ``path``. Raises ValueError for another file."""
        with open(path, "rb") as file:
            try:
                kept = json.load(file)
            except ValueError as error:
                raise ValueError(f"{str(path)!r} is no JSON file ({error})") from None
        return cls.from_dict(kept)

    def __repr__(self) -> str:
        return "SparseReport(" + ", ".join(f"{name}={value:.4g}" for name, value in self.summary().items()) + ")"


def _check_finite(name: str, numbers: Any) -> None:
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{name} has NaN or infinity, of which no report can be made; leave such rows out, or mend the model"
        )


def _ratio(above: float, below: float) -> float:
    return above / below if below else np.nan


def _unexplained(error: Any, spread: Any, n_rows: int) -> np.ndarray:
    """error / spread; where spread is 0 as the module says."""
    error, spread = np.asarray(error), np.asarray(spread)
    flat = np.where(error > 0, 1.0, 0.0) if n_rows else np.full(error.shape, np.nan)
    return np.divide(error, spread, out=flat, where=spread > 0)


def _double(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if hasattr(block, "toarray") else block, dtype=np.float64)


def _width(model: Any, code: Any) -> int:
    """Number of latents."""
    return model.n_components if isinstance(code, tuple) else code.shape[1]


def decoder_neighbours(
    w: Any, k: int = 10, *, rows_per_block: int = 512, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k decoder rows that point most nearly in the direction of each.

    w : (n, p), such as ``model.dictionary_``; n_threads : as of `fastae.ops`
    returns : indices (n, k) int32 and cosines (n, k) float32, largest first, ties by lowest index; a row is no
        neighbour of its own, and a row of zeros has cosine 0 with all. Neither threads nor ``rows_per_block`` change a
        bit on the compiled backend.
    """
    weight = np.asarray(w, dtype=np.float64)
    if weight.ndim != 2 or len(weight) < 2:
        raise ValueError(f"w has shape {weight.shape}; wanted (n, p) with n >= 2")
    if not np.isfinite(weight).all():
        raise ValueError("w has NaN or infinity; wanted finite rows")
    n = len(weight)
    k = number("k", k, 1, n - 1, integer=True)
    size = number("rows_per_block", rows_per_block, 1, 2**31 - 1, integer=True)
    norms = np.sqrt((weight * weight).sum(axis=1, keepdims=True))
    unit = np.divide(weight, norms, out=np.zeros_like(weight), where=norms > 0).astype(np.float32)
    packed = ops.pack(unit, n_threads=n_threads)
    indices, cosines = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for start in range(0, n, size):
        near = ops.dense(unit[start : start + size], packed, n_threads=n_threads)
        rows = np.arange(len(near))
        near[rows, start + rows] = -np.inf
        least = np.partition(near, n - k, axis=1)[:, n - k, None]
        row, column = np.nonzero(near >= least)  # more than k where some are equal
        value = near[row, column]
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, rows)[row]
        chosen = rank < k
        indices[start : start + size] = column[chosen].reshape(-1, k)
        cosines[start : start + size] = value[chosen].reshape(-1, k)
    return indices, cosines


__all__ = ["SparseReport", "decoder_neighbours"]
