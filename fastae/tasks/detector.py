"""Anomaly detection by reconstruction error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from ..models.autoencoder import Autoencoder
from ..models.base import seed_of
from ..models.ranks import together
from ..plan.plan import Source
from ..spec.options import number, unknown
from ..validation import check_rows
from . import residuals
from .residuals import ResidualScore
from .scaling import SPARSE, Scaling

WIDEST_MAHALANOBIS = 1024  # features; beyond, "auto" doesn't pay p² per row
_BLOCK = 2**19  # elements of a block of rows: a few float64 temporaries of it stay small beside X


def _block_rows(n_features: int) -> int:
    return min(8192, max(64, _BLOCK // n_features))


class AutoencoderDetector(OutlierMixin, BaseEstimator):
    """Finds anomalies: rows that an autoencoder trained on the same kind of data reconstructs badly.

    Parameters
    ----------
    contamination : "auto" or float in (0, 0.5]
        Where the threshold lies. A number is the fraction of training rows that are called outliers. ``"auto"`` puts
        it at (median + 3 · 1.4826 · MAD)³ of the cube roots of the training scores: three robust standard deviations
        out, as a cube root makes χ²-like scores nearly Gaussian. Of clean Gaussian data that is 0.13 % of the rows in
        expectation. The most abnormal training row is an outlier either way, and with it all rows that are as
        abnormal, unless half of the rows are.
    scoring : "auto", "mahalanobis", "standardized" or "plain"
        How a row's residual e (p,) becomes its anomaly score. ``"plain"``: Σ e² / p. ``"standardized"``: each
        feature's residual over its usual size, Σ ((e − ē) / s)² / p. ``"mahalanobis"``: correlations between residuals
        too, (e − ē)ᵀ Σ⁻¹ (e − ē) / p with the shrunk covariance of Ledoit and Wolf. ē, s and Σ are learnt from the
        90 % of the training rows that are reconstructed best, so that outliers among them don't hide themselves.
        ``"auto"`` is Mahalanobis up to 1,024 features, then standardized.
    scaling : "robust", "standard", "minmax", "maxabs" or None
        Scaling of the columns of X, learnt by fit. ``"robust"``: median, and the range from the 5 % to the 95 %
        quantile over 3.29 (a Gaussian's deviation). ``"standard"``: mean and deviation. ``"maxabs"`` and None keep
        zeros and are the two that take sparse X. A constant column is only centred.
    n_components : int or "auto"
        Width of the code; "auto" is the rounded square root of the number of features.
    hidden_layer_sizes, decoder_layer_sizes, activation, code_activation, loss, dropout, normalization,
    skip_connections, tied_weights, noise, penalties, constraints, initializer, solver, learning_rate, batch_size,
    max_iter, tol, n_iter_no_change, random_state, backend, device, precision, n_jobs, callbacks, verbose
        As in `Autoencoder`, with other defaults: one bounded layer (tanh), from whose range a far row cannot be
        reconstructed; the Huber loss, which outliers among the training rows pull at only weakly; batches of 256 and at
        most 30 epochs, so that rare rows aren't learnt by heart.

    Attributes
    ----------
    autoencoder_ : Autoencoder, fitted to the scaled rows
    decision_scores_ : (N,) float64, anomaly scores of the training rows; higher is more abnormal
    threshold_ : float, rows with a higher anomaly score are outliers
    labels_ : (N,) int64, 1 for the training rows that are outliers, else 0
    offset_ : float, −threshold_
    scaling_, residual_score_ : what was learnt about columns and residuals (arrays of p, p and at most p² numbers)
    scoring_, n_components_ : what "auto" became
    n_iter_ : int, epochs that were trained
    n_features_in_, feature_names_in_, backend_, device_

    Notes
    -----
    Two conventions meet here. scikit-learn's holds where the names are the same.

    ====================================  ==================================  =========================================
    what                                  scikit-learn                        PyOD
    ====================================  ==================================  =========================================
    scores of new rows                    ``score_samples``: higher is more   ``anomaly_scores(X)``: higher is more
                                          normal                              abnormal (PyOD's ``decision_function``)
    scores of training rows                                                   ``decision_scores_``: higher is more
                                                                              abnormal
    threshold                             ``offset_``; ``decision_function``  ``threshold_``; outliers are above it
                                          = score_samples − offset_,
                                          negative for outliers
    labels of new rows                    ``predict``: −1 outlier, 1 inlier   ``predict(X) == -1`` (PyOD: 1 outlier, 0)
    labels of training rows               ``fit_predict``                     ``labels_``: 1 outlier, 0 inlier
    ====================================  ==================================  =========================================

    The defaults were chosen among a few dozen settings by ROC-AUC on the ten sets that ``benchmarks/anomaly.py`` runs.

    When all training rows get the same score, nothing tells outliers apart; fit then warns and says why.

    Hawkins, He, Williams, Baxter, "Outlier detection using replicator neural networks" (2002); Aggarwal, "Outlier
    analysis" (2017), chapter 3. The same seed gives the same bits for any number of threads.
    """

    def __init__(
        self,
        contamination="auto",
        *,
        scoring="auto",
        scaling="robust",
        n_components="auto",
        hidden_layer_sizes=(),
        decoder_layer_sizes=None,
        activation="tanh",
        code_activation="auto",
        loss="huber",
        dropout=0.0,
        normalization=None,
        skip_connections=False,
        tied_weights=False,
        noise=None,
        penalties=(),
        constraints=(),
        initializer="auto",
        solver="adam",
        learning_rate=1e-3,
        batch_size=256,
        max_iter=30,
        tol=1e-4,
        n_iter_no_change=10,
        random_state=None,
        backend="auto",
        device="auto",
        precision="auto",
        n_jobs=None,
        callbacks=(),
        verbose=0,
    ):
        self.contamination = contamination
        self.scoring = scoring
        self.scaling = scaling
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.decoder_layer_sizes = decoder_layer_sizes
        self.activation = activation
        self.code_activation = code_activation
        self.loss = loss
        self.dropout = dropout
        self.normalization = normalization
        self.skip_connections = skip_connections
        self.tied_weights = tied_weights
        self.noise = noise
        self.penalties = penalties
        self.constraints = constraints
        self.initializer = initializer
        self.solver = solver
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.backend = backend
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.callbacks = callbacks
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.scaling in SPARSE
        return tags

    # ---- fitting ---

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learns what usual rows look like, from rows of which a few may be anomalous.

        X : array or frame (N, p); sparse with scaling "maxabs" or None
        y : ignored
        Raises NonFiniteLossError when the loss becomes NaN or infinite, ValueError for input or parameters that don't
        fit; the estimator then stays as it was. Warns when all rows get the same score.
        """
        before = dict(self.__dict__)
        try:
            with together(self.backend):
                source, dtype = self._fit(X)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if np.ptp(self.decision_scores_) <= 1e-6 * self.decision_scores_.max():
            warnings.warn(self._why_constant(source, dtype), UserWarning, stacklevel=2)
        return self

    def _fit(self, X: Any) -> tuple[Source, np.dtype]:
        contamination = self.contamination
        if not (isinstance(contamination, str) and contamination == "auto"):
            if isinstance(contamination, str):
                raise ValueError(f"contamination={contamination!r} must be 'auto' or a number in (0, 0.5]")
            contamination = number("contamination", contamination, 0.0, 0.5, "right")
        if self.scoring not in ("auto", *residuals.SCORINGS):
            raise unknown("scoring", self.scoring, ("auto", *residuals.SCORINGS))
        self.autoencoder_ = model = self._autoencoder(seed_of(self.random_state))
        source, dtype = self._check(X, model, reset=True)
        p = source.columns
        auto = "mahalanobis" if p <= WIDEST_MAHALANOBIS else "standardized"
        self.scoring_ = auto if self.scoring == "auto" else self.scoring
        self.n_components_ = model.n_components = self._code_width(p)
        self.scaling_ = Scaling.learn(self.scaling, source)
        scaled = self.scaling_.whole(source, dtype, _block_rows(p))
        model.fit(scaled)
        self.n_iter_ = model.n_iter_
        self.backend_, self.device_ = model.backend_, model.device_

        kept = None
        if self.scoring_ != "plain":
            errors = -model.score_samples(scaled)
            kept = np.flatnonzero(errors <= np.quantile(errors, residuals.KEPT))
        del scaled
        self.residual_score_ = residuals.learn(
            self.scoring_, lambda: self._residuals(source, dtype, kept), p, model._backend(), model._threads()
        )
        self.decision_scores_ = self._scores(source, dtype)
        if contamination == "auto":
            self.threshold_ = residuals.tail_threshold(self.decision_scores_)
        else:
            quantile = float(np.quantile(self.decision_scores_, 1.0 - contamination))
            self.threshold_ = residuals.below_highest(quantile, self.decision_scores_)
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
        return source, dtype

    def _code_width(self, n_features: int) -> Any:
        if isinstance(self.n_components, str):
            if self.n_components != "auto":
                raise ValueError(f"n_components={self.n_components!r} must be 'auto' or a positive integer")
            return max(1, round(n_features**0.5))
        return self.n_components

    def _autoencoder(self, seed: int) -> Autoencoder:
        own = ("contamination", "scoring", "scaling", "n_components", "random_state")
        parameters = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        return Autoencoder(random_state=seed, **parameters)

    def _check(self, X: Any, model: Autoencoder, *, reset: bool) -> tuple[Source, np.dtype]:
        if not isinstance(X, np.ndarray) and self.scaling not in SPARSE and hasattr(X, "tocsr"):
            raise ValueError(
                f"X is sparse and scaling={self.scaling!r} would make it dense; use scaling='maxabs' or None, or give "
                "X.toarray()"
            )
        return check_rows(self, X, reset=reset, backend=model._backend(), precision=self.precision)

    def _why_constant(self, source: Source, dtype: np.dtype) -> str:
        n, value = source.n_rows, float(self.decision_scores_[0])
        first = self.scaling_.rows(source, slice(0, 1), dtype)
        if n <= 2:
            why = "one row or two look alike from their own middle; fit more rows"
        elif all((scaled == first).all() for scaled, _ in self._residuals(source, dtype, None)):
            why = "the rows are all alike; check where X comes from"
        else:
            why = "the network reconstructs them all equally well; lower n_components, or use another scoring"
        return f"all {n} training rows have the same anomaly score, {value:g}, so none is called an outlier: {why}"

    # ---- scores ---

    def _residuals(
        self, source: Source, dtype: np.dtype, rows: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(scaled rows, x̂ − x) of all rows or of those in ``rows``, block by block."""
        n = source.n_rows if rows is None else len(rows)
        step = _block_rows(source.columns)
        for start in range(0, n, step):
            some: Any = slice(start, start + step)
            scaled = self.scaling_.rows(source, some if rows is None else rows[some], dtype)
            residual = self.autoencoder_.reconstruct(scaled)
            residual -= scaled
            yield scaled, residual

    def _scores(self, source: Source, dtype: np.dtype) -> np.ndarray:
        model, scores, start = self.autoencoder_, np.empty(source.n_rows), 0
        backend, n_threads = model._backend(), model._threads()
        with np.errstate(over="ignore", invalid="ignore"):
            for _, residual in self._residuals(source, dtype, None):
                scores[start : start + len(residual)] = self.residual_score_(residual, backend, n_threads)
                start += len(residual)
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(
                f"the anomaly score of row {row} is not finite, its values are too large for scaling={self.scaling!r}; "
                "use scaling='robust' or 'standard'"
            )
        return scores

    def anomaly_scores(self, X: Any) -> np.ndarray:
        """Anomaly score of each row, (N,) float64, ≥ 0; higher is more abnormal (PyOD's direction)."""
        check_is_fitted(self, "threshold_")
        model = self.autoencoder_
        # the fitted network runs where the detector's parameters say now
        model.backend, model.device, model.precision, model.n_jobs = (
            self.backend, self.device, self.precision, self.n_jobs)  # fmt: skip
        source, dtype = self._check(X, model, reset=False)
        return self._scores(source, dtype)

    def score_samples(self, X: Any) -> np.ndarray:
        """−(anomaly score) of each row, (N,) float64; higher is more normal."""
        return -self.anomaly_scores(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples(X) − offset_, (N,) float64: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """−1 for outliers, 1 for inliers, (N,) int64."""
        return np.where(self.anomaly_scores(X) > self.threshold_, -1, 1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fits and labels the training rows: −1 for outliers, 1 for inliers, (N,) int64. X, y: as of `fit`."""
        return np.where(self.fit(X).labels_ == 1, -1, 1)

    # ---- files ---

    def save(self, path: Any) -> None:
        """Writes the fitted detector to one .safetensors file, atomically; `fastae.load` reads it.

        path : of the file, str or PathLike
        """
        from ..io.model_file import save_estimator

        check_is_fitted(self, "threshold_")
        save_estimator(self, path)

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Tensors and JSON-able state for the model file."""
        self._check_unchanged()
        inner, state = self.autoencoder_._get_model_state()
        tensors = {f"autoencoder.{name}": tensor for name, tensor in inner.items()}
        learnt = {
            "center": self.scaling_.center, "scale": self.scaling_.scale, "mean": self.residual_score_.mean,
            "whitening": self.residual_score_.whitening, "decision_scores": self.decision_scores_,
        }  # fmt: skip
        tensors |= {name: array for name, array in learnt.items() if array is not None}
        return tensors, {
            "autoencoder": state,
            "scoring": self.scoring_,
            "n_components": self.n_components_,
            "threshold": self.threshold_,
            "feature_names": list(getattr(self, "feature_names_in_", [])) or None,
        }

    def _check_unchanged(self) -> None:
        """A file holds the detector's parameters, from which load makes the autoencoder that the arrays belong to."""
        described = self._autoencoder(self.autoencoder_.seed_)
        described.n_components, described.n_features_in_ = self.n_components_, self.n_features_in_
        described.network_ = self.autoencoder_.network_
        described._check_unchanged()
        if (self.scaling is None) != (self.scaling_.scale is None):
            raise ValueError(
                f"scaling={self.scaling!r} was changed after fit; undo the change, or call fit, before saving"
            )

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        p = int(state["autoencoder"]["n_features"])
        self.n_components_, self.scoring_ = int(state["n_components"]), str(state["scoring"])
        self.autoencoder_ = self._autoencoder(int(state["autoencoder"]["seed"]))
        self.autoencoder_.n_components = self.n_components_
        prefix = "autoencoder."
        inner = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        self.autoencoder_._set_model_state(inner, state["autoencoder"])
        shapes: dict[str, tuple[int, ...]] = {"center": (p,), "scale": (p,), "mean": (p,)}
        shapes["whitening"] = (p, p) if self.scoring_ == "mahalanobis" else (p,)
        wanted = [] if self.scaling is None else ["center", "scale"]
        wanted += [] if self.scoring_ == "plain" else ["mean", "whitening"]
        for name in wanted:
            if tensors[name].shape != shapes[name]:
                raise ValueError(f"{name} has shape {tensors[name].shape}; wanted {shapes[name]}")
        self.scaling_ = Scaling(tensors.get("center"), tensors.get("scale"))
        self.residual_score_ = ResidualScore(tensors.get("mean"), tensors.get("whitening"))
        self.decision_scores_ = tensors["decision_scores"]
        self.threshold_ = float(state["threshold"])
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
        self.n_features_in_, self.n_iter_ = p, self.autoencoder_.n_iter_
        if state["feature_names"]:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        self.backend_, self.device_ = self.autoencoder_.backend_, self.autoencoder_.device_
