"""Records of losses, and the output activations that go with them."""

from __future__ import annotations

from typing import Any

from ..spec import options
from ..spec.network import Network
from . import schema


def loss_attributes(loss: Any, network: Network) -> dict[str, Any]:
    attributes: dict[str, Any]
    if loss._row is None:
        attributes = {"loss": schema.MULTINOMIAL}
    else:
        attributes = {"loss": loss._index}
        attributes |= {f"p{i}": value for i, value in enumerate(options.values(loss))}
    return attributes | {"scale": 1.0 / network.target_width if network.reduction == "mean" else 1.0}


def final_activation(network: Network):
    """Activation of the last layer in plans that end in the loss: identity where the loss owns it."""
    final = network.layers[-1].activation
    return options.ACTIVATIONS["identity"]() if network.owned_output != "identity" else final


def shown_activation(network: Network):
    """Output activation as reconstruct shows it."""
    if network.owned_output == "identity":
        return network.layers[-1].activation
    return options.OUTPUT_ACTIVATIONS[network.owned_output]()
