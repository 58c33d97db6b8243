"""The dense autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..initializers import from_arrays
from ..spec.network import Network, dense_network
from . import weights
from .fitting import FittedByBatches
from .reconstruction import Reconstruction


class Autoencoder(Reconstruction, FittedByBatches):
    """A dense autoencoder of any depth, trained on compiled kernels, by minibatches or on all rows at once.

    Parameters
    ----------
    n_components : int
        Width of the code.
    hidden_layer_sizes : ints
        Widths of the encoder's hidden layers, from the input to the code.
    decoder_layer_sizes : ints or None
        Widths of the decoder's hidden layers; None mirrors the encoder.
    activation, code_activation, output_activation : name or option, such as ``fastae.LeakyReLU(0.2)``
        ``activation`` may also be a sequence, one per hidden layer, encoder's first. ``code_activation="auto"`` is
        identity when there are hidden layers, else ``activation``. ``"softmax"`` is allowed for the output,
        ``fastae.Maxout(pieces)`` for hidden layers and the code.
    loss : name or option
        ``"squared_error"``, ``"binary_cross_entropy"`` (X in [0, 1]; the output is a sigmoid), ``"huber"``,
        ``"absolute"``, ``"poisson"`` (the output is the rate), ``"multinomial"``, ``"categorical_cross_entropy"``,
        ``"cosine"`` (one number per row), ``"negative_binomial"``, ``"zero_inflated_negative_binomial"`` (counts; the
        reconstruction is the mean, `distribution` gives all parameters), or ``fastae.Heads`` for a loss per block of
        columns.
    reduction : "mean" or "sum"
        Mean over rows and features, or sum over features and mean over rows.
    dropout : float or one per hidden layer
        Rate on hidden layers, not on the code or the output.
    normalization : None, "batch", "layer", ``fastae.BatchNorm(…)``, ``fastae.LayerNorm(…)``, or one per hidden layer
        Of the pre-activations of hidden layers. After training a batch normalisation is folded into the weights.
    skip_connections : bool
        Every hidden layer as wide as its input adds that input to its output.
    tied_weights : bool
        The decoder uses the encoder's weights transposed (biases are its own); needs a mirrored decoder.
    noise : None, name or option, such as ``fastae.MaskingNoise(0.3)``
        Corrupts the input in training; the target stays clean.
    input_transform : None or "log1p"
        What the encoder sees of X, before noise; the target stays X itself. For counts (X >= 0).
    missing : None, NaN or a number
        Marks entries of X that are unobserved (compared in the dtype of computing): the encoder sees 0 in their place
        and no loss counts them; ``reduction="mean"`` is over a row's observed entries. 0 reads sparse ratings as
        AutoRec does (Sedhain et al., 2015). NaN is refused unless ``missing`` is NaN, infinity always.
    penalties, constraints : sequences of options
        On weights ``fastae.L1(1e-4)``, ``L2``, ``ElasticNet``, ``SVDProjector``, ``Orthogonality``; on the code
        ``KLSparsity``, ``ActivityL1``, ``Contractive``, ``Laplacian``, ``Decorrelation``; ``MaxNorm``, ``WeightRange``,
        ``NonNegative``. ``fastae.OnLayers(option, layers)`` puts one on chosen layers.
    initializer : name, option, list of one per layer, or list of (W, b) with W (out, in)
        ``"auto"`` chooses by activation: He for the ReLU family and maxout, LeCun for SELU, else Xavier, all uniform.
    solver : name or option, such as ``fastae.Adam(beta1=0.9, clip_norm=1.0)``
        Update rules take a step per batch. The full-batch solvers ``"lbfgs"`` and ``"cg"`` (``fastae.LBFGS``,
        ``fastae.ConjugateGradient``) minimise the objective over all rows by `scipy.optimize`, computed in float64
        whatever X is; they use neither ``learning_rate`` nor ``batch_size`` nor ``shuffle``, draw dropout, noise and
        neighbours once, and have no ``partial_fit``. ``"lbfgs"`` takes all penalties (L1 and ElasticNet give true
        zeros), ``WeightRange`` and ``NonNegative``; ``"cg"`` neither L1, ElasticNet nor constraints. Where something
        couples rows (``KLSparsity``, ``Decorrelation``, ``BatchNorm``, ``SwapNoise``) they hold the activations of
        all rows in memory.
    learning_rate : float or schedule, such as ``fastae.Cosine(1e-3)``
    batch_size : int or "auto"
        min(256, rows) for "auto".
    max_iter : int
        Epochs, or iterations of a full-batch solver, which warns when it has not converged by then.
    tol, n_iter_no_change : float, int
        Training stops when the loss (of the held-out rows with ``early_stopping``) has not improved by more than
        ``tol`` times its size for ``n_iter_no_change`` epochs. A full-batch solver has also converged when the largest
        element of the gradient is at most ``tol`` times what it was at the start.
    shuffle : bool
    early_stopping, validation_fraction : bool, float
        Of ``fit``: holds rows out and puts the weights back that were best on them.
    warm_start : bool
        A second ``fit`` goes on from the first one's weights. Layers (but for ``dropout``) and the dtype computed in
        must be the same, for ``partial_fit`` too.
    random_state : int, RandomState, Generator or None
        None takes a new seed each time, from the system and not from NumPy's global generator; ``seed_`` holds it.
    backend : "auto", "native", "numba", "reference" or "cuda"
    device : "auto", "cpu", "cuda" or "cuda:1"
        "auto" is the CPU.
    precision : "auto", "float32", "float64", "bfloat16" or "tf32"
        "auto" computes float64 input in float64 and everything else in float32. "bfloat16" computes in float32 but
        rounds the operands of the layers' products to bfloat16 (8 significant bits, nearest even), in training and in
        everything that a fitted model does; sums, weights, moments, biases, activations and losses stay float32. It is
        faster where the processor multiplies bfloat16 fast (AMX; AVX512_BF16 but Intel's); elsewhere it is correct and
        slower than float32. In this mode results differ between instruction sets by more than sums' rounding where a
        sum lies near the edge between two bfloat16 numbers. "tf32" is the same with a GPU's tf32 for bfloat16, and only
        there. Neither goes with full-batch solvers (ValueError).
    n_jobs : int or None
        Threads; None takes FASTAE_NUM_THREADS, OMP_NUM_THREADS, or all cores.
    callbacks : sequence of functions of `fastae.EpochInfo`
        Called after each epoch of ``fit``; one that returns True ends training.
    verbose : int
        1 shows a progress bar.

    Attributes
    ----------
    weights_ : list of (W, b), encoder's layers first; W (out, in), of a maxout layer (pieces · out, in); a tied
        decoder's W are views of the encoder's
    norms_ : list of None or dict per layer: gamma, beta, and running mean, var of batch normalisation
        Arrays of weights_ and norms_ may be changed in place, ``model.weights_[0][0][:] = …``, and whatever the model
        does then is of the new ones (but an `encoder` made before stays as it is). Ask the model for them at each
        change: an array kept from before a call of ``transform`` or the like is read-only, as plans would not see a
        change; slices of it and the list itself cannot be guarded so.
    n_iter_ : int, epochs or iterations of the last fit, or epochs of all partial fits
    loss_, loss_curve_ : float, list; mean objective of each epoch, or the objective after each iteration
    validation_scores_, best_validation_score_ : −(loss of the held-out rows) per epoch, and the best; None without
    n_features_in_, feature_names_in_, backend_, device_, n_parameters_, t_ (steps of the optimiser), seed_, plan_

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
        normalization=None,
        skip_connections=False,
        tied_weights=False,
        noise=None,
        input_transform=None,
        missing=None,
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
        self.normalization = normalization
        self.skip_connections = skip_connections
        self.tied_weights = tied_weights
        self.noise = noise
        self.input_transform = input_transform
        self.missing = missing
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
            normalization=self.normalization,
            skip_connections=self.skip_connections,
            tied_weights=self.tied_weights,
            noise=self.noise,
            input_transform=self.input_transform,
            missing=self.missing,
            penalties=self.penalties,
            constraints=self.constraints,
            solver=self.solver,
        )

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
        pairs = []
        for i, pair in enumerate(encoder + decoder):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"layer {i}: got {type(pair).__name__}, wanted a pair (W, b)")
            w = np.asarray(pair[0])
            if w.ndim != 2:
                raise ValueError(f"layer {i}: W has shape {w.shape}; wanted (out, in)")
            pairs.append((w, pair[1]))
        # a layer is as wide as what the next one takes; a maxout layer's W has more rows
        widths = [w.shape[1] for w, _ in pairs[1:]]
        n_hidden = len(encoder) - 1
        model = cls(
            n_components=widths[n_hidden],
            hidden_layer_sizes=tuple(widths[:n_hidden]),
            decoder_layer_sizes=tuple(widths[n_hidden + 1 :]),
            **parameters,
        )
        network = model._network(pairs[0][0].shape[1])
        checked = from_arrays(pairs, network)
        dtype = np.float64 if all(w.dtype == np.float64 for w, _ in pairs) else np.float32
        model._restore(
            network, [(w.astype(dtype), b.astype(dtype)) for w, b in checked], weights.initial_norms(network)
        )
        return model
