"""The sparse autoencoder: a dictionary of many latents, few of which are active in a row."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from ..arrays import of_tensor
from ..spec import options
from ..spec.options import number
from ..spec.sparse import JumpReLU, SparseNetwork, sparse_network
from .sparse_fitting import SparseFitting
from .sparse_presets import preset_parameters


class SparseAutoencoder(SparseFitting):
    """A sparse autoencoder (dictionary learning on activations or embeddings), trained and encoded on compiled kernels.

    Parameters
    ----------
    n_components : int
        Latents n.
    k : int
        Active latents per row of the top-k kinds (on average over a batch for batch_topk).
    sparsity : name or option
        ``"topk"``, ``"abs_topk"``, ``"batch_topk"``, ``"matryoshka"``, ``"relu"``, ``"jumprelu"``, ``"gated"``, or
        ``fastae.TopK(…)``, ``AbsTopK``, ``BatchTopK``, ``Matryoshka``, ``ReLUCode``, ``JumpReLU``, ``Gated`` with what
        belongs to them: penalties' strengths, ``fastae.AuxK``, ``fastae.MultiTopK``.
    loss : "squared_error", "normalized" or "cosine"
        Σ e² over features, mean over rows; the same divided by the variance of the batch's targets; or 1 − cosine.
    pre_bias : bool
        Whether the decoder's bias is subtracted from the input first.
    normalization : None, "layer" or "scale"
        Of the input: none; each row to mean 0 and (unbiased) deviation 1, restored in reconstructions (a transcoder's
        targets and its skip connection's input stay as they are); or all by the number that brings the mean norm of a
        sample to √p (`fold` puts it into the weights).
    unit_norm : bool
        Whether decoder rows are kept at norm 1, gradients along them removed.
    transcoder, skip : bool
        ``fit(X, Y)`` learns Y from the code of X; ``skip`` adds a linear map of X.
    spaces : ints or None
        A crosscoder: X has the columns of several spaces of equal width side by side, which share one code; the L1
        penalty is weighted with the sum of a latent's norms in them. Narrower spaces are filled up with columns of 0.
    initializer : "random" or "data"
        Decoder rows: random directions, or rows of X with a little noise. The encoder begins as the decoder, scaled so
        that the first reconstructions fit best.
    bias_initializer : "geometric_median", "mean" or "zeros"
        Decoder's bias, from a sample.
    dead_after : int or None
        A latent is dead after so many rows without being active; None: 10 million, but at most two passes over X.
    resample : `fastae.Resample` or None
        Dead latents begin anew.
    ema : float or None
        Decay of a running average of all weights, which the fitted model then has; averages of unit rows are a little
        shorter than 1.
    solver, learning_rate
        As of `Autoencoder`; "auto" is 2e-4 / √(n / 2¹⁴) (sparsify's rule) with Adam's ε at 6.25e-10 (Gao et al.).
    batch_size : int or "auto"
        Rows; 4,096 for "auto", less for small X: about 32 batches in a pass, at least 64 rows each.
    max_iter : int
        Passes over X.
    shuffle : bool
        In an order that is a function of (seed, epoch); reads neighbouring rows together, so that files stay fast.
    random_state, backend, device, n_jobs, callbacks, verbose
        As of `Autoencoder`.
    precision : "auto", "float32", "float64" or "bfloat16"
        "auto" computes float64 input in float64 and everything else in float32; codes are those of such products,
        however they are found. "bfloat16" rounds the operands of the encoder's products (the centred rows and the
        encoder's weights: nearly all of the arithmetic) to bfloat16 (8 significant bits, nearest even) and sums in
        float32; latents are selected, and valued, by these pre-activations, in training and in everything that a
        fitted model does. Decoding, gradients (as if nothing was rounded), moments, penalties, statistics and weights
        stay float32. Results differ between instruction sets and backends by the sums' rounding, which may select
        another latent.

    Attributes
    ----------
    arrays_ : dict of arrays: encoder (n, p), encoder_bias (n,), decoder (n, q), decoder_bias (q,), and what the
        architecture has besides: threshold; gate_bias, magnitude_bias, magnitude_log_scale; skip (q, p). They may be
        changed in place; ask the model for them at each change, as it then makes its packed copies anew
    dictionary_ : array (n, q), decoder rows, the same memory as arrays_["decoder"]
    threshold_ : array (n,) or (1,) that latents must exceed, or None
    rows_since_fired_ : int64 (n,)
    loss_curve_, l0_curve_, fvu_curve_, dead_curve_ : lists over epochs: mean objective, active latents a row,
        unexplained fraction of the variance (of the batches' means; NaN with ``loss="cosine"``; of rows that are all
        the same 0 if exact, else 1, and NaN with ``loss="normalized"``), dead fraction at the end
    n_iter_, t_, seed_, n_features_in_, feature_names_in_, backend_, device_, n_parameters_, plan_, input_scale_

    Notes
    -----
    Makhzani & Frey (2013), Bricken et al. (2023), Gao et al. (2024), Rajamanoharan et al. (2024), Bussmann et al.
    (2024, 2025). The same seed gives the same bits for any number of threads. Ties among pre-activations go to the
    lowest index.
    """

    def __init__(
        self,
        n_components=1024,
        *,
        k=32,
        sparsity="topk",
        loss="squared_error",
        pre_bias=True,
        normalization=None,
        unit_norm=True,
        transcoder=False,
        skip=False,
        spaces=None,
        initializer="random",
        bias_initializer="geometric_median",
        dead_after=None,
        resample=None,
        ema=None,
        solver="auto",
        learning_rate="auto",
        batch_size="auto",
        max_iter=10,
        shuffle=True,
        random_state=None,
        backend="auto",
        device="auto",
        precision="auto",
        n_jobs=None,
        callbacks=(),
        verbose=0,
    ):
        self.n_components = n_components
        self.k = k
        self.sparsity = sparsity
        self.loss = loss
        self.pre_bias = pre_bias
        self.normalization = normalization
        self.unit_norm = unit_norm
        self.transcoder = transcoder
        self.skip = skip
        self.spaces = spaces
        self.initializer = initializer
        self.bias_initializer = bias_initializer
        self.dead_after = dead_after
        self.resample = resample
        self.ema = ema
        self.solver = solver
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.backend = backend
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.callbacks = callbacks
        self.verbose = verbose

    def _network(self, n_features: int, n_targets: int | None = None, **known: Any) -> SparseNetwork:
        """``known``: what only data tell: ``n_rows``, ``input_scale``."""
        solver = options.SOLVERS["adam"](epsilon=6.25e-10) if self.solver == "auto" else self.solver
        return sparse_network(
            n_features, n_targets, n_components=self.n_components, k=self.k, sparsity=self.sparsity, loss=self.loss,
            pre_bias=self.pre_bias, normalization=self.normalization, unit_norm=self.unit_norm,
            transcoder=self.transcoder, skip=self.skip, spaces=self.spaces, dead_after=self.dead_after, ema=self.ema,
            solver=solver, **known,
        )  # fmt: skip

    # ---- other ways to a fitted model ---

    @classmethod
    def from_arrays(
        cls, W_enc: Any, b_enc: Any, W_dec: Any, b_dec: Any, *, threshold: Any = None, skip: Any = None,
        gate_bias: Any = None, magnitude_bias: Any = None, magnitude_log_scale: Any = None, input_scale: float = 1.0,
        **parameters: Any,
    ) -> Self:  # fmt: skip
        """A fitted model from weights that exist already; they are copied, never altered.

        W_enc (n, p), b_enc (n,) or None, W_dec (n, q), b_dec (q,) or None : one latent, one row
        threshold : number or (n,): of JumpReLU, or the one of a batch_topk model; None → 0.001 for jumprelu, and 0
            for batch_topk
        skip : (q, p) of a transcoder; gate_bias, magnitude_bias, magnitude_log_scale : (n,) of a gated one
        input_scale : of ``normalization="scale"``
        parameters : of the estimator; ``n_components`` comes from the arrays, ``unit_norm`` is False unless given
        """
        w = _matrix("W_enc", W_enc)
        d = _matrix("W_dec", W_dec)
        if len(w) != len(d):
            raise ValueError(f"W_enc has shape {w.shape}, W_dec {d.shape}; wanted one row per latent in both")
        parameters = {"unit_norm": False, "n_components": len(w), **parameters}
        if skip is not None:
            parameters["skip"] = True
        model = cls(**parameters)
        network = model._network(w.shape[1], d.shape[1], input_scale=float(input_scale))
        if not network.transcoder and d.shape[1] != w.shape[1]:
            raise ValueError(
                f"W_dec has {d.shape[1]} columns, W_enc {w.shape[1]}; a model with other outputs than inputs has "
                "transcoder=True"
            )
        given = {
            "encoder": w, "encoder_bias": b_enc, "decoder": d, "decoder_bias": b_dec, "skip": skip,
            "gate_bias": gate_bias, "magnitude_bias": magnitude_bias, "magnitude_log_scale": magnitude_log_scale,
        }  # fmt: skip
        double = w.dtype == d.dtype == np.float64
        sparsity = network.sparsity
        if isinstance(sparsity, JumpReLU):
            theta = np.broadcast_to(np.asarray(0.001 if threshold is None else threshold, np.float64), (len(w),))
            if sparsity.logarithm:
                if not (theta > 0).all():
                    raise ValueError(
                        "threshold has values <= 0, whose logarithm is not learned; give "
                        "sparsity=fastae.JumpReLU(logarithm=False)"
                    )
                theta = np.log(theta)
            given["threshold"] = theta
        elif threshold is not None and network.selection.name != "batch_topk":
            raise ValueError(f"threshold was given, but sparsity={network.sparsity.name!r} has none")
        names = {name for name, _, _ in network.parameters}
        extra = sorted(name for name, value in given.items() if value is not None and name not in names)
        if extra:
            raise ValueError(f"{extra[0]} was given, but sparsity={network.sparsity.name!r} has no such array")
        if threshold is not None and network.selection.name == "batch_topk" and len(np.unique(threshold)) > 1:
            raise ValueError(
                "threshold has a value of its own for each latent, batch_topk one for all; give sparsity="
                "fastae.JumpReLU(logarithm=False)"
            )
        model._set_arrays(network, np.dtype(np.float64 if double else np.float32), {
            name: np.zeros((rows, columns)) if given.get(name) is None else _fitting(name, given[name], rows, columns)
            for name, rows, columns in network.parameters
        }, 0.0 if threshold is None or isinstance(sparsity, JumpReLU) else float(np.ravel(threshold)[0]))  # fmt: skip
        model.n_features_in_ = network.n_features
        return model

    def prefix(self, n: int) -> SparseAutoencoder:
        """A model of the first n latents alone; sensible for matryoshka models, whose prefixes were trained for it."""
        network = self._fitted()
        n = number("n", n, 1, network.n_components, integer=True)
        # what training alone needs may not fit fewer latents
        sparsity: Any = network.selection
        if network.k is not None:
            sparsity = type(sparsity)(min(network.k, n), aux=None)
        parameters = {**self.get_params(deep=False), "n_components": n, "k": min(network.k or 1, n),
                      "sparsity": sparsity}  # fmt: skip
        return self._with({name: array[:n] if name not in ("decoder_bias", "skip") else array
                           for name, array in self._arrays.items()}, parameters)  # fmt: skip

    def fold(self) -> SparseAutoencoder:
        """The same model with the input's scale in the weights, ``normalization=None``."""
        network = self._fitted()
        if network.normalization != "scale":
            raise ValueError(f"normalization={network.normalization!r} has nothing to fold; wanted 'scale'")
        if network.skip:
            raise ValueError("a skip connection cannot be folded beside pre-activations; leave normalization as it is")
        c = network.input_scale
        arrays = {name: array.astype(np.float64) for name, array in self._arrays.items()}
        # z = W (c x − b) = (c W) (x − b / c), x̂ = (f D + b) / c
        arrays["encoder"] = arrays["encoder"] * c
        arrays["decoder"], arrays["decoder_bias"] = arrays["decoder"] / c, arrays["decoder_bias"] / c
        parameters = {**self.get_params(deep=False), "normalization": None, "unit_norm": False}
        return self._with(arrays, parameters)

    def calibrate(self, X: Any, l0: float) -> SparseAutoencoder:
        """A model with one threshold for all latents, ``sparsity="jumprelu"``, that has ``l0`` active a row on X.

        X : rows that were held out of training; l0 : mean number of active latents a row
        """
        network = self._fitted()
        if network.sparsity.name in ("gated", "abs_topk"):
            raise ValueError(f"sparsity={network.sparsity.name!r} has no threshold of pre-activations to calibrate")
        number("l0", l0, 0.0, network.n_components, "right")
        theta = self._threshold_for(X, l0)
        parameters = {**self.get_params(deep=False), "unit_norm": False,
                      "sparsity": JumpReLU(threshold=theta, logarithm=False)}  # fmt: skip
        n = network.n_components
        return self._with({**self._arrays, "threshold": np.full(n, theta)}, parameters)

    def _with(self, arrays: dict[str, np.ndarray], parameters: dict[str, Any]) -> SparseAutoencoder:
        """A fitted model of other arrays and parameters than this one's."""
        other = type(self)(**parameters)
        scale = self.network_.input_scale if parameters["normalization"] == "scale" else 1.0
        network = other._network(self.n_features_in_, arrays["decoder"].shape[1], input_scale=scale)
        shaped = {name: np.asarray(arrays[name]).reshape(rows, columns) for name, rows, columns in network.parameters}
        other._set_arrays(network, self._dtype, shaped, float(self.batch_threshold_))
        other.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            other.feature_names_in_ = self.feature_names_in_
        return other

    @classmethod
    def from_pretrained(cls, path: Any, format: str = "auto", **parameters: Any) -> Self:
        """A fitted model from a published checkpoint on disk; nothing is unpickled.

        path : file or folder
        format : "auto", "saelens", "sparsify", "dictionary_learning", "openai", "gemma_scope", … as
            `fastae.io.sparse_checkpoints` lists them
        parameters : of the estimator
        Raises ModelFileError that names what does not fit. What the source says besides is in ``source_``.
        """
        from .sparse_published import from_checkpoint, read

        return from_checkpoint(cls, read(path, format), parameters)

    def save_pretrained(self, path: Any, format: str = "saelens") -> None:
        """Writes a checkpoint that another library reads.

        path : of the folder, made where it is missing; format : "saelens" (version 6) or "sparsify"
        Raises ValueError, naming the format that can, where this one cannot say what the model is.
        """
        from .sparse_published import to_checkpoint, write

        self._fitted()
        write(path, to_checkpoint(self), format)

    @classmethod
    def preset(cls, library: str, n_components: int = 1024, *, sparsity: str = "topk", **parameters: Any) -> Self:
        """An estimator with another library's conventions, listed in `fastae.models.sparse_presets`.

        library : "openai", "sparsify", "dictionary_learning" or "saelens"
        sparsity : name of a kind of code that the library has
        parameters : of the estimator, which go before the preset's
        """
        known = preset_parameters(library, sparsity, bool(parameters.get("transcoder", False)))
        return cls(n_components, **{**known, **parameters})


def _matrix(name: str, value: Any) -> np.ndarray:
    array = np.asarray(of_tensor(value))
    if array.ndim != 2 or (array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16"):
        raise ValueError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; wanted a real matrix (latents, width)"
        )
    return array


def _fitting(name: str, value: Any, rows: int, columns: int) -> np.ndarray:
    array = np.asarray(of_tensor(value), dtype=np.float64)
    if array.ndim == 1 and rows == 1:
        array = array[None, :]
    if array.shape != (rows, columns):
        wanted = (columns,) if rows == 1 else (rows, columns)
        raise ValueError(f"{name} has shape {tuple(np.shape(value))}; wanted {wanted}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinity; wanted finite numbers")
    return array
