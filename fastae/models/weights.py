"""A network's arrays: between fitted attributes, plans' memory and model files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np

from ..plan.plan import Plan
from ..spec.network import Layer, Network

Weights = list[tuple[np.ndarray, np.ndarray]]
Norms = list[dict[str, np.ndarray] | None]
Arrays = tuple[Weights, Norms]


T = TypeVar("T", Weights, Norms)


class Changeable(Generic[T]):
    """A fitted attribute whose arrays may be changed in place, though compiled plans hold copies of them.

    Who asks for it may change it, so the plans are forgotten and the next call makes them anew. An array that somebody
    kept from before is read-only then (`lock`): a change that plans would not see is an error.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: Any = None) -> T:
        if model is None:
            return self  # type: ignore[return-value]
        if self.name not in model.__dict__:
            raise AttributeError(f"{type(model).__name__!r} object has no attribute {self.name!r}")
        value: T = model.__dict__[self.name]
        model._forget_compiled()
        lock(value, False)
        return value

    def __set__(self, model: Any, value: T) -> None:
        model.__dict__[self.name] = value
        model._forget_compiled()


def lock(value: Any, locked: bool = True) -> None:
    """Makes the arrays of layers read-only, or writeable again where whoever has their memory allows that."""
    for array in _arrays(value):
        with suppress(ValueError):
            array.flags.writeable = not locked


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Owners before their views, as numpy wants it."""
    for layer in value:
        for array in layer.values() if isinstance(layer, dict) else layer or ():
            if isinstance(array, np.ndarray):
                yield array


def norm_names(layer: Layer) -> list[str]:
    """Arrays of a layer's normalisation: gamma, beta, and running mean, var of batch normalisation."""
    return [name for name, _, _ in (*layer.parameters, *layer.statistics) if name not in "wb"]


def initial_norms(network: Network) -> Norms:
    """gamma and var 1, beta and mean 0."""
    return [
        {name: (np.ones if name in ("gamma", "var") else np.zeros)(layer.n_units) for name in norm_names(layer)} or None
        for layer in network.layers
    ]


def write(plan: Plan, spaces: list[np.ndarray], network: Network, weights: Weights, norms: Norms) -> None:
    """Copies the arrays into a plan's parameters."""
    for i, (layer, (w, b), norm) in enumerate(zip(network.layers, weights, norms, strict=True)):
        if layer.tied is None:
            plan.view(spaces, f"w{i}")[...] = w
        plan.view(spaces, f"b{i}")[...] = b
        for name, array in (norm or {}).items():
            plan.view(spaces, f"{name}{i}")[...] = array


def read(plan: Plan, spaces: list[np.ndarray], network: Network, dtype: Any) -> tuple[Weights, Norms]:
    """Copies of a plan's parameters in a dtype of their own; a tied layer's W is a view of its owner's."""
    weights: Weights = []
    norms: Norms = []
    for i, layer in enumerate(network.layers):
        w = plan.view(spaces, f"w{i}").astype(dtype) if layer.tied is None else weights[layer.tied][0].T
        weights.append((w, plan.view(spaces, f"b{i}")[0].astype(dtype)))
        norms.append({name: plan.view(spaces, f"{name}{i}")[0].astype(dtype) for name in norm_names(layer)} or None)
    return weights, norms


def n_parameters(network: Network) -> int:
    """Trainable numbers."""
    return sum(rows * columns for layer in network.layers for _, rows, columns in layer.parameters)


def tensors(network: Network, weights: Weights, norms: Norms) -> dict[str, np.ndarray]:
    """The arrays by the names that model files give them."""
    named: dict[str, np.ndarray] = {}
    for i, (layer, (w, b), norm) in enumerate(zip(network.layers, weights, norms, strict=True)):
        if layer.tied is None:
            named[f"w{i}"] = w
        named[f"b{i}"] = b
        named |= {f"{name}{i}": array for name, array in (norm or {}).items()}
    return named


def from_tensors(network: Network, named: dict[str, np.ndarray]) -> tuple[list[tuple[Any, Any]], Norms]:
    """(W, b) pairs and normalisations from a model file; KeyError or ValueError where they do not fit."""
    pairs: list[tuple[Any, Any]] = []
    norms: Norms = []
    for i, layer in enumerate(network.layers):
        w = named[f"w{i}"] if layer.tied is None else pairs[layer.tied][0].T
        pairs.append((w, named[f"b{i}"]))
        norm = {name: np.array(named[f"{name}{i}"]) for name in norm_names(layer)}
        for name, array in norm.items():
            if array.shape != (layer.n_units,) or not np.isfinite(array).all() or (name == "var" and (array < 0).any()):
                raise ValueError(f"{name}{i} has shape {array.shape} or values that do not fit {layer.n_units} units")
        norms.append(norm or None)
    return pairs, norms
