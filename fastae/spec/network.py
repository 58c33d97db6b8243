"""What a dense autoencoder is: frozen dataclasses, checked once, here."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from . import options
from .options import number, unknown


@dataclass(frozen=True)
class Layer:
    """y = dropout(a(x Wᵀ + b)); W (n_out, n_in)."""

    n_in: int
    n_out: int
    activation: Any
    dropout: float = 0.0


@dataclass(frozen=True)
class Network:
    """Encoder and decoder layers with everything that training needs to know."""

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    loss: options.LossOption
    reduction: str = "mean"
    noise: Any = None
    penalties: tuple[Any, ...] = ()
    constraints: tuple[Any, ...] = ()
    solver: Any = None
    n_targets: int | None = None  # width of targets that are not the input (they come from source 1)

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
    def n_components(self) -> int:
        return self.encoder[-1].n_out

    @property
    def owned_output(self) -> str:
        """The output activation that the loss computes from the last layer's pre-activation, "identity" for none."""
        return "softmax" if self.loss._row is None else self.loss._row.output


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Layer widths as a tuple of positive integers."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={value!r} must be integers, such as (256, 64)")
    try:
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
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name}={values!r} must be one option or a sequence of options") from None


def _output(value: Any, loss: options.LossOption) -> Any:
    """The output activation, checked against the loss; "identity" stands for the one that the loss owns."""
    activation = options.choose("output_activation", value, options.OUTPUT_ACTIVATIONS)
    owned = "softmax" if loss._row is None else loss._row.output
    if owned == "identity" or activation.name in ("identity", owned):
        return activation
    raise ValueError(
        f"loss={loss.name!r} goes with output_activation={owned!r}, which it computes itself; "
        f"got {activation.name!r}; leave output_activation at 'identity' or choose another loss"
    )


def _penalties(values: Any, code: Any) -> tuple[Any, ...]:
    chosen = tuple(options.choose("penalties", p, options.ALL_PENALTIES) for p in several("penalties", values))
    for penalty in chosen:
        if isinstance(penalty, options.KLSparsity):
            row = code._row
            if row.low < 0 or row.high > 1:
                raise ValueError(
                    f"KLSparsity needs a code in [0, 1]; code_activation={row.name!r} gives "
                    f"[{row.low:g}, {row.high:g}]; use code_activation='sigmoid' or an L1 penalty on the activity"
                )
    return chosen


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
    noise: Any = None,
    penalties: Any = (),
    constraints: Any = (),
    solver: Any = "adam",
) -> Network:
    """The network of an `Autoencoder`, from its parameters.

    ``dropout`` is one rate for all hidden layers or one per hidden layer, encoder's first.
    """
    n_components = number("n_components", n_components, 1, 2**26, integer=True)
    hidden = sizes("hidden_layer_sizes", hidden_layer_sizes)
    mirrored = hidden[::-1] if decoder_layer_sizes is None else sizes("decoder_layer_sizes", decoder_layer_sizes)
    inner = options.choose("activation", activation, options.ACTIVATIONS)
    if isinstance(code_activation, str) and code_activation == "auto":
        code = options.ACTIVATIONS["identity"]() if hidden else inner
    else:
        code = options.choose("code_activation", code_activation, options.ACTIVATIONS)
    loss = options.choose("loss", loss, options.ALL_LOSSES)
    if reduction not in ("mean", "sum"):
        raise unknown("reduction", reduction, ("mean", "sum"))
    n_hidden = len(hidden) + len(mirrored)
    if not isinstance(dropout, (list, tuple)):
        dropout = (number("dropout", dropout, 0.0, 1.0, "left"),) * n_hidden
    rates = tuple(dropout)
    if len(rates) != n_hidden:
        raise ValueError(f"dropout={dropout!r} must be one rate, or one for each of the {n_hidden} hidden layers")
    rates = tuple(number("dropout", rate, 0.0, 1.0, "left") for rate in rates)
    encoder_rates, decoder_rates = rates[: len(hidden)], rates[len(hidden) :]

    def chain(widths: tuple[int, ...], layer_rates: tuple[float, ...], last: Any) -> tuple[Layer, ...]:
        layers = []
        for i, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
            final = i == len(widths) - 2
            layers.append(Layer(n_in, n_out, last if final else inner, 0.0 if final else layer_rates[i]))
        return tuple(layers)

    return Network(
        encoder=chain((n_features, *hidden, n_components), encoder_rates, code),
        decoder=chain((n_components, *mirrored, n_features), decoder_rates, _output(output_activation, loss)),
        loss=loss,
        reduction=reduction,
        noise=None if noise is None else options.choose("noise", noise, options.NOISES),
        penalties=_penalties(penalties, code),
        constraints=tuple(
            options.choose("constraints", c, options.CONSTRAINTS) for c in several("constraints", constraints)
        ),
        solver=options.choose("solver", solver, options.SOLVERS),
    )


def target_range(network: Network) -> tuple[float, float]:
    """The interval that the loss's targets must lie in."""
    if network.loss._row is None:
        return 0.0, float("inf")
    return network.loss._row.target_low, network.loss._row.target_high


__all__ = ["Layer", "Network", "dense_network", "several", "sizes", "target_range"]
