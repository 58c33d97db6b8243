"""A classifier on the features of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if

from ..models.fitting import takes_batches
from ..models.pretraining import Pretrained
from ..models.ranks import together
from ..plan.build import inference_plan
from ..plan.plan import Plan, Source
from ..spec.classifier import classifier_network
from ..spec.network import Network
from .labels import (
    check_classes,
    check_labels,
    codes_of,
    described,
    encode_labels,
    one_hot,
    restored,
    stratified,
    weigh_classes,
)


class AutoencoderClassifier(ClassifierMixin, Pretrained):
    """An encoder with a softmax head: pretrained layer by layer without labels, then trained as a whole with them.

    With ``pretraining="denoising"`` this is the stacked denoising autoencoder of Vincent et al. (2010), with None a
    multilayer perceptron. `transform` gives the features, the outputs of the last hidden layer.

    Parameters
    ----------
    hidden_layer_sizes : ints
        Widths of the encoder's layers, from the input on; at least one.
    activation : name or option, such as ``fastae.LeakyReLU(0.2)`` or ``fastae.Maxout(pieces)``, or one per layer
    pretraining : None, "denoising" or ``fastae.DenoisingPretraining(…)``
        Greedy pretraining of the layers on the rows that ``fit`` trains on. ``partial_fit`` and a warm start have none.
    dropout : float or one per layer
        Rate on hidden layers in training with labels (pretraining has noise instead).
    normalization : None, "batch", "layer", ``fastae.BatchNorm(…)``, ``fastae.LayerNorm(…)``, or one per layer
    skip_connections : bool
        Every hidden layer as wide as its input adds that input to its output.
    noise : None, name or option, such as ``fastae.MaskingNoise(0.2)``
        Corrupts the input in training with labels too.
    input_transform : None or "log1p"
        What the encoder sees of X, before noise. For counts (X >= 0).
    missing : None, NaN or a number
        Marks entries of X that are unobserved: the encoder sees 0 in their place, and pretraining does not count
        them.
    penalties, constraints : sequences of options
        As for `fastae.Autoencoder`, the last hidden layer being the code. Penalties act in training with labels, those
        of ``pretraining`` in pretraining; constraints act in both.
    class_weight : None, "balanced" or dict from class to weight
        "balanced": all classes weigh the same in total (not for ``partial_fit``). Multiplied with ``sample_weight``.
        Relative to their mean over the rows of ``fit``, or over the classes in ``partial_fit``, which sees some rows.
    initializer, solver, learning_rate, batch_size, max_iter, tol, n_iter_no_change, shuffle, warm_start, random_state,
    backend, device, precision, n_jobs, callbacks, verbose :
        As for `fastae.Autoencoder`; ``callbacks`` are not called in pretraining.
    early_stopping, validation_fraction : bool, float
        Holds rows out, of every class in proportion, and puts the weights back that had the best accuracy on them. What
        ``tol``, callbacks and `fastae.ReduceOnPlateau` look at is their error rate, 1 − accuracy. They take no part in
        pretraining.

    Attributes
    ----------
    classes_ : sorted array of the labels
    weights_ : list of (W, b), the encoder's layers and the head; W (out, in)
    pretraining_losses_ : list per layer of the mean loss of each epoch of pretraining; None without
    loss_, loss_curve_ : float, list; mean log-loss plus penalties of each epoch of training with labels
    validation_scores_, best_validation_score_ : accuracy on held-out rows per epoch, and the best; None without
    norms_, n_iter_, n_features_in_, feature_names_in_, backend_, device_, n_parameters_, t_, seed_, plan_
        As for `fastae.Autoencoder`.

    Notes
    -----
    Vincent, Larochelle, Lajoie, Bengio, Manzagol (2010), "Stacked denoising autoencoders", JMLR 11. The same seed gives
    the same bits for any number of threads.
    """

    _perfect_score = 1.0
    _diagnosed = False  # the findings speak of codes and reconstructions
    _announced: np.ndarray | None = None  # classes given to the first partial_fit, during a call of it

    def __init__(
        self,
        hidden_layer_sizes=(256, 256),
        *,
        activation="relu",
        pretraining="denoising",
        dropout=0.0,
        normalization=None,
        skip_connections=False,
        noise=None,
        input_transform=None,
        missing=None,
        penalties=(),
        constraints=(),
        class_weight=None,
        initializer="auto",
        solver="adam",
        learning_rate=1e-3,
        batch_size="auto",
        max_iter=100,
        tol=1e-4,
        shuffle=True,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        warm_start=False,
        random_state=None,
        backend="auto",
        device="auto",
        precision="auto",
        n_jobs=None,
        callbacks=(),
        verbose=0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.pretraining = pretraining
        self.dropout = dropout
        self.normalization = normalization
        self.skip_connections = skip_connections
        self.noise = noise
        self.input_transform = input_transform
        self.missing = missing
        self.penalties = penalties
        self.constraints = constraints
        self.class_weight = class_weight
        self.initializer = initializer
        self.solver = solver
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state
        self.backend = backend
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.callbacks = callbacks
        self.verbose = verbose

    # ---- what differs from a model of its own input ---

    def _network(self, n_features: int) -> Network:
        return classifier_network(
            n_features,
            len(self.classes_),
            hidden_layer_sizes=self.hidden_layer_sizes,
            activation=self.activation,
            dropout=self.dropout,
            normalization=self.normalization,
            skip_connections=self.skip_connections,
            noise=self.noise,
            input_transform=self.input_transform,
            missing=self.missing,
            penalties=self.penalties,
            constraints=self.constraints,
            solver=self.solver,
        )

    def _targets(
        self, y: Any, weight: np.ndarray | None, n_rows: int, reset: bool
    ) -> tuple[tuple[Source, ...], np.ndarray | None]:
        labels = check_labels(y, n_rows, type(self).__name__)
        if self._announced is not None:
            self.classes_ = self._announced
        elif reset:
            check_classes(labels if weight is None else labels[weight > 0])
            self.classes_ = np.unique(labels)
        codes = encode_labels(labels, self.classes_)
        weight = weigh_classes(self.class_weight, self.classes_, codes, weight, self._backend(),
                               whole=self._announced is None)  # fmt: skip
        return (one_hot(codes, len(self.classes_)),), weight

    def _check_takes_blocks(self, begins: bool) -> None:
        raise TypeError(
            f"{type(self).__name__} takes rows and labels as arrays, but X comes in blocks; give an array, or each "
            "block with its labels to partial_fit"
        )

    def _held_out(self, order: np.ndarray, n_out: int, sources: tuple[Source, ...]) -> np.ndarray:
        return stratified(order, codes_of(sources[1]), n_out)

    def _validation(
        self, network: Network, dtype: np.dtype, sources: tuple[Source, ...], held_out: np.ndarray
    ) -> tuple[Plan, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        plan, codes = inference_plan(network, dtype, part="scores", bf16=self._bf16), codes_of(sources[1])[held_out]
        return plan, np.empty((len(held_out), len(self.classes_)), dtype), lambda z: z.argmax(axis=1) != codes

    # ---- scikit-learn's face ---

    @available_if(takes_batches)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One pass over X in batches, going on from the present weights, without pretraining.

        y : (N,), class of each row
        classes : all labels that will ever come, at the first call; later ones may repeat it
        See `fastae.Autoencoder.partial_fit` for the rest.
        """
        with together(self.backend):
            if isinstance(self.class_weight, str):
                raise ValueError(
                    f"class_weight={self.class_weight!r} needs all rows at once and cannot go with partial_fit; give "
                    "sample_weight, or a dict from class to weight"
                )
            first = "weights_" not in self.__dict__
            if classes is None and first:
                raise ValueError(
                    "classes must be given at the first call of partial_fit: all labels that will ever come"
                )
            known = None if classes is None else check_classes(classes)
            if known is not None and not first and not np.array_equal(known, self.classes_):
                raise ValueError(
                    f"classes={known.tolist()} are not those of the first call, {self.classes_.tolist()}; fit anew"
                )
            self._announced = known if first else self.classes_
            try:
                return super().partial_fit(X, y, sample_weight)
            finally:
                self.__dict__.pop("_announced", None)

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds: the head's outputs before the softmax (N, n_classes); with two classes second − first, (N,)."""
        z = self._scores(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, (N,), of the labels' dtype."""
        z = self._scores(X)
        return self.classes_[z.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes in the order of ``classes_``, (N, n_classes), float64 for float64 input, else
        float32.
        """
        return self._encode("reconstruct", X, self._fitted_network().target_width)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, (N, n_classes), without underflow."""
        z = self._scores(X)
        z -= z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    def _scores(self, X: Any) -> np.ndarray:
        return self._encode("scores", X, self._fitted_network().target_width)

    # ---- files ---

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, state = super()._get_model_state()
        return tensors, state | {"classes": described(self.classes_)}

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        self.classes_ = restored(state["classes"])
        super()._set_model_state(tensors, state)
