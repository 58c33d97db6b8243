"""Greedy pretraining of an encoder, layer by layer, with autoencoders of one hidden layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exceptions import NonFiniteLossError
from ..initializers import initial_weights
from ..plan.plan import Source
from ..spec.network import Network
from ..spec.pretraining import DenoisingPretraining, mirror, pretraining_option, stages
from ..validation import extremes
from . import weights
from .autoencoder import Autoencoder
from .fitting import FittedByBatches
from .graph import source_rows


def layer_seed(seed: int, i: int) -> int:
    """The seed of the autoencoder that pretrains encoder layer i of a model with ``seed_``, 63 bits."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> 1)


class Pretrained(FittedByBatches):
    """Base of estimators with a parameter ``pretraining``; only a ``fit`` that is no warm start pretrains."""

    pretraining: Any
    pretraining_losses_: list[list[float]] | None

    def _start(self, network: Network, source: Source, rows: np.ndarray | None) -> weights.Arrays:
        pairs, norms = super()._start(network, source, rows)
        option = pretraining_option(self.pretraining)
        if option is None:
            return pairs, norms
        pairs, norms, self.pretraining_losses_ = pretrained(self, network, option, pairs, norms, source, rows)
        return pairs, norms

    def _random_start(self, network: Network, source: Source) -> weights.Arrays:
        self.pretraining_losses_ = None
        return super()._random_start(network, source)

    def _restore(self, network: Network, pairs: weights.Weights, norms: weights.Norms) -> None:
        super()._restore(network, pairs, norms)
        self.pretraining_losses_ = None

    def _check_takes_blocks(self, begins: bool) -> None:
        super()._check_takes_blocks(begins)
        if begins and pretraining_option(self.pretraining) is not None:
            raise ValueError(
                f"pretraining={self.pretraining!r} keeps the codes of all rows, but X comes in blocks; use "
                "pretraining=None, pretrain on an array that is a part of them and go on with partial_fit, or give X "
                "as an array in memory"
            )

    def _get_model_state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, state = super()._get_model_state()
        return tensors, state | {"pretraining_losses": self.pretraining_losses_}

    def _set_model_state(self, tensors: dict[str, np.ndarray], state: dict) -> None:
        super()._set_model_state(tensors, state)
        self.pretraining_losses_ = state["pretraining_losses"]


class _Stage(Autoencoder):
    """The autoencoder of one layer: of a given network, on some of the rows."""

    _diagnosed = False
    _network_of_stage: Network
    _rows_of_stage: np.ndarray | None

    def _network(self, n_features: int) -> Network:
        return self._network_of_stage

    def _split(self, sources: tuple[Source, ...], settings: Any):
        return self._rows_of_stage, None


def pretrained(
    model: Pretrained, network: Network, option: DenoisingPretraining, pairs: weights.Weights, norms: weights.Norms,
    source: Source, rows: np.ndarray | None,
) -> tuple[weights.Weights, weights.Norms, list[list[float]]]:  # fmt: skip
    """(W, b) and normalisations of ``network`` after greedy pretraining, and the losses per layer and epoch.

    pairs, norms : where pretraining begins
    rows : those to train on, None for all; codes are computed for all and kept, (N, width) of one layer at a time
    """
    pairs, norms, losses = list(pairs), list(norms), []
    X = source_rows(source)
    low, high = extremes(source, 0, source.columns, network.missing)
    parts = stages(network, option, unit_input=0 <= low <= high <= 1)
    for i, part in enumerate(parts):
        seed, j = layer_seed(model.seed_, i), mirror(network, i)
        back = pairs[j] if j is not None else initial_weights("auto", part, seed)[1]
        if part.decoder[0].tied is not None:
            back = (np.asarray(pairs[i][0]).T, back[1])
        epochs = option.of_layer("max_iter", i, len(parts))
        stage = _Stage(
            n_components=part.n_components, solver=option.solver, learning_rate=option.learning_rate,
            batch_size=option.batch_size, max_iter=epochs, tol=0.0, missing=part.missing,
            n_iter_no_change=epochs, shuffle=model.shuffle, initializer=[pairs[i], back], random_state=seed,
            backend=model.backend, device=model.device, precision=model.precision, n_jobs=model.n_jobs,
            verbose=model.verbose,
        )  # fmt: skip
        stage._network_of_stage, stage._rows_of_stage = part, rows
        try:
            stage.fit(X, sample_weight=source.weight)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"pretraining of encoder layer {i}: {error} in DenoisingPretraining") from error
        pairs[i], norms[i] = stage.weights_[0], stage.norms_[0]
        if j is not None:
            pairs[j] = stage.weights_[1]
        losses.append(stage.loss_curve_)
        if i < len(parts) - 1:
            X = stage.transform(X)
    return pairs, norms, losses
