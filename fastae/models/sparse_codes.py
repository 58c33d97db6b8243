"""Codes to rows: the decoder of a fitted sparse autoencoder, reconstructions and scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import asarray, namespace, real_of
from ..ops._call import output as checked_output
from ..plan.plan import Source
from ..validation import check_rows
from .reconstruction import row_checker
from .sparse_encoding import RAGGED_ROWS, SparseEncoding


class SparseCodes(SparseEncoding):
    """Base of `SparseAutoencoder`: everything after fitting."""

    def decode(self, values: Any, indices: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Rows (N, q) of codes: values (N, s) and indices (N, s), as `encode` gives them.

        What a skip connection adds to reconstructions is a map of the input and not in them.
        out : (N, q) to write to, of values' dtype, or None
        """
        network = self._fitted()
        values, indices = asarray(values), asarray(indices)
        if values.ndim != 2 or values.shape != indices.shape or indices.dtype.kind not in "iu":
            raise ValueError(
                f"values has shape {values.shape}, indices has {indices.shape} and dtype {indices.dtype}; wanted both "
                "(N, s), indices integer"
            )
        self._check_decodable()
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < network.n_components:
            raise ValueError(f"indices has values outside 0..{network.n_components - 1}")
        dtype = real_of(values.dtype)
        m, s = values.shape
        out = checked_output("out", out, (m, network.n_targets), dtype, values, indices)
        xp = namespace(values, indices)
        val, idx = xp.ascontiguousarray(values, dtype), xp.ascontiguousarray(indices, np.int32)
        return self._decoded(val, idx, np.full((m, 1), s, np.int32), dtype, out)

    def _check_decodable(self) -> None:
        if self.network_.normalization == "layer":
            raise ValueError(
                "normalization='layer' restores each row's own mean and deviation, which codes don't tell; use "
                "reconstruct"
            )

    def _decoded(
        self, val: np.ndarray, idx: np.ndarray, count: np.ndarray, dtype: np.dtype, out: np.ndarray
    ) -> np.ndarray:
        network, (m, s) = self.network_, val.shape
        if m and s:
            # a capacity for the ragged kinds, k for the others: either is the width of the code
            ranked = {"k": s} if not network.ragged else {"k": None, "capacity": s}
            compiled = self._compile("decode", dtype, **ranked)
            compiled.run(Source(np.empty((m, 0), np.float32)), [val, idx, count, out], self._threads())
        elif m:
            out[...] = namespace(out).asarray(self._arrays["decoder_bias"] / network.input_scale)
        return out

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows (N, q) of codes X (N, n_components), dense or sparse; a skip connection adds nothing, as in `decode`."""
        from scipy.sparse import csr_array, issparse

        network = self._fitted()
        self._check_decodable()
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
        for start in range(0, rows.shape[0], RAGGED_ROWS):
            part = slice(start, min(start + RAGGED_ROWS, rows.shape[0]))
            c = count[part]
            width = int(c.max(initial=0))
            inside = np.arange(width)[None, :] < c[:, None]
            span = slice(rows.indptr[part.start], rows.indptr[part.stop])
            val, idx = np.zeros(inside.shape, dtype), np.zeros(inside.shape, np.int32)
            val[inside], idx[inside] = rows.data[span], rows.indices[span]
            self._decoded(val, idx, c[:, None].copy(), dtype, out[part])
        return out

    def reconstruct(self, X: Any, *, k: int | None = None, prefix: int | None = None, out: Any = None) -> np.ndarray:
        """Reconstruction of each row (of a transcoder: its target), (N, q).

        k, prefix : as of `encode`; out : (N, q) to write to, or None
        """
        if prefix is not None:
            return self._prefixed(prefix).reconstruct(X, k=k, out=out)
        network = self._fitted()
        k = self._check_k(k)
        source, dtype = self._rows(X)
        out = checked_output("out", out, (source.n_rows, network.n_targets), dtype, source.data)
        capacity = None if self._ranked(k) else network.n_components
        k = k if k is not None else None if network.ragged else network.k
        self._compile("reconstruct", dtype, k, capacity).run(source, [out], self._threads())
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
            compiled.run(source, [made], self._threads(), rows)
            self._check_overflow("reconstructions", made, first=start)
            error = dense_rows(source if target is None else target, rows) - made
            scores[rows] = -np.einsum("ij,ij->i", error, error) / network.n_targets
        return scores

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`. y : targets of a transcoder; others ignore it"""
        self._fitted()
        return float(self.score_samples(X, y if self.network_.transcoder else None).mean())
