"""The network of an `AutoencoderClassifier`: encoder layers and a softmax head."""

from __future__ import annotations

from typing import Any

from . import options
from .network import (
    Layer,
    Network,
    check_penalties,
    hidden_settings,
    missing_mark,
    place,
    placed_constraints,
    sizes,
    transform_of_input,
)
from .options import flag


def classifier_network(
    n_features: int,
    n_classes: int,
    *,
    hidden_layer_sizes: Any,
    activation: Any = "relu",
    dropout: Any = 0.0,
    normalization: Any = None,
    skip_connections: bool = False,
    noise: Any = None,
    input_transform: Any = None,
    missing: Any = None,
    penalties: Any = (),
    constraints: Any = (),
    solver: Any = "adam",
) -> Network:
    """Hidden layers as the encoder, a softmax over the classes as the decoder, −Σ_c t_c log softmax(z)_c as the loss.

    The targets, one-hot rows (N, n_classes), are source 1.
    """
    widths = (n_features, *sizes("hidden_layer_sizes", hidden_layer_sizes))
    n = len(widths) - 1
    if n == 0:
        raise ValueError(
            "hidden_layer_sizes=() leaves no layer to learn features with; give at least one width, or use "
            "scikit-learn's LogisticRegression"
        )
    skip_connections = flag("skip_connections", skip_connections)
    activations, rates, norms = hidden_settings(n, activation, dropout, normalization)
    encoder = tuple(
        Layer(widths[i], widths[i + 1], activations[i], rates[i], norms[i],
              skip_connections and widths[i] == widths[i + 1])
        for i in range(n)
    )  # fmt: skip
    if skip_connections and not any(layer.residual for layer in encoder):
        raise ValueError(
            f"skip_connections=True needs a hidden layer as wide as its input; got widths {widths}; repeat a width, "
            "such as (256, 256)"
        )
    layers = (*encoder, Layer(widths[-1], n_classes, options.ACTIVATIONS["identity"]()))
    placed = place("penalties", penalties, options.ALL_PENALTIES, layers, n)
    check_penalties(placed, layers, n)
    return Network(
        encoder=encoder,
        decoder=layers[n:],
        loss=options.CategoricalCrossEntropy(),
        reduction="sum",
        noise=None if noise is None else options.choose("noise", noise, options.NOISES),
        penalties=placed,
        constraints=placed_constraints(constraints, layers, n),
        solver=options.choose("solver", solver, options.ALL_SOLVERS),
        n_targets=n_classes,
        missing=missing_mark(missing, None),
        input_transform=transform_of_input(input_transform),
    )


__all__ = ["classifier_network"]
