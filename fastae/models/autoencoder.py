"""The dense autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .. import training
from ..initializers import from_arrays, initial_weights
from ..plan import schema
from ..plan.build import evaluation_plan, training_plan
from ..plan.plan import Source
from ..schedules import schedule
from ..spec import options
from ..spec.network import Network, dense_network, target_range
from ..spec.options import number
from ..validation import check_rows, check_target, check_weight
from .base import DenseModel, _Compiled, seed_of


class Autoencoder(DenseModel):
    """A dense autoencoder of any depth, trained by minibatches on compiled kernels.

    Parameters
    ----------
    n_components : int
        Width of the code.
    hidden_layer_sizes : ints
        Widths of the encoder's hidden layers, from the input to the code.
    decoder_layer_sizes : ints or None
        Widths of the decoder's hidden layers; None mirrors the encoder.
    activation, code_activation, output_activation : name or option, such as ``fastae.LeakyReLU(0.2)``
        ``code_activation="auto"`` is identity when there are hidden layers, else ``activation``. ``"softmax"`` is
        allowed for the output.
    loss : name or option
        ``"squared_error"``, ``"binary_cross_entropy"`` (X in [0, 1]; the output is a sigmoid), ``"huber"``,
        ``"absolute"``, ``"poisson"`` (the output is the rate), ``"multinomial"``, ``"categorical_cross_entropy"``.
    reduction : "mean" or "sum"
        Mean over rows and features, or sum over features and mean over rows.
    dropout : float or one per hidden layer
        Rate on hidden layers, not on the code or the output.
    noise : None, name or option, such as ``fastae.MaskingNoise(0.3)``
        Corrupts the input in training; the target stays clean.
    penalties, constraints : sequences of options
        ``fastae.L1(1e-4)``, ``L2``, ``ElasticNet`` (weights), ``KLSparsity``, ``ActivityL1`` (code); ``MaxNorm``,
        ``WeightRange``, ``NonNegative``.
    initializer : name, option, or list of (W, b) with W (out, in)
        ``"auto"`` chooses by activation: He for the ReLU family, LeCun for SELU, else Xavier, all uniform.
    solver : name or option, such as ``fastae.Adam(beta1=0.9, clip_norm=1.0)``
    learning_rate : float or schedule, such as ``fastae.Cosine(1e-3)``
    batch_size : int or "auto"
        min(256, rows) for "auto".
    max_iter : int
        Epochs.
    tol, n_iter_no_change : float, int
        Training stops when the loss (of the held-out rows with ``early_stopping``) has not improved by more than
        ``tol`` times its size for ``n_iter_no_change`` epochs.
    shuffle : bool
    early_stopping, validation_fraction : bool, float
        Holds rows out and puts the weights back that were best on them.
    warm_start : bool
        A second ``fit`` goes on from the first one's weights.
    random_state : int, RandomState, Generator or None
    backend : "auto", "native", "numba" or "reference"
    device : "auto" or "cpu"
    precision : "auto", "float32" or "float64"
        "auto" computes float64 input in float64 and everything else in float32.
    n_jobs : int or None
        Threads; None takes FASTAE_NUM_THREADS, OMP_NUM_THREADS, or all cores.
    callbacks : sequence of functions of `fastae.EpochInfo`
        Called after each epoch; one that returns True ends training.
    verbose : int
        1 shows a progress bar.

    Attributes
    ----------
    weights_ : list of (W, b), encoder's layers first; W (out, in)
    n_iter_ : int, epochs of the last fit
    loss_, loss_curve_ : float, list; mean objective of each epoch
    validation_scores_, best_validation_score_ : −(loss of the held-out rows) per epoch, and the best; None without
    n_features_in_, feature_names_in_, backend_, device_, n_parameters_, t_ (steps done), seed_, plan_

    Notes
    -----
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), chapter 14; Vincent et al. (2010) for denoising; Ng (2011)
    for KL sparsity. The same seed gives the same bits for any number of threads.
    """

    def __init__(
        self,
        n_components=32,
        *,
        hidden_layer_sizes=(),
        decoder_layer_sizes=None,
        activation="relu",
        code_activation="auto",
        output_activation="identity",
        loss="squared_error",
        reduction="mean",
        dropout=0.0,
        noise=None,
        penalties=(),
        constraints=(),
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
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.decoder_layer_sizes = decoder_layer_sizes
        self.activation = activation
        self.code_activation = code_activation
        self.output_activation = output_activation
        self.loss = loss
        self.reduction = reduction
        self.dropout = dropout
        self.noise = noise
        self.penalties = penalties
        self.constraints = constraints
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

    # ---- what the parameters mean ---

    def _network(self, n_features: int) -> Network:
        return dense_network(
            n_features,
            n_components=self.n_components,
            hidden_layer_sizes=self.hidden_layer_sizes,
            decoder_layer_sizes=self.decoder_layer_sizes,
            activation=self.activation,
            code_activation=self.code_activation,
            output_activation=self.output_activation,
            loss=self.loss,
            reduction=self.reduction,
            dropout=self.dropout,
            noise=self.noise,
            penalties=self.penalties,
            constraints=self.constraints,
            solver=self.solver,
        )

    def _settings(self, network: Network, seed: int, epochs: int) -> training.Settings:
        callbacks = (self.callbacks,) if callable(self.callbacks) else tuple(self.callbacks)
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"callbacks has {callback!r}; give functions that take an EpochInfo")
        number("validation_fraction", self.validation_fraction, 0.0, 1.0, "neither")
        return training.Settings(
            schedule=schedule(self.learning_rate),
            rule=network.solver,
            max_iter=epochs,
            seed=seed,
            n_threads=self._threads(),
            tol=number("tol", self.tol, 0.0, float("inf"), "both"),
            n_iter_no_change=number("n_iter_no_change", self.n_iter_no_change, 1, float("inf"), integer=True),
            shuffle=bool(self.shuffle),
            callbacks=callbacks,
            verbose=self.verbose,
        )

    def _batch(self, n_rows: int) -> int:
        if isinstance(self.batch_size, str):
            if self.batch_size != "auto":
                raise ValueError(f"batch_size={self.batch_size!r} must be 'auto' or a positive integer")
            return min(256, n_rows)
        return min(number("batch_size", self.batch_size, 1, 2**31 - 1, integer=True), n_rows)

    # ---- fitting ---

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Autoencoder:
        """Trains on the rows of X.

        X : array, sparse matrix or frame (N, p)
        y : ignored
        sample_weight : (N,), weight of each row's loss; only ratios matter
        Raises NonFiniteLossError when the loss becomes NaN or infinite; the last good weights are kept.
        """
        warm = self.warm_start and hasattr(self, "weights_")
        source, dtype, network = self._prepare(X, reset=not warm, sample_weight=sample_weight)
        if not warm:
            self.seed_ = seed_of(self.random_state)
        epochs = number("max_iter", self.max_iter, 1, 2**31, integer=True)
        settings = self._settings(network, self.seed_, epochs)
        rows, held_out = self._split(source.n_rows, settings)
        n_rows = source.n_rows if rows is None else len(rows)
        backend = self._backend()
        state = self._begin(backend, network, source, dtype, n_rows, warm)
        validate = None if held_out is None else self._validator(backend, network, dtype, source, held_out, state)
        history = training.History()
        before = state.epochs
        try:
            training.fit(backend, self.plan_, state, (source,), settings, rows=rows, validate=validate, model=self,
                         history=history)  # fmt: skip
        finally:  # also after Ctrl-C or a loss that is not finite: the model has its last good weights
            self._finish(backend, network, state, history, state.epochs - before)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Autoencoder:
        """One pass over X in batches, going on from the present weights and optimiser state.

        A batch is ``batch_size`` rows, so there is one step when X has no more. Rows are shuffled by (seed, number of
        the call).
        """
        first = not hasattr(self, "weights_")
        source, dtype, network = self._prepare(X, reset=first, sample_weight=sample_weight)
        if first:
            self.seed_ = seed_of(self.random_state)
        backend = self._backend()
        settings = self._settings(network, self.seed_, 1)
        state = self._begin(backend, network, source, dtype, source.n_rows, not first)
        history = training.History(losses=list(getattr(self, "loss_curve_", [])))
        order = training.epoch_order(backend, settings, state.epochs, None, source.n_rows)
        try:
            loss = training.run_epoch(
                backend, self.plan_, backend.compile(self.plan_), state, (source,), order, source.n_rows, settings
            )
            history.losses.append(loss)
        finally:
            self._finish(backend, network, state, history, state.epochs)
        return self

    def _prepare(self, X: Any, *, reset: bool, sample_weight: Any):
        """Checked rows, the dtype to compute in, and the network; raises before anything changes."""
        backend = self._backend()
        source, dtype = check_rows(self, X, reset=reset, backend=backend, precision=self.precision)
        width = source.columns or source.data.shape[1]
        network = self._network(width)
        if not reset and network.layers != self.network_.layers:
            raise ValueError(
                "the layers differ from those that were fitted; undo the change of parameters, or set "
                "warm_start=False and call fit"
            )
        if not reset:
            dtype = self._state.dtype if self._state is not None else dtype
        low, high = target_range(network)
        categorical = isinstance(network.loss, options.CategoricalCrossEntropy)
        check_target(source, low, high, network.loss.name, sums_to_one=categorical)
        weight = check_weight(sample_weight, source.n_rows)
        source = Source(source.data, source.indptr, source.indices, source.columns, weight)
        return source, dtype, network

    def _split(self, n_rows: int, settings: training.Settings):
        """Rows to train on and rows held out; (None, None) for all and none."""
        if not self.early_stopping:
            return None, None
        n_out = int(np.ceil(self.validation_fraction * n_rows))
        if n_out >= n_rows:
            raise ValueError(
                f"early_stopping needs rows to hold out and rows to train on; got n_samples={n_rows} with "
                f"validation_fraction={self.validation_fraction}; give more rows or early_stopping=False"
            )
        order = self._backend().permutation(settings.seed, training.SPLIT_EPOCH, n_rows)
        return np.sort(order[n_out:]), np.sort(order[:n_out])

    def _begin(self, backend, network: Network, source: Source, dtype, n_rows: int, warm: bool) -> training.State:
        """Memory with the weights to start from; sets plan_."""
        self.plan_ = training_plan(network, dtype, self._batch(n_rows), weighted=source.weight is not None)
        old = getattr(self, "_state", None) if warm else None
        spaces = self.plan_.allocate()
        if warm:
            weights = self.weights_
        else:
            sample = _rows_of(source, 4096) if _is_pca(self.initializer) else None
            weights = initial_weights(self.initializer, network, self.seed_, sample)
        for i, (w, b) in enumerate(weights):
            self.plan_.view(spaces, f"w{i}")[...] = w
            self.plan_.view(spaces, f"b{i}")[...] = b
        if old is None:
            return training.State(spaces)
        if old.optimizer is not None and old.optimizer.nbytes == spaces[schema.STATE].nbytes:
            spaces[schema.STATE][:] = old.optimizer
            return training.State(spaces, old.steps, old.epochs, old.learning_rate)
        return training.State(spaces, 0, old.epochs)  # another rule or precision: the optimiser starts anew

    def _validator(self, backend, network: Network, dtype, source: Source, held_out: np.ndarray, state):
        values = np.empty((len(held_out), 1))
        plan = evaluation_plan(network, dtype)
        compiled = _Compiled(backend, plan, [])
        weight = None if source.weight is None else source.weight[held_out]

        def validate() -> float:
            theta = compiled.spaces[schema.THETA]
            theta[:] = state.spaces[schema.THETA][: len(theta)]
            compiled.packed = False
            compiled.run(source, values, self._threads(), held_out)
            return float(np.average(values[:, 0], weights=weight))

        return validate

    def _finish(self, backend, network: Network, state: training.State, history: training.History, epochs: int) -> None:
        """Fitted attributes from the state."""
        self._forget_compiled()
        self.network_ = network
        plan = self.plan_
        self.weights_ = [
            (plan.view(state.spaces, f"w{i}").copy(), plan.view(state.spaces, f"b{i}")[0].copy())
            for i in range(len(network.layers))
        ]
        self._state: _Optimizer | None = _Optimizer(
            state.spaces[schema.STATE].copy(), state.steps, state.epochs, state.learning_rate, plan.dtype
        )
        self.n_iter_ = epochs
        self.t_ = state.steps
        self.loss_curve_ = history.losses
        self.loss_ = history.losses[-1] if history.losses else np.nan
        self.validation_scores_ = [-v for v in history.validation_losses] if self.early_stopping else None
        self.best_validation_score_ = -history.best_validation if self.early_stopping else None
        self.n_parameters_ = sum(w.size + b.size for w, b in self.weights_)
        self.backend_ = backend.name
        self.device_ = "cpu"

    # ---- other ways to a fitted model ---

    @classmethod
    def from_arrays(cls, encoder: Any, decoder: Any, **parameters: Any) -> Autoencoder:
        """A fitted model from weights that exist already.

        encoder, decoder : lists of (W, b), W (out, in), b (out,) or None; copied, never altered
        parameters : of the estimator; the layer sizes are taken from the arrays
        """
        encoder, decoder = list(encoder), list(decoder)
        if not encoder or not decoder:
            raise ValueError("encoder and decoder must each have at least one pair (W, b)")
        pairs = [(np.asarray(w), b) for w, b in encoder + decoder]
        for i, (w, _) in enumerate(pairs):
            if w.ndim != 2:
                raise ValueError(f"layer {i}: W has shape {w.shape}; wanted (out, in)")
        model = cls(
            n_components=encoder[-1][0].shape[0],
            hidden_layer_sizes=tuple(int(np.asarray(w).shape[0]) for w, _ in encoder[:-1]),
            decoder_layer_sizes=tuple(int(np.asarray(w).shape[0]) for w, _ in decoder[:-1]),
            **parameters,
        )
        network = model._network(pairs[0][0].shape[1])
        weights = from_arrays(pairs, network)
        double = all(w.dtype == np.float64 for w, _ in pairs)
        model._restore(
            network, [(w, b) if double else (w.astype(np.float32), b.astype(np.float32)) for w, b in weights]
        )
        return model

    def _restore(self, network: Network, weights: list) -> None:
        """Fitted attributes of a model that was not trained here."""
        self.network_ = network
        self.weights_ = weights
        self.n_features_in_ = network.n_features
        self.n_parameters_ = sum(w.size + b.size for w, b in weights)
        self.seed_ = seed_of(self.random_state)
        self.n_iter_ = self.t_ = 0
        self.loss_curve_, self.loss_ = [], np.nan
        self.validation_scores_ = self.best_validation_score_ = None
        self.backend_, self.device_ = self._backend().name, "cpu"
        self._state = None
        self._forget_compiled()

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Tensors and JSON-able state for the model file."""
        check_is_fitted(self, "weights_")
        tensors = {}
        for i, (w, b) in enumerate(self.weights_):
            tensors[f"w{i}"], tensors[f"b{i}"] = w, b
        if self._state is not None:
            tensors["optimizer"] = self._state.optimizer
        state = {
            "n_features": self.n_features_in_,
            "feature_names": list(getattr(self, "feature_names_in_", [])) or None,
            "seed": str(self.seed_),
            "n_iter": self.n_iter_,
            "loss_curve": self.loss_curve_,
            "validation_scores": self.validation_scores_,
            "best_validation_score": self.best_validation_score_,
            "optimizer": None if self._state is None else self._state.describe(),
            "backend": self.backend_,
        }
        return tensors, state

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        network = self._network(int(state["n_features"]))
        pairs = [(tensors[f"w{i}"], tensors[f"b{i}"]) for i in range(len(network.layers))]
        checked = from_arrays(pairs, network)
        dtype = np.dtype(np.float64) if pairs[0][0].dtype == np.float64 else np.dtype(np.float32)
        self._restore(network, [(w.astype(dtype), b.astype(dtype)) for w, b in checked])
        if state["feature_names"]:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)
        self.seed_ = int(state["seed"])
        self.n_iter_, self.loss_curve_ = int(state["n_iter"]), list(state["loss_curve"])
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else np.nan
        self.validation_scores_ = state["validation_scores"]
        self.best_validation_score_ = state["best_validation_score"]
        if state["optimizer"] is not None:
            self._state = _Optimizer.restored(tensors["optimizer"], state["optimizer"], dtype)
            self.t_ = self._state.steps


class _Optimizer:
    """What a later ``partial_fit`` or warm start goes on from."""

    def __init__(self, optimizer: np.ndarray, steps: int, epochs: int, learning_rate: float | None, dtype: np.dtype):
        self.optimizer, self.steps, self.epochs = optimizer, steps, epochs
        self.learning_rate, self.dtype = learning_rate, np.dtype(dtype)

    def describe(self) -> dict:
        return {"steps": self.steps, "epochs": self.epochs, "learning_rate": self.learning_rate}

    @classmethod
    def restored(cls, optimizer: np.ndarray, state: dict, dtype: np.dtype) -> _Optimizer:
        return cls(optimizer, int(state["steps"]), int(state["epochs"]), state["learning_rate"], dtype)


def _is_pca(initializer: Any) -> bool:
    return initializer == "pca" if isinstance(initializer, str) else type(initializer).__name__ == "PCAInit"


def _rows_of(source: Source, limit: int) -> np.ndarray:
    """The first rows as a float64 array."""
    if source.indptr is None:
        return np.asarray(source.data[:limit], dtype=np.float64)
    from scipy.sparse import csr_array

    matrix = csr_array((source.data, source.indices, source.indptr), shape=(source.n_rows, source.columns))
    return matrix[:limit].toarray().astype(np.float64)
