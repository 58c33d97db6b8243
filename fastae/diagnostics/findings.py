"""The rules: when a number is worth a word, and what usually helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..plan.plan import Source
from ..spec import options
from ..spec.network import Network
from .measure import FeatureStatistics, LayerStatistics, data_range, reach
from .report import Finding, layer_names

SLACK = 1e-3  # of the data's span by which it may lie outside the output's range
MIN_ROWS = 32  # fewer say little about a unit
MANY_DEAD = 0.5  # share of a layer's units
FEW_UNITS = 8  # layers with fewer are reported only when all their units are dead
SATURATED = 0.9  # share of a layer's outputs at the ends of its range
NO_BETTER = 0.01  # explained variance
LEARNING = 0.01  # relative fall of the loss over the last tenth of the epochs
DOMINANT, MANY_FEATURES = 0.9, 5  # share of the variance in one feature, of as many at least
SPARSITY = (options.KLSparsity, options.Activity, options.ActivityL1)


def out_of_reach(network: Network, source: Source) -> Iterator[Finding]:
    """Data that no weights can make the output activation reach."""
    if network.owned_output != "identity" or network.n_targets is not None:
        return  # the loss itself checks its targets
    activation = network.layers[-1].activation
    low, high = reach(network.layers[-1])
    if low == -np.inf and high == np.inf:
        return
    least, most = data_range(source, network.missing)  # NaN where nothing was observed
    slack = SLACK * (most - least)
    if not (least < low - slack or most > high + slack):
        return
    interval = f"(({low:g}, {high:g}))" if np.isfinite([low, high]).all() else "()"
    span = f"from {low:g} to {high:g}" if high < np.inf else f"of {low:g} and more"
    yield Finding(
        "output_range",
        len(network.layers) - 1,
        f"output_activation={activation.name!r} gives values {span}, but X has values from {least:.4g} to {most:.4g}",
        f"scale X (sklearn.preprocessing.MinMaxScaler{interval}) or use output_activation='identity'",
    )


def layer_findings(
    network: Network, outputs: list[LayerStatistics], n_rows: int, rows_vary: bool, *, thorough: bool
) -> Iterator[Finding]:
    """Dead units and saturation in all layers but the last, whose constant outputs may be constant features.

    Most of a hidden layer's units may be dead at no cost (70 % of a ReLU layer of 128 on MNIST, with the error of
    leaky ReLU); unless ``thorough`` they are reported only where fewer are left than the code has, or in the code
    fewer than there are features.
    """
    if n_rows < MIN_ROWS or not rows_vary:
        return
    code = len(network.encoder) - 1
    # penalties of sparsity push outputs to the lower end on purpose
    sparse = {i for placed in network.penalties if isinstance(placed.option, SPARSITY) for i in placed.layers}
    for i, (name, layer, seen) in enumerate(zip(layer_names(network)[:-1], network.layers, outputs, strict=False)):
        kind, parameter = layer.activation.name, "code_activation" if i == code else "activation"
        at_ends = seen.at_ceiling + (0 if i in sparse else seen.at_floor)
        if at_ends > SATURATED * seen.count:
            yield Finding(
                "saturation", i,
                f"layer {i} ({name}): {at_ends / seen.count:.0%} of the {kind} outputs are at the ends of their "
                "range, where the gradient vanishes",
                f"scale X (sklearn.preprocessing.StandardScaler), lower learning_rate, or choose another {parameter}",
            )  # fmt: skip
        many = layer.n_out >= FEW_UNITS and seen.dead > MANY_DEAD * layer.n_out
        needed = network.n_features if i == code else network.n_components
        costly = thorough or layer.n_out - seen.dead < needed
        if seen.dead == layer.n_out or (many and costly):
            instead = f", use {parameter}='leaky_relu'" if kind == "relu" else ""
            yield Finding(
                "dead_units", i,
                f"layer {i} ({name}): {seen.dead} of {layer.n_out} {kind} units give the same output for each of "
                f"{n_rows} rows",
                f"scale X, lower learning_rate, weaken penalties{instead}, or take fewer units",
            )  # fmt: skip
        if seen.dead == layer.n_out:
            return  # what follows a constant is constant too


def fit_findings(
    model: Any, network: Network, features: FeatureStatistics, explained: float | None
) -> Iterator[Finding]:
    """How far training came, and what the scale of the data does to it."""
    spread = features.spread
    share = float(spread.max() / max(spread.sum(), 1e-300))
    if share > DOMINANT and len(spread) >= MANY_FEATURES and network.owned_output == "identity":
        yield Finding(
            "feature_scale", None,
            f"feature {int(spread.argmax())} has {share:.0%} of the variance, and so of the loss",
            "scale the features alike (sklearn.preprocessing.StandardScaler) unless that is what you want",
        )  # fmt: skip
    unseen = np.flatnonzero(features.counts == 0)
    if len(unseen):
        yield Finding(
            "never_observed", None,
            f"without an observed entry in these rows: {len(unseen)} of {len(spread)} features, {unseen[0]} the first, "
            "of which nothing is learned",
            "leave them out, or give rows that have them",
        )  # fmt: skip
    if still_learning(model.loss_curve_):
        yield Finding("still_learning", None, "the loss was still falling when training ended",
                      "raise max_iter or learning_rate")  # fmt: skip
    if explained is not None and explained < NO_BETTER:
        yield Finding(
            "no_better_than_mean", None,
            f"explained variance is {explained:.3g}: the reconstruction is no better than each feature's mean",
            "train longer, scale X, change learning_rate, or weaken the penalties",
        )  # fmt: skip


def still_learning(curve: list[float]) -> bool:
    """Whether the last tenth of the epochs brought the loss down by more than 1 %."""
    if len(curve) < 2:
        return False
    before = curve[-1 - max(1, len(curve) // 10)]
    return bool(before - curve[-1] > LEARNING * abs(curve[-1]))
