"""Looking at a fitted model: diagnosis, comparison to PCA, HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import html

if TYPE_CHECKING:
    from ..diagnostics.pca import PCAComparison
    from ..diagnostics.report import Diagnosis


class Inspection:
    """What estimators that restore their input say about themselves."""

    def diagnose(self, X: Any) -> Diagnosis:
        """What may be wrong with the fitted model, seen on at most 4,096 rows, evenly spread over X.

        X : array, sparse matrix or frame (N, p), N >= 2
        returns : `fastae.Diagnosis`: the outputs of each layer (range, dead units, saturation), the range of the output
            beside that of the data, the explained variance, and findings with their remedies
        """
        from ..diagnostics import diagnose

        return diagnose(self, X)

    def compare_to_pca(self, X: Any, X_test: Any = None) -> PCAComparison:
        """Squared reconstruction error per feature beside that of PCA with a code of the same size.

        X : array, sparse matrix or frame (N, p); PCA is fitted on these rows: give those that the model was fitted on
        X_test : rows that both are judged on; None for X itself
        returns : `fastae.PCAComparison`

        PCA is the best linear autoencoder in squared error (Baldi & Hornik 1989), so a model that loses to it by more
        than 1 % brings a `fastae.WorseThanPCAWarning` that says what usually helps. Works in blocks of rows: the
        memory does not grow with N.
        """
        from ..diagnostics.pca import compare_to_pca

        return compare_to_pca(self, X, X_test)


class ShownAsHTML:
    """scikit-learn's diagram, then the fitted layers; ``set_config(display="text")`` turns both off.

    Mixed in before scikit-learn's BaseEstimator.
    """

    def _html_repr(self) -> str:
        from sklearn.utils import estimator_html_repr

        return estimator_html_repr(self) + (html.model(self) if hasattr(self, "weights_") else "")

    def _repr_html_inner(self) -> str:
        return self._html_repr()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        if "text/html" in bundle:
            bundle["text/html"] = self._html_repr()
        return bundle
