"""The graph between rows that a Laplacian penalty is over."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import HostRows, on_device
from ..plan.plan import Source
from ..spec import options
from ..spec.options import number


def source_rows(source: Source) -> Any:
    """The rows of a source as an array or CSR matrix; those on a GPU are copied as they are asked for."""
    if source.indptr is None:
        return HostRows(source.data) if on_device(source.data) else source.data
    from scipy.sparse import csr_array

    return csr_array((source.data, source.indices, source.indptr), shape=(source.n_rows, source.columns))


def neighbour_graph(option: options.Laplacian, source: Source, held_out: np.ndarray | None = None) -> Source:
    """The graph as a CSR source of float64 weights between the rows of ``source``; edges to held-out rows are left out.

    Raises ValueError for a matrix that is not (N, N), not symmetric, or has weights that are negative or not finite.
    """
    from scipy.sparse import csr_array, diags_array

    n = source.n_rows
    if option.graph is None:
        raise ValueError("Laplacian has graph=None (a matrix is not stored in model files); give it the graph again")
    if isinstance(option.graph, (int, np.integer)):
        from sklearn.neighbors import kneighbors_graph

        number("Laplacian.graph (neighbours)", option.graph, 1, n - 1, integer=True)
        rows = source_rows(source)
        rows = rows if source.indptr is not None else np.asarray(rows, dtype=np.float64)
        nearest = csr_array(kneighbors_graph(rows, int(option.graph)))
        graph = nearest.maximum(nearest.T).tocsr()
    else:
        graph = csr_array(option.graph, dtype=np.float64)
        if graph.shape != (n, n):
            raise ValueError(f"Laplacian's graph has shape {graph.shape}; wanted {(n, n)}: a row and column per sample")
        graph.sum_duplicates()
        if graph.nnz and (not np.isfinite(graph.data).all() or graph.data.min() < 0):
            raise ValueError("Laplacian's graph must have finite weights >= 0")
        if (abs(graph - graph.T) > 1e-8 * abs(graph).max()).nnz:
            raise ValueError("Laplacian's graph is not symmetric; give (S + S.T) / 2")
    if held_out is not None:
        kept = np.ones(n)
        kept[held_out] = 0.0
        graph = csr_array(graph @ diags_array(kept))
    graph.eliminate_zeros()
    graph.sort_indices()
    return Source(
        np.ascontiguousarray(graph.data, dtype=np.float64),
        np.ascontiguousarray(graph.indptr, dtype=np.int64),
        np.ascontiguousarray(graph.indices, dtype=np.int32),
        n,
    )
