"""Rows to codes: the encoder of a fitted sparse autoencoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import to_host
from ..ops._call import output as checked_output
from ..plan.plan import Source
from ..plan.sparse import SPARSE_BATCH, capacity_of, sparse_inference_plan
from ..spec.options import number
from ..validation import computing_dtype
from .sparse_memory import CODES, CompiledCode, SparseMemory

RAGGED_ROWS = 1024  # of a ragged code made at a time
_MAX_CSR = 2**31 - 1
_FEW_ROWS = 32  # a panel of rows: codes of so many are made by one thread
_CALIBRATED = 1 << 25  # pre-activations looked at for a threshold


class SparseEncoding(SparseMemory):
    """Base of `SparseAutoencoder`: codes of rows."""

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
        val, idx = _pair(out, (m, width), dtype, source.data)
        count = np.empty((m, 1), np.int32)
        self._compile("encode", dtype, width).run(source, [val, idx, count], self._threads())
        # an entry that is NaN is none of the code, whose rest was never written then
        self._check_overflow("pre-activations", val, count, least=width)
        return val, idx

    def _check_overflow(self, what: str, values: np.ndarray, count: np.ndarray | None = None, first: int = 0,
                        least: int = 0) -> None:  # fmt: skip
        """Raises where finite rows led to numbers that are not: the kernels give such a row a count below ``least``.

        values (m, s); first : number of the first row
        """
        bad = None if count is None or count.min(initial=least) >= least else int((count[:, 0] < least).argmax())
        if bad is None and not self._backend().all_finite(values):
            bad = int((~np.isfinite(to_host(values)).all(axis=1)).argmax())
        if bad is not None:
            raise ValueError(
                f"{what} of row {first + bad} overflow {values.dtype.name}; scale X to numbers that can be multiplied"
            )

    def _ragged(
        self, source: Source, dtype: np.dtype
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # values, indices, count of blocks of rows
        network = self.network_
        capacity = capacity_of(network, RAGGED_ROWS)
        size = min(RAGGED_ROWS, source.n_rows)
        val = idx = None
        for start in range(0, source.n_rows, size):
            rows = np.arange(start, min(start + size, source.n_rows), dtype=np.int64)
            m = len(rows)
            while True:
                if val is None or idx is None or val.shape[1] != capacity:
                    val, idx = np.empty((size, capacity), dtype), np.empty((size, capacity), np.int32)
                count = np.empty((m, 1), np.int32)
                compiled = self._compile("encode", dtype, None, capacity)
                compiled.run(source, [val[:m], idx[:m], count], self._threads(), rows)
                most = int(count.max(initial=0))
                if most <= capacity:
                    break
                capacity = min(network.n_components, max(most, 2 * capacity))
            inside = np.arange(most)[None, :] < count
            val[:m, :most][~inside] = 0  # what lies beyond a row's entries means nothing
            self._check_overflow("pre-activations", val[:m, :most], count, start)
            yield val[:m, :most][inside], idx[:m, :most][inside], count[:, 0]

    def _csr(self, source: Source, dtype: np.dtype, k: int | None = None):
        """Codes of rows as a csr_array without stored zeros."""
        from scipy.sparse import csr_array

        network, m = self.network_, source.n_rows
        if self._ranked(k):
            val, idx = (to_host(part) for part in self._fixed(source, dtype, k))
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
        """Code of each row, scipy csr_array (N, n_components), in the host's memory also for rows on a GPU.

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
            network is None or type(X) is not np.ndarray or X.dtype.char not in CODES or X.ndim != 2
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
        val, idx = _pair(out, (m, width), dtype, X)
        count = np.empty((m, 1), np.int32)
        compiled.few(X, [val, idx, count])
        if count.min() < width or not np.isfinite(val).all():  # the ordinary way words the error
            return None
        return val, idx

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
        from ..stream import open_rows
        from .feed import as_fit_reads, names_of, without_names
        from .fingerprint import fingerprint

        k = self._check_k(k) if self._fitted() else None
        width = (k or self.network_.k) if self._ranked(k) else None
        known = {"n_components": self.network_.n_components, "model": fingerprint(self.encode), "k": width}
        source, model = open_rows(as_fit_reads(self, source), names=names_of(self)), without_names(self)
        return encode_to(lambda block: model.encode(block, k=k), path, source, **{**known, **options})

    def _code_and_reconstruction(self, X: Any) -> tuple[Any, np.ndarray]:
        """`encode` and `reconstruct`, encoding once where the code is enough to decode."""
        network = self._fitted()
        code = self.encode(X)
        if network.ragged or network.normalization == "layer" or network.skip:
            return code, self.reconstruct(X)
        return code, self.decode(*code)

    def _prefixed(self, n: int) -> Any:
        cache = self.__dict__.setdefault("_compiled", {})
        if ("prefix", n) not in cache:
            cache["prefix", n] = self.prefix(n)
        return cache["prefix", n]

    def _threshold_for(self, X: Any, l0: float) -> float:
        """The threshold that ``l0`` pre-activations a row of X exceed on average (those that are positive)."""
        network = self.network_
        source, dtype = self._rows(X)
        width = min(network.n_components, max(16, int(4 * l0)))
        while True:
            # as many rows, evenly spread, as there is memory for
            rows = np.unique(np.linspace(0, source.n_rows - 1, max(256, _CALIBRATED // width)).astype(np.int64))
            m = len(rows)
            plan = sparse_inference_plan(network, dtype, SPARSE_BATCH, part="encode", k=width, bf16=self._bf16)
            val, idx = np.empty((m, width), dtype), np.empty((m, width), np.int32)
            compiled = CompiledCode(self._backend(), plan, self._space(dtype))
            compiled.run(source, [val, idx, np.empty((m, 1), np.int32)], self._threads(), rows)
            flat = np.sort(val, axis=None)[::-1]
            rank = min(round(l0 * m), len(flat) - 1)
            theta = float(flat[rank])
            # a row all of whose values are above it may have more that were left out
            if width < network.n_components and (val > theta).all(axis=1).any():
                width = min(network.n_components, 2 * width)
                continue
            if theta > 0:
                # halfway to the last that is active, so that another way of rounding finds the same ones
                middle = theta + (flat[max(rank - 1, 0)] - flat[rank]) / 2
                return float(middle if middle < flat[max(rank - 1, 0)] else theta)
            raise ValueError(
                f"l0={l0} cannot be reached: a row of X has {np.count_nonzero(val > 0) / m:.1f} positive "
                "pre-activations on average; give a smaller l0"
            )


def _pair(out: Any, shape: tuple[int, int], dtype: np.dtype, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arrays for values and indices: the caller's, checked, or new ones."""
    if out is not None and (not isinstance(out, (tuple, list)) or len(out) != 2):
        raise TypeError("out must be a pair of arrays (values, indices)")
    val, idx = (None, None) if out is None else out
    val = checked_output("values of out", val, shape, dtype, rows)
    return val, checked_output("indices of out", idx, shape, np.dtype(np.int32), rows, val)
