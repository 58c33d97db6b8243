"""What models that restore their input have over others."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ..validation import check_rows
from .base import DenseModel


class Reconstruction(DenseModel):
    """Base of estimators whose decoder gives back the input."""

    def reconstruct(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Reconstruction of each row, (N, p): through encoder, decoder and the output activation."""
        return self._encode("reconstruct", X, self._fitted_network().n_features, out)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Decoded rows (N, p) of codes X (N, n_components)."""
        network = self._fitted_network()
        codes = _code_checker(type(self).__name__)()
        source, dtype = check_rows(codes, X, reset=True, backend=self._backend(), precision=self.precision)
        if source.columns != network.n_components:
            raise ValueError(
                f"X has {source.columns} columns, codes of this model have n_components={network.n_components}; "
                "give what transform returns"
            )
        return self._run("decode", source, dtype, network.n_features)

    def score_samples(self, X: Any) -> np.ndarray:
        """−(mean squared reconstruction error) of each row, (N,), float64; higher is better."""
        return -self._row_values("error", X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def _row_values(self, what: str, X: Any) -> np.ndarray:
        check_is_fitted(self, "weights_")
        source, dtype = check_rows(self, X, reset=False, backend=self._backend(), precision=self.precision)
        values = np.empty((source.n_rows, 1))
        self._compile(what, dtype).run(source, values, self._threads())
        return values[:, 0]


@cache
def _code_checker(name: str) -> type:
    """Stands for the estimator of a class where the rows to check are codes, so that messages name the class."""
    return type(name, (BaseEstimator,), {})
