"""Learning-rate schedules: functions of the epoch, whose fraction counts its steps.

A schedule gives the learning rates of all steps of an epoch at once. It begins with ``fit``, a warm start's too;
``partial_fit`` goes on in it.

Sources: Loshchilov & Hutter (2017) for cosine with restarts; Smith & Topin (2018) for one-cycle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spec.options import Option, number

_POSITIVE = (0.0, math.inf, "neither")
_NON_NEGATIVE = (0.0, math.inf, "left")


class Schedule(Option):
    """Gives learning rates at fractional epochs."""

    def rates(self, epochs: np.ndarray, total: int) -> np.ndarray:
        """Learning rates (n,), float64, at ``epochs`` (n,), ``total`` of them being planned."""
        raise NotImplementedError

    @property
    def planned(self) -> bool:
        """Whether rates depend on ``total``."""
        return True


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """learning_rate throughout."""

    learning_rate: float = 1e-3
    planned = False
    _intervals = {"learning_rate": _POSITIVE}

    def rates(self, epochs, total):
        return np.full(len(epochs), float(self.learning_rate))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """``learning_rate``, times ``factor`` after every ``every`` epochs."""

    learning_rate: float = 1e-3
    factor: float = 0.1
    every: int = 30
    planned = False
    _intervals = {"learning_rate": _POSITIVE, "factor": (0.0, 1.0, "right"), "every": (1, math.inf, "left")}

    def rates(self, epochs, total):
        return self.learning_rate * self.factor ** np.floor(epochs / self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``learning_rate``, times ``factor`` per epoch, continuously."""

    learning_rate: float = 1e-3
    factor: float = 0.95
    planned = False
    _intervals = {"learning_rate": _POSITIVE, "factor": (0.0, 1.0, "right")}

    def rates(self, epochs, total):
        return self.learning_rate * self.factor**epochs


def _warm(rates: np.ndarray, epochs: np.ndarray, warmup: float) -> np.ndarray:
    return rates * np.minimum(1.0, (epochs + 1e-9) / warmup) if warmup > 0 else rates


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from learning_rate down to ``floor``; a new one begins every ``restart`` epochs (None: never).

    ``warmup`` epochs rise linearly first. A ``floor`` above the rate is an error (ValueError).
    """

    learning_rate: float = 1e-3
    floor: float = 0.0
    restart: float | None = None
    warmup: float = 0.0
    _intervals = {"learning_rate": _POSITIVE, "floor": _NON_NEGATIVE, "restart": _POSITIVE, "warmup": _NON_NEGATIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered("floor", "learning_rate")

    @property
    def planned(self):
        return self.restart is None

    def rates(self, epochs, total):
        length = self.restart or max(total - self.warmup, 1e-9)
        t = np.maximum(epochs - self.warmup, 0.0) / length
        t = t % 1.0 if self.restart else np.minimum(t, 1.0)
        rates = self.floor + 0.5 * (self.learning_rate - self.floor) * (1 + np.cos(np.pi * t))
        return _warm(rates, epochs, self.warmup)


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """Rises linearly to ``learning_rate`` over ``warmup`` epochs, then falls linearly to ``floor`` at the last epoch.

    A ``floor`` above the rate is an error (ValueError).
    """

    learning_rate: float = 1e-3
    warmup: float = 1.0
    floor: float = 0.0
    _intervals = {"learning_rate": _POSITIVE, "warmup": _NON_NEGATIVE, "floor": _NON_NEGATIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered("floor", "learning_rate")

    def rates(self, epochs, total):
        t = np.clip((epochs - self.warmup) / max(total - self.warmup, 1e-9), 0.0, 1.0)
        return _warm(self.learning_rate + t * (self.floor - self.learning_rate), epochs, self.warmup)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Cosine up from learning_rate / 25 to learning_rate in ``rise`` of the epochs, then down to 1e-4 of the start."""

    learning_rate: float = 1e-2
    rise: float = 0.3
    _intervals = {"learning_rate": _POSITIVE, "rise": (0.0, 1.0, "neither")}

    def rates(self, epochs, total):
        start = self.learning_rate / 25
        t = np.clip(epochs / max(total, 1), 0.0, 1.0)
        up = 0.5 * (1 - np.cos(np.pi * np.minimum(t / self.rise, 1.0)))
        down = 0.5 * (1 + np.cos(np.pi * np.maximum(t - self.rise, 0.0) / (1 - self.rise)))
        end = start * 1e-4
        return np.where(t < self.rise, start + (self.learning_rate - start) * up,
                        end + (self.learning_rate - end) * down)  # fmt: skip


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Times ``factor`` when the loss has not improved for more than ``patience`` epochs, not below ``floor``.

    A learning_rate below ``floor`` stays as it is.
    """

    learning_rate: float = 1e-3
    factor: float = 0.5
    patience: int = 5
    floor: float = 1e-6
    planned = False
    _intervals = {"learning_rate": _POSITIVE, "factor": (0.0, 1.0, "neither"), "patience": (0, math.inf, "left"),
                  "floor": _NON_NEGATIVE}  # fmt: skip
    _integers = ("patience",)

    def rates(self, epochs, total):
        return np.full(len(epochs), float(self.learning_rate))

    def reduced(self, losses: list[float], learning_rate: float) -> float:
        """The next epoch's rate, from all epochs' losses and the last epoch's rate."""
        since = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
        if since > 0 and since % (self.patience + 1) == 0:
            return min(learning_rate, max(self.floor, learning_rate * self.factor))
        return learning_rate


def schedule(value: Any) -> Schedule:
    """A schedule from a ``value`` that is one, or a positive number. Raises ValueError or TypeError for others."""
    if isinstance(value, Schedule):
        return value
    try:
        return ConstantRate(number("learning_rate", value, 0.0, math.inf, "neither"))
    except TypeError:
        raise TypeError(
            f"learning_rate={value!r} must be a number or a schedule, such as fastae.Cosine(1e-3)"
        ) from None
