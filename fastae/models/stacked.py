"""The stacked denoising autoencoder."""

from __future__ import annotations

from .autoencoder import Autoencoder
from .pretraining import Pretrained


class StackedAutoencoder(Pretrained, Autoencoder):
    """An `Autoencoder` whose layers are pretrained greedily, one after the other, before the whole is trained.

    Encoder layer i and the decoder layer that mirrors it are trained as an autoencoder of one hidden layer on the codes
    of the layers below (Vincent et al. 2010); then the whole is trained from these weights.

    Parameters
    ----------
    pretraining : "denoising", ``fastae.DenoisingPretraining(…)`` or None
    max_iter : int
        Epochs of the whole; 0 leaves the model as pretraining made it.
    n_components, hidden_layer_sizes, decoder_layer_sizes, activation, code_activation, output_activation, loss,
    reduction, dropout, normalization, skip_connections, tied_weights, noise, input_transform, missing, penalties,
    constraints, initializer, solver, learning_rate, batch_size, tol, shuffle, early_stopping, validation_fraction,
    n_iter_no_change, warm_start, random_state, backend, device, precision, n_jobs, callbacks, verbose :
        As for `fastae.Autoencoder`. ``penalties`` act on the whole, those of ``pretraining`` on the layers;
        ``constraints`` act in both; ``dropout`` and ``noise`` on the whole; ``callbacks`` are called for the whole. The
        decoder must mirror the encoder and have neither normalisation nor skip connections nor maxout layers.

    Attributes
    ----------
    pretraining_losses_ : list per layer of the mean loss of each epoch of pretraining; None without
    weights_, … : as of `fastae.Autoencoder`

    Notes
    -----
    Vincent, Larochelle, Lajoie, Bengio, Manzagol (2010), "Stacked denoising autoencoders", JMLR 11. ``partial_fit`` and
    a warm start do not pretrain. Rows that ``early_stopping`` holds out take no part in pretraining. The codes of one
    layer at a time are kept in memory, (N, width).
    """

    _least_epochs = 0

    def __init__(
        self,
        n_components=32,
        *,
        pretraining="denoising",
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
        super().__init__(
            n_components,
            hidden_layer_sizes=hidden_layer_sizes,
            decoder_layer_sizes=decoder_layer_sizes,
            activation=activation,
            code_activation=code_activation,
            output_activation=output_activation,
            loss=loss,
            reduction=reduction,
            dropout=dropout,
            normalization=normalization,
            skip_connections=skip_connections,
            tied_weights=tied_weights,
            noise=noise,
            input_transform=input_transform,
            missing=missing,
            penalties=penalties,
            constraints=constraints,
            initializer=initializer,
            solver=solver,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_iter=max_iter,
            tol=tol,
            shuffle=shuffle,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
            backend=backend,
            device=device,
            precision=precision,
            n_jobs=n_jobs,
            callbacks=callbacks,
            verbose=verbose,
        )
        self.pretraining = pretraining
