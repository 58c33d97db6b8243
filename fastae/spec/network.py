"""What a dense autoencoder is: frozen dataclasses, checked once, here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from . import options
from .heads import Block, Heads, blocks, choose_loss, output_width
from .options import flag, number, unknown


@dataclass(frozen=True)
class Layer:
    """y = dropout(a(norm(x Wᵀ + b))) [+ x]; W (n_units, n_in), n_units = n_out · pieces of a maxout layer."""

    n_in: int
    n_out: int
    activation: Any
    dropout: float = 0.0
    norm: Any = None
    residual: bool = False
    tied: int | None = None  # the layer whose W is this one's, transposed

    @property
    def pieces(self) -> int:
        return self.activation.pieces if isinstance(self.activation, options.Maxout) else 1

    @property
    def n_units(self) -> int:
        return self.n_out * self.pieces

    @property
    def parameters(self) -> tuple[tuple[str, int, int], ...]:
        """(name, rows, columns) of the layer's own trainable arrays."""
        w = () if self.tied is not None else (("w", self.n_units, self.n_in),)
        scale = () if self.norm is None else (("gamma", 1, self.n_units), ("beta", 1, self.n_units))
        return (*w, ("b", 1, self.n_units), *scale)

    @property
    def statistics(self) -> tuple[tuple[str, int, int], ...]:
        """(name, rows, columns) of arrays that training keeps beside the parameters."""
        if not isinstance(self.norm, options.BatchNorm):
            return ()
        return ("mean", 1, self.n_units), ("var", 1, self.n_units)


@dataclass(frozen=True)
class Placed:
    """A penalty or constraint and the layers that it acts on."""

    option: Any
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """Encoder and decoder layers with everything that training needs to know."""

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    loss: options.LossOption
    reduction: str = "mean"
    noise: Any = None
    penalties: tuple[Placed, ...] = ()
    constraints: tuple[Placed, ...] = ()
    solver: Any = None
    n_targets: int | None = None  # width of targets that are not the input (they come from source 1)
    missing: float | None = None  # marks entries of the input that are unobserved (NaN: `math.nan` itself)
    input_transform: str | None = None  # what the encoder sees of the input; the target stays as it is

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.encoder + self.decoder

    @property
    def n_features(self) -> int:
        return self.encoder[0].n_in

    @property
    def target_width(self) -> int:
        return self.n_features if self.n_targets is None else self.n_targets

    @property
    def graph_source(self) -> int:
        """Which source of rows the graph of a `Laplacian` is."""
        return 1 if self.n_targets is None else 2

    @property
    def encoding(self) -> Network:
        """The encoder by itself, without what only training needs."""
        return dataclasses.replace(self, decoder=(), noise=None, penalties=(), constraints=(), solver=None)

    @property
    def widest(self) -> int:
        """Columns of the widest layer, or of the input."""
        return max(self.n_features, *(layer.n_out for layer in self.layers))

    def penalty(self, kind: type) -> Any:
        """The penalty of a kind that can be there once, or None."""
        return next((placed.option for placed in self.penalties if isinstance(placed.option, kind)), None)

    @property
    def n_directions(self) -> int:
        """Principal directions of an `SVDProjector`, 0 without one."""
        option = self.penalty(options.SVDProjector)
        if option is None:
            return 0
        return min(self.n_features, option.n_components or self.n_components)

    @property
    def n_components(self) -> int:
        return self.encoder[-1].n_out

    @property
    def owned_output(self) -> str:
        """The output activation that the loss computes from the last layer's pre-activation, "identity" for none."""
        return self.loss.output

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of target columns with their losses."""
        return blocks(self.loss, self.target_width)

    @property
    def split_output(self) -> bool:
        """Whether the last layer's outputs are not the reconstruction: heads, or parameters of a distribution."""
        return self.owned_output == "distribution"


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Layer widths as a tuple of positive integers."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={value!r} must be integers, such as (256, 64)")
    try:
        if isinstance(value, Iterator):  # which the next call would find empty
            raise TypeError
        items = (value,) if isinstance(value, Integral) else tuple(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a sequence of integers, such as (256, 64)") from None
    return tuple(number(f"{name}[{i}]", n, 1, 2**26, integer=True) for i, n in enumerate(items))


def several(name: str, values: Any) -> tuple[Any, ...]:
    """One item or a sequence of items as a tuple; None is none."""
    if values is None:
        return ()
    if isinstance(values, (str, options.Option)):
        return (values,)
    try:
        if isinstance(values, (Mapping, Iterator)):  # its keys alone would count; the next call would find it empty
            raise TypeError
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name}={values!r} must be one option or a sequence of options") from None


def _output(value: Any, loss: options.LossOption) -> Any:
    """The output activation, checked against the loss; "identity" stands for the one that the loss owns."""
    activation = options.choose("output_activation", value, options.OUTPUT_ACTIVATIONS)
    owned = loss.output
    if owned == "distribution" and activation.name != "identity":
        raise ValueError(
            f"loss={loss.name!r} makes the reconstruction from the network's outputs itself; got "
            f"output_activation={activation.name!r}; leave it at 'identity'"
        )
    if owned == "identity" or activation.name in ("identity", owned):
        return activation
    raise ValueError(
        f"loss={loss.name!r} goes with output_activation={owned!r}, which it computes itself; "
        f"got {activation.name!r}; leave output_activation at 'identity' or choose another loss"
    )


def missing_mark(value: Any, loss: options.LossOption | None) -> float | None:
    """What marks unobserved entries, checked against the loss of the input, if it has one."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"missing={value!r} must be None, NaN or a number")
    missing = math.nan if value != value else number("missing", value, -math.inf, math.inf, "neither")
    losses = [head.loss for head in loss.heads] if isinstance(loss, Heads) else [loss] if loss is not None else []
    for option in losses:
        if missing == 0 and option.output == "softmax":
            raise ValueError(
                f"missing=0 does not go with loss={option.name!r}: a softmax learns from the zeros that compete with "
                "what is there; leave missing at None, or mark unobserved entries by NaN"
            )
    return missing


def transform_of_input(value: Any) -> str | None:
    if value not in (None, "log1p"):
        raise unknown("input_transform", value, ("None", "log1p"))
    return value


def _resolve(layers: Any, n_encoder: int, n_layers: int) -> tuple[int, ...]:
    """Indices that the ``layers`` of `OnLayers` mean."""
    code, last = n_encoder - 1, n_layers - 1
    named = {
        "encoder": range(n_encoder), "decoder": range(n_encoder, n_layers), "code": (code,), "output": (last,),
        "hidden": [i for i in range(n_layers) if i not in (code, last)], "all": range(n_layers),
    }  # fmt: skip
    if isinstance(layers, str):
        if layers not in named:
            raise unknown("OnLayers.layers", layers, named)
        return tuple(named[layers])
    chosen = []
    for i in layers if isinstance(layers, Iterable) else (layers,):
        number("OnLayers.layers", i, -n_layers, last, integer=True)
        chosen.append(int(i) % n_layers)
    return tuple(sorted(set(chosen)))


def place(what: str, values: Any, table: dict, layers: tuple[Layer, ...], n_encoder: int) -> tuple[Placed, ...]:
    """Penalties or constraints with the layers that each acts on."""
    placed = []
    for value in several(what, values):
        option = options.choose(what, value.option if isinstance(value, options.OnLayers) else value, table)
        code = type(option) in options.ACTIVITY_PENALTIES.values() or isinstance(option, options.Orthogonality)
        where = _resolve("code" if code else "all", n_encoder, len(layers))
        if type(option) in options.ENCODER_PENALTIES.values():
            where = (0,) if isinstance(option, options.SVDProjector) else (n_encoder - 1,)
        if isinstance(value, options.OnLayers):
            if type(option) in options.ENCODER_PENALTIES.values():
                raise ValueError(f"{type(option).__name__} belongs to the encoder as a whole; give it without OnLayers")
            where = _resolve(value.layers, n_encoder, len(layers))
            if not where:
                raise ValueError(f"{value!r} names no layer of this network; name one that is there")
            tied = [i for i in where if layers[i].tied is not None]
            if tied and type(option) not in options.ACTIVITY_PENALTIES.values():
                raise ValueError(
                    f"{value!r} acts on the weights of layer {tied[0]}, which are those of layer "
                    f"{layers[tied[0]].tied}, transposed; name that layer"
                )
        placed.append(Placed(option, where))
    return tuple(placed)


def check_penalties(penalties: tuple[Placed, ...], layers: tuple[Layer, ...], n_encoder: int) -> None:
    for kind in (options.Laplacian, options.SVDProjector):
        if sum(isinstance(p.option, kind) for p in penalties) > 1:
            raise ValueError(f"penalties has more than one {kind.__name__}; add their strengths up in one")
    for option, where in ((p.option, p.layers) for p in penalties):
        if isinstance(option, options.KLSparsity):
            for i in where:
                row = layers[i].activation._row
                if row is None or row.low < 0 or row.high > 1 or layers[i].residual:
                    name = layers[i].activation.name
                    reach = "" if row is None else f" with range [{row.low:g}, {row.high:g}]"
                    raise ValueError(
                        f"KLSparsity needs activities in [0, 1]; layer {i} has activation {name!r}{reach}; use "
                        "code_activation='sigmoid' (or a sigmoid there) or an L1 penalty on the activity"
                    )
        elif isinstance(option, options.Contractive) and option.method == "exact" and not exact_contraction(
            layers, n_encoder
        ):  # fmt: skip
            raise ValueError(
                "Contractive(method='exact') needs an encoder of one layer without normalisation, maxout or skip "
                "connection, and an activation with a second derivative (a registered one with d2y=); use "
                "method='sampled'"
            )
        elif type(option) in options.ACTIVITY_PENALTIES.values() and len(layers) - 1 in where:
            raise ValueError(f"{type(option).__name__} acts on the code or hidden layers, not on the output layer")


def placed_constraints(given: Any, layers: tuple[Layer, ...], n_encoder: int) -> tuple[Placed, ...]:
    """Constraints on their layers. Raises where a layer's cannot all hold, or one's projection would undo another's."""
    placed = place("constraints", given, options.CONSTRAINTS, layers, n_encoder)
    for i in range(len(layers)):
        on = [one.option for one in placed if i in one.layers]
        ranges = [option for option in on if isinstance(option, options.WeightRange)]
        least = [0.0] if any(isinstance(option, options.NonNegative) for option in on) else []
        low = max([*least, *(option.low for option in ranges)], default=-math.inf)
        high = min((option.high for option in ranges), default=math.inf)
        if low > high:
            raise ValueError(
                f"constraints contradict each other: no weight of layer {i} satisfies them all; drop one, or put them "
                "on different layers by OnLayers"
            )
        if not low <= 0 <= high and any(isinstance(option, options.MaxNorm) for option in on):
            raise ValueError(
                f"constraints contradict each other: MaxNorm draws the weights of layer {i} towards 0, and the others "
                f"keep them in [{low:g}, {high:g}]; drop one, or choose a range with 0 in it"
            )
    return placed


def exact_contraction(layers: tuple[Layer, ...], n_encoder: int) -> bool:
    """Whether the encoder's Jacobian has the closed form a'(z) W."""
    first = layers[0]
    row = first.activation._row
    return n_encoder == 1 and first.norm is None and not first.residual and row is not None and row.d2y is not None


def _per_layer(name: str, value: Any, n: int, one: Any) -> tuple[Any, ...]:
    """``one(value)`` for each of n hidden layers, or for each item of a sequence of n."""
    if not isinstance(value, (list, tuple)):
        return (one(value),) * n
    if len(value) != n:
        raise ValueError(f"{name}={value!r} must be one value, or one for each of the {n} hidden layers")
    return tuple(one(item) for item in value)


def hidden_settings(n: int, activation: Any, dropout: Any, normalization: Any) -> tuple[tuple[Any, ...], ...]:
    """Activations, dropout rates and normalisations of n hidden layers."""
    settings = (
        _per_layer("activation", activation, n,
                   lambda a: options.choose("activation", a, options.LAYER_ACTIVATIONS)),
        _per_layer("dropout", dropout, n, lambda r: number("dropout", r, 0.0, 1.0, "left")),
        _per_layer("normalization", normalization, n,
                   lambda n: None if n is None else options.choose("normalization", n, options.NORMALIZATIONS)),
    )  # fmt: skip
    for name, value in (("dropout", dropout), ("normalization", normalization)):
        if n == 0 and value not in (0, None, (), []):
            raise ValueError(f"{name}={value!r} is for hidden layers, and there are none; give hidden_layer_sizes")
    return settings


def _tied(encoder: tuple[Layer, ...], decoder: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Decoder layers that use the encoder's weights transposed."""
    if [(layer.n_out, layer.n_in) for layer in encoder[::-1]] != [(layer.n_in, layer.n_out) for layer in decoder]:
        raise ValueError("tied_weights=True needs a mirrored decoder; leave decoder_layer_sizes at None")
    if any(layer.pieces > 1 for layer in encoder + decoder):
        raise ValueError("tied_weights=True cannot go with maxout layers, whose weights have no transpose; untie them")
    last = len(encoder) - 1
    return tuple(dataclasses.replace(layer, tied=last - i) for i, layer in enumerate(decoder))


def dense_network(
    n_features: int,
    *,
    n_components: int,
    hidden_layer_sizes: Any = (),
    decoder_layer_sizes: Any = None,
    activation: Any = "relu",
    code_activation: Any = "auto",
    output_activation: Any = "identity",
    loss: Any = "squared_error",
    reduction: str = "mean",
    dropout: Any = 0.0,
    normalization: Any = None,
    skip_connections: bool = False,
    tied_weights: bool = False,
    noise: Any = None,
    penalties: Any = (),
    constraints: Any = (),
    solver: Any = "adam",
    missing: Any = None,
    input_transform: Any = None,
) -> Network:
    """The network of an `Autoencoder`, from its parameters.

    ``activation``, ``dropout`` and ``normalization`` are one value for all hidden layers or one per hidden layer,
    encoder's first.
    """
    n_components = number("n_components", n_components, 1, 2**26, integer=True)
    hidden = sizes("hidden_layer_sizes", hidden_layer_sizes)
    mirrored = hidden[::-1] if decoder_layer_sizes is None else sizes("decoder_layer_sizes", decoder_layer_sizes)
    n_hidden = len(hidden) + len(mirrored)
    skip_connections, tied_weights = flag("skip_connections", skip_connections), flag("tied_weights", tied_weights)
    inner, rates, norms = hidden_settings(n_hidden, activation, dropout, normalization)
    if isinstance(code_activation, str) and code_activation == "auto":
        code_activation = "identity" if hidden or isinstance(activation, (list, tuple)) else activation
    code = options.choose("code_activation", code_activation, options.LAYER_ACTIVATIONS)
    loss = choose_loss(loss)
    if reduction not in ("mean", "sum"):
        raise unknown("reduction", reduction, ("mean", "sum"))

    def chain(widths: tuple[int, ...], first: int, last: Any) -> tuple[Layer, ...]:
        layers = []
        for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:-1], strict=False), first):
            residual = skip_connections and n_in == n_out
            layers.append(Layer(n_in, n_out, inner[i], rates[i], norms[i], residual))
        return (*layers, Layer(widths[-2], widths[-1], last))

    encoder = chain((n_features, *hidden, n_components), 0, code)
    width = output_width(loss, n_features)
    decoder = chain((n_components, *mirrored, width), len(hidden), _output(output_activation, loss))
    if tied_weights and width != n_features:
        raise ValueError(
            f"tied_weights=True cannot go with loss={loss.name!r}, whose network has {width} outputs for {n_features} "
            "features; untie them"
        )
    if tied_weights:
        decoder = _tied(encoder, decoder)
    layers = encoder + decoder
    if skip_connections and not any(layer.residual for layer in layers):
        raise ValueError(
            f"skip_connections=True needs a hidden layer as wide as its input; got widths {n_features}, {hidden}, "
            f"{n_components}, {mirrored}; repeat a width, such as (256, 256)"
        )
    placed = place("penalties", penalties, options.ALL_PENALTIES, layers, len(encoder))
    check_penalties(placed, layers, len(encoder))
    return Network(
        encoder=encoder,
        decoder=decoder,
        loss=loss,
        reduction=reduction,
        noise=None if noise is None else options.choose("noise", noise, options.NOISES),
        penalties=placed,
        constraints=placed_constraints(constraints, layers, len(encoder)),
        solver=options.choose("solver", solver, options.ALL_SOLVERS),
        missing=missing_mark(missing, loss),
        input_transform=transform_of_input(input_transform),
    )


__all__ = ["Layer", "Network", "dense_network", "several", "sizes"]
