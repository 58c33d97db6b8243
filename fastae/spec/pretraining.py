"""Greedy pretraining, layer by layer: its options, and the network of each stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..schedules import schedule
from . import options
from .network import Layer, Network, Placed, check_penalties, place
from .options import Option, number, unknown


@dataclass(frozen=True)
class DenoisingPretraining(Option):
    """Greedy pretraining of an encoder by denoising autoencoders with one hidden layer (Vincent et al. 2010).

    Layer i is trained to restore its own input, the clean codes of the layers below, from a corrupted copy. Training
    begins at the initial weights of the whole network, and the whole is trained from where pretraining ends.

    noise : name, option or None, or a tuple of one per encoder layer
        What corrupts each layer's input. None trains plain autoencoders, such as sparse ones with ``penalties``.
    max_iter : epochs of each layer, or a tuple of one per layer
    loss : name, option or "auto"
        "auto" is the model's own loss for the first layer of an autoencoder. Else it is cross-entropy where the layer's
        input lies in [0, 1] and it is decoded by sigmoids: by the decoder's, or, in a classifier, where the layer
        itself is one of sigmoids. All others take the squared error.
    reduction : "mean" or "sum", of the loss over the features
    tied_weights : whether each stage decodes by the transpose of its encoder's weights
    penalties : option or tuple of options, of each stage; names and options as for `Autoencoder`
    solver, learning_rate, batch_size : of each stage, as for `Autoencoder`
    """

    noise: Any = options.MaskingNoise(0.25)  # noqa: RUF009 (frozen)
    max_iter: Any = 15
    loss: Any = "auto"
    reduction: str = "mean"
    tied_weights: bool = False
    penalties: Any = ()
    solver: Any = "adam"
    learning_rate: Any = 1e-3
    batch_size: Any = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise", "max_iter", "penalties"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for noise in self.noise if isinstance(self.noise, tuple) else (self.noise,):
            if noise is not None:
                options.choose("DenoisingPretraining.noise", noise, options.NOISES)
        for epochs in self.max_iter if isinstance(self.max_iter, tuple) else (self.max_iter,):
            number("DenoisingPretraining.max_iter", epochs, 1, 2**31, integer=True)
        if self.loss != "auto":
            options.choose("DenoisingPretraining.loss", self.loss, options.LOSSES)
        if self.reduction not in ("mean", "sum"):
            raise unknown("DenoisingPretraining.reduction", self.reduction, ("mean", "sum"))
        options.choose("DenoisingPretraining.solver", self.solver, options.SOLVERS)
        schedule(self.learning_rate)
        if self.batch_size != "auto":
            number("DenoisingPretraining.batch_size", self.batch_size, 1, 2**31 - 1, integer=True)

    def of_layer(self, name: str, i: int, n_layers: int) -> Any:
        """``noise`` or ``max_iter``, by ``name``, of layer i of ``n_layers``."""
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        if len(value) != n_layers:
            raise ValueError(
                f"DenoisingPretraining.{name}={value!r} has {len(value)} items for {n_layers} encoder layers; "
                "give one value, or one for each"
            )
        return value[i]


PRETRAINING = {"denoising": DenoisingPretraining}


def pretraining_option(value: Any) -> DenoisingPretraining | None:
    return None if value is None else options.choose("pretraining", value, PRETRAINING)


def stages(network: Network, option: DenoisingPretraining, unit_input: bool) -> list[Network]:
    """The network with one hidden layer that pretrains each encoder layer of ``network``.

    unit_input : whether the network's input lies in [0, 1]
    Its decoder is the mirrored layer of the network's decoder, if it is one for reconstruction.
    """
    return [_stage(network, option, i, unit_input) for i in range(len(network.encoder))]


def mirror(network: Network, i: int) -> int | None:
    """Index, among all layers, of the decoder layer that mirrors encoder layer i; None for a classifier."""
    return None if network.n_targets is not None else len(network.layers) - 1 - i


def _stage(network: Network, option: DenoisingPretraining, i: int, unit_input: bool) -> Network:
    encoder = dataclasses.replace(network.encoder[i], dropout=0.0)
    j = mirror(network, i)
    own = i == 0 and j is not None and option.loss == "auto"
    decoder = Layer(encoder.n_out, encoder.n_in, options.ACTIVATIONS["identity"]())
    if j is not None:
        decoder = dataclasses.replace(network.layers[j], dropout=0.0, tied=None)
        _check_mirror(network, i, j)
        if i == 0 and not own and network.split_output:
            raise ValueError(
                f"DenoisingPretraining.loss={option.loss!r} does not go with the outputs that loss="
                f"{network.loss.name!r} has for each feature; use loss='auto'"
            )
        if i == 0 and not own and network.owned_output != "identity":  # the model's loss computes it
            if network.owned_output not in options.OUTPUT_ACTIVATIONS:
                raise ValueError(
                    f"loss={network.loss.name!r} makes more of the last layer than one number per feature, which "
                    f"DenoisingPretraining.loss={option.loss!r} cannot train; use loss='auto'"
                )
            decoder = dataclasses.replace(decoder, activation=options.OUTPUT_ACTIVATIONS[network.owned_output]())
    tied = option.tied_weights or (j is not None and network.layers[j].tied is not None)
    if tied and encoder.pieces > 1:
        raise ValueError(
            f"layer {i} is a maxout layer, whose weights have no transpose; use tied_weights=False in pretraining and "
            "network"
        )
    if tied and j is not None and network.layers[j].tied is None:
        _check_kept(network.constraints, i, j)
    unit = unit_input if i == 0 else _in_unit_range(network.encoder[i - 1])
    crossed = unit and (decoder.activation.name == "sigmoid" if j is not None else _in_unit_range(encoder))
    loss = network.loss if own else _loss(option, decoder.activation, crossed, free=j is None)
    if i > 0 and not own:
        _check_codes(network.encoder[i - 1], i, loss)
    kept = {i: 0} if j is None else {i: 0, j: 1}
    layers = (encoder, dataclasses.replace(decoder, tied=0 if tied else None))
    base = network if own else Network((), (), loss)  # what else belongs to the input stays with the first layer
    if i == 0:
        base = dataclasses.replace(base, missing=network.missing, input_transform=network.input_transform)
    noise = option.of_layer("noise", i, len(network.encoder))
    penalties = place("penalties", option.penalties, options.ALL_PENALTIES, layers, 1)
    check_penalties(penalties, layers, 1)
    return dataclasses.replace(
        base,
        encoder=layers[:1],
        decoder=layers[1:],
        reduction=option.reduction,
        noise=None if noise is None else options.choose("noise", noise, options.NOISES),
        penalties=penalties,
        constraints=_kept(network.constraints, kept),
        solver=options.choose("solver", option.solver, options.SOLVERS),
    )


def _check_mirror(network: Network, i: int, j: int) -> None:
    encoder, decoder = network.encoder[i], network.layers[j]
    same = (decoder.n_in, decoder.n_out) == (encoder.n_out, encoder.n_in) or i == 0
    if len(network.decoder) != len(network.encoder) or decoder.n_in != encoder.n_out or not same:
        raise ValueError("pretraining needs a mirrored decoder; leave decoder_layer_sizes at None")
    if decoder.norm is not None or decoder.residual or decoder.pieces > 1:
        what = "normalization" if decoder.norm else "skip connection" if decoder.residual else "maxout activation"
        raise ValueError(
            f"pretraining sets plain decoder layers, and decoder layer {j} has a {what}; give the decoder none (a "
            "sequence with one item per hidden layer, encoder's first), or use pretraining=None"
        )


def _check_kept(constraints: tuple[Placed, ...], i: int, j: int) -> None:
    """Raises for a constraint on decoder layer j alone, whose weights are those of encoder layer i in pretraining."""
    for placed in constraints:
        if j in placed.layers and i not in placed.layers:
            raise ValueError(
                f"{placed.option!r} acts on decoder layer {j} and not on encoder layer {i}, whose weights it has in "
                "pretraining, transposed; put it on both, or use tied_weights=False in pretraining"
            )


def _in_unit_range(layer: Layer) -> bool:
    row = layer.activation._row
    return row is not None and row.low >= 0 and row.high <= 1 and not layer.residual


def _loss(option: DenoisingPretraining, activation: Any, crossed: bool, *, free: bool) -> options.LossOption:
    """The loss of a stage, cross-entropy or not by itself; ``free``: its output's activation is nobody else's."""
    if option.loss == "auto":
        return options.LOSSES["binary_cross_entropy" if crossed else "squared_error"]()
    loss = options.choose("DenoisingPretraining.loss", option.loss, options.LOSSES)
    if not free and loss._row.output not in ("identity", activation.name):
        raise ValueError(
            f"DenoisingPretraining.loss={loss.name!r} goes with an output of {loss._row.output!r}, and the decoder "
            f"layer has activation {activation.name!r}; use loss='auto' or make the activations match"
        )
    return loss


def _check_codes(below: Layer, i: int, loss: options.LossOption) -> None:
    row = below.activation._row
    low, high = (-float("inf"), float("inf")) if row is None or below.residual else (row.low, row.high)
    wanted_low, wanted_high = loss.target_range
    if low < wanted_low or high > wanted_high:
        raise ValueError(
            f"DenoisingPretraining.loss={loss.name!r} wants inputs in [{wanted_low:g}, {wanted_high:g}], and layer "
            f"{i - 1} gives [{low:g}, {high:g}]; use loss='auto' or another activation"
        )


def _kept(placed: tuple[Placed, ...], kept: dict[int, int]) -> tuple[Placed, ...]:
    """Constraints on the layers of a stage."""
    chosen = ((p.option, tuple(kept[i] for i in p.layers if i in kept)) for p in placed)
    return tuple(Placed(option, layers) for option, layers in chosen if layers)


__all__ = ["PRETRAINING", "DenoisingPretraining", "mirror", "pretraining_option", "stages"]
