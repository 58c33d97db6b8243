"""What models that restore their input have over others."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from ..spec.heads import Heads
from ..validation import check_rows, check_target
from .base import DenseModel
from .inspection import Inspection


class Reconstruction(Inspection, DenseModel):
    """Base of estimators whose decoder gives back the input."""

    def reconstruct(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Reconstruction of each row, (N, p): through encoder, decoder and the output activation.

        Of a likelihood it is the mean. Entries that are missing in X are filled in.
        out : (N, p) to write to, or None
        """
        return self._encode("reconstruct", X, self._fitted_network().n_features, out)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Decoded rows (N, p) of codes X (N, n_components).

        Of a likelihood with size factors it is the mean relative to the row's own, as a code does not know that.
        """
        network = self._fitted_network()
        codes = row_checker(type(self).__name__)()
        source, dtype = check_rows(codes, X, reset=True, backend=self._backend(), precision=self.precision)
        if source.columns != network.n_components:
            raise ValueError(
                f"X has {source.columns} columns, codes of this model have n_components={network.n_components}; "
                "give what transform returns"
            )
        return self._run("decode", source, dtype, network.n_features)

    def distribution(self, X: Any) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        """Parameters of the distribution of X's entries: name → array (N, p); for `Heads` a list, one per head.

        ``"mean"``, and what else the likelihood has: ``"dispersion"``, ``"dropout"``.
        """
        network = self._fitted_network()
        shown = self._encode("distribution", X, network.layers[-1].n_out)
        heads = []
        for block in network.blocks:
            names = [output.name for output in block.loss._row.outputs] if block.loss.n_outputs > 1 else ["mean"]
            starts = [block.output + k * block.count for k in range(len(names))]
            heads.append({name: shown[:, i : i + block.count] for name, i in zip(names, starts, strict=True)})
        return heads if isinstance(network.loss, Heads) else heads[0]

    def head_losses(self, X: Any) -> np.ndarray:
        """Mean over rows of X of each head's loss without its weight, (heads,), float64; one number without `Heads`.

        Divided by the head's (observed) columns or not as ``reduction`` says. ValueError for rows that the losses are
        not for, as in ``fit``: negative counts, say.
        """
        return self._row_values("heads", X).mean(axis=0)

    def score_samples(self, X: Any) -> np.ndarray:
        """−(mean squared reconstruction error) of each row of X, (N,), float64; higher is better.

        Over the observed entries where ``missing`` marks others; 0 for a row without any.
        """
        return -self._row_values("error", X)[:, 0]

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples` over the rows of X. y : ignored"""
        return float(self.score_samples(X).mean())

    def _row_values(self, what: str, X: Any) -> np.ndarray:
        network = self._fitted_network()
        source, dtype = self._rows(X)
        if what == "heads":
            check_target(source, network)
        values = np.empty((source.n_rows, len(network.blocks) if what == "heads" else 1))
        self._compile(what, dtype).run(source, values, self._threads())
        return values


@cache
def row_checker(name: str) -> type:
    """Stands for the estimator of a class where it is not at hand or the rows are codes: messages name the class."""
    return type(name, (BaseEstimator,), {})
