"""The epoch loop that all estimators share.

One call of the backend per epoch, or per block of rows where these don't lie in memory. The order of the rows is a
function of (seed, epoch), so training depends neither on the number of threads nor on how often it was interrupted
between epochs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from types import CodeType
from typing import Any, NamedTuple, Protocol

import numpy as np

from .exceptions import ModelWarning, NonFiniteLossError
from .plan import schema
from .plan.plan import Job, Plan, Source, Spaces
from .schedules import ReduceOnPlateau, Schedule
from .spec.options import FullBatchOption

SPLIT_EPOCH = 2**32 - 1  # the permutation that chooses the held-out rows


@dataclass
class State:
    """What training carries from call to call: memory, steps and epochs done."""

    spaces: Spaces
    steps: int = 0
    epochs: int = 0
    first_epoch: int = 0  # where the learning-rate schedule began
    learning_rate: tuple[float, float] | None = None  # a schedule's that watches the loss: its own, and the present one


@dataclass(frozen=True)
class EpochInfo:
    """What a callback is told after each epoch, or iteration of a full-batch solver (its learning rate is NaN).

    epoch : epochs done so far
    loss, validation_loss : mean objective of the epoch; loss of the held-out rows, or None
    learning_rate, seconds : of the epoch
    model : the estimator, with its present weights
    metrics : of sparse models "l0", "fvu" and "dead", else None
    """

    epoch: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    seconds: float
    model: Any
    metrics: dict[str, float] | None = None


@dataclass
class History:
    """Losses per epoch, and how training ended."""

    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    best_validation: float = np.inf
    stopped_by: str = "max_iter"


@dataclass
class Settings:
    """How long and how: the part of an estimator's parameters that the loop needs."""

    schedule: Schedule
    rule: Any
    max_iter: int
    seed: int
    n_threads: int
    tol: float = 0.0
    n_iter_no_change: int = 10
    shuffle: bool = True
    callbacks: tuple[Callable[[EpochInfo], object], ...] = ()
    verbose: int = 0


class Block(NamedTuple):
    """Rows that one call of the backend goes through, whole batches but for an epoch's last."""

    sources: tuple[Source, ...]
    n_rows: int
    order: np.ndarray | None = None  # int64; None: rows in sequence

    def places(self, start: int, count: int) -> np.ndarray:
        """Where in the sources the rows from number ``start`` on are, at most ``count`` of them."""
        stop = min(start + count, self.n_rows)
        return np.arange(start, stop) if self.order is None else self.order[start:stop]


class Feed(Protocol):
    """Where the rows of training come from."""

    @property
    def n_rows(self) -> int | None:
        """Of an epoch; None where only reading to the end would tell."""

    def blocks(self, epoch: int) -> Iterator[Block]:
        """The rows of an epoch, in its order."""


@dataclass(frozen=True)
class Held:
    """Rows that lie in memory: an epoch is one block, and its order a permutation of all of them."""

    backend: Any
    settings: Settings
    sources: tuple[Source, ...]
    rows: np.ndarray | None = None  # those to train on, None for all

    @property
    def n_rows(self) -> int:
        return self.sources[0].n_rows if self.rows is None else len(self.rows)

    def blocks(self, epoch: int) -> Iterator[Block]:
        """Rows shuffled by (seed, epoch)."""
        order = self.rows
        if self.settings.shuffle:
            order = self.backend.permutation(self.settings.seed, epoch, self.n_rows)
            order = order if self.rows is None else np.ascontiguousarray(self.rows[order])
        yield Block(self.sources, self.n_rows, order)


def ahead(backend: Any, blocks: Iterator[Any], place: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Blocks, each with the same where steps read it best: on a GPU put there while the one before is worked on."""
    if backend.device == "cpu":
        yield from ((block, block) for block in blocks)
        return

    def take() -> tuple[Any, Any] | None:
        block = next(blocks, None)
        return None if block is None else (block, place(block))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(take)
            yield item


@cache
def _code(text: str) -> CodeType:
    return compile(text, "<step constant>", "eval")


def step_scalars(settings: Settings, state: State, n_steps: int, fractions: np.ndarray | None = None) -> np.ndarray:
    """(n_steps, 1 + constants): the learning rate and the rule's constants of each of the next steps, float64.

    fractions : of the epoch that is done at each step; None: the steps are a whole epoch
    """
    t = np.arange(state.steps + 1, state.steps + n_steps + 1, dtype=np.float64)
    fractions = np.arange(n_steps) / n_steps if fractions is None else fractions
    epochs = state.epochs - state.first_epoch + fractions
    rates = settings.schedule.rates(epochs, settings.max_iter)
    if isinstance(settings.schedule, ReduceOnPlateau):
        rates = np.full(n_steps, _watched_rate(settings.schedule, state))
    row = settings.rule._row
    names = {parameter.name: getattr(settings.rule, parameter.name) for parameter in row.parameters}
    table = np.empty((n_steps, 1 + len(row.step)))
    table[:, 0] = rates
    for column, (_, text) in enumerate(row.step, 1):
        table[:, column] = eval(_code(text), {"__builtins__": {}}, {"lr": rates, "t": t, **names})
    return table


def _add(progress: Callable[[int], object], before: int, steps: int) -> object:
    return progress(before + steps)


def steps_seen(values: np.ndarray) -> int:
    """How many steps a run did that was interrupted: those whose values are not all 0 any more."""
    return int(np.flatnonzero(values.any(axis=1)).max(initial=-1)) + 1


def run_epoch(
    backend: Any, plan: Plan, handle: Any, state: State, feed: Feed, settings: Settings,
    progress: Callable[[int], object] | None = None,
) -> float:  # fmt: skip
    """One pass over the rows; returns the mean objective (loss and penalties). Raises `NonFiniteLossError`.

    progress : called now and then with the number of steps that are done
    """
    per_epoch = None if feed.n_rows is None else -(-feed.n_rows // plan.batch)
    backup = state.spaces.snapshot(schema.THETA)
    objectives: list[np.ndarray] = []
    steps = n_rows = 0

    def fail(where: str) -> NonFiniteLossError:
        state.spaces.restore(schema.THETA, backup)
        state.spaces.zero(schema.STATE)  # it may hold infinities too, and leads to where the loss went
        state.steps = 0
        return NonFiniteLossError(
            f"loss became NaN or infinite in epoch {state.epochs + 1}, {where}; the weights of the epoch's start were "
            "kept; lower learning_rate, scale X, or set the solver's clip_norm"
        )

    def placed(block: Block) -> Block:
        return block._replace(sources=backend.place(block.sources))

    for _, block in ahead(backend, feed.blocks(state.epochs), placed):
        n_steps = -(-block.n_rows // plan.batch)
        values = np.zeros((n_steps, plan.n_values))
        fractions = np.zeros(n_steps) if per_epoch is None else (steps + np.arange(n_steps)) / per_epoch
        job = Job(
            spaces=state.spaces, sources=block.sources, n_rows=block.n_rows, order=block.order, first_row=n_rows,
            n_steps=n_steps, scalars=step_scalars(settings, state, n_steps, fractions), values=values,
            seed=settings.seed, epoch=state.epochs, n_threads=settings.n_threads,
            progress=progress and partial(_add, progress, steps),
        )  # fmt: skip
        # The run ends before the update of a step whose loss is not finite, but weights may have gone wrong before.
        try:
            done = backend.run(handle, job)
        except BaseException:  # Ctrl-C: weights and moments are those after the steps that were done
            state.steps += steps_seen(values)
            raise
        if done < n_steps:
            raise fail(f"batch {steps + done + 1}" + ("" if per_epoch is None else f" of {per_epoch}"))
        steps, n_rows, state.steps = steps + n_steps, n_rows + block.n_rows, state.steps + n_steps
        objectives.append(values.sum(axis=1))
    if progress is not None:  # a short epoch has shown nothing yet
        progress(steps)
    if not state.spaces.finite(backend, plan):
        raise fail("its last update")
    state.epochs += 1
    sizes = np.full(steps, plan.batch, dtype=np.float64)
    sizes[-1] = n_rows - (steps - 1) * plan.batch
    return float((np.concatenate(objectives) * sizes).sum() / n_rows)


def fit(
    backend: Any, plan: Plan, state: State, feed: Feed, settings: Settings, *,
    validate: Callable[[], float] | None = None, model: Any = None, history: History | None = None,
    publish: Callable[[], None] | None = None,
) -> History:  # fmt: skip
    """Trains until ``max_iter`` epochs are done or nothing improves any more; fills and returns ``history``.

    With ``validate`` (mean loss of the held-out rows) the best weights are put back at the end. ``publish`` gives
    ``model`` its present weights before callbacks see it.
    """
    history = History() if history is None else history
    handle = backend.compile(plan)
    with Monitor(settings, state, history, feed.n_rows, plan.batch, validate, model, publish) as monitor:
        for _ in range(settings.max_iter):
            if monitor.epoch(run_epoch(backend, plan, handle, state, feed, settings, monitor.progress)):
                break
    return history


class Monitor:
    """What follows each epoch, whoever made it: held-out rows, history, callbacks, and whether to stop.

    Leaving the context puts the weights back that were best on the held-out rows, when there are any.
    """

    def __init__(
        self, settings: Settings, state: State, history: History, n_rows: int | None, batch: int,
        validate: Callable[[], float] | None, model: Any, publish: Callable[[], None] | None,
    ):  # fmt: skip
        self.settings, self.state, self.history = settings, state, history
        self.validate, self.model, self.publish = validate, model, publish
        self.bar = _Bar(settings, n_rows, batch)
        self.progress = self.bar.progress
        self.best_weights: Any = None
        self.best, self.stale = np.inf, 0
        self.begin = time.perf_counter()

    def epoch(self, loss: float) -> bool:
        """Takes the epoch's loss and the present weights of ``state`` in; returns whether training should stop."""
        settings, state, history = self.settings, self.state, self.history
        history.losses.append(loss)
        validation = None
        watched = loss
        if self.validate is not None:
            watched = validation = self.validate()
            history.validation_losses.append(validation)
            if validation < history.best_validation or self.best_weights is None:
                history.best_validation = validation
                self.best_weights = state.spaces.snapshot(schema.THETA)
        rate = next_rate(settings, state, history)
        info = EpochInfo(state.epochs, loss, validation, rate, time.perf_counter() - self.begin, self.model)
        self.bar.epoch(info)
        # an improvement must be relative to what there is to improve
        improved = watched < self.best - settings.tol * abs(self.best) or not math.isfinite(self.best)
        self.stale = 0 if improved else self.stale + 1
        self.best = min(self.best, watched)
        if settings.callbacks and self.publish is not None:
            self.publish()
        if any([callback(info) for callback in settings.callbacks]):
            history.stopped_by = "callback"
            return True
        if self.stale >= settings.n_iter_no_change:
            history.stopped_by = "tol"
            return True
        self.begin = time.perf_counter()
        return False

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.best_weights is not None:
            self.state.spaces.restore(schema.THETA, self.best_weights)


def next_rate(settings: Settings, state: State, history: History) -> float:
    """The rate of the epoch just done; a schedule that watches the loss decides the next one here.

    NaN for full-batch solvers, whose line search finds the length of each step.
    """
    if isinstance(settings.rule, FullBatchOption):
        return np.nan
    if not isinstance(settings.schedule, ReduceOnPlateau):
        return float(settings.schedule.rates(np.array([state.epochs - state.first_epoch - 1.0]), settings.max_iter)[0])
    rate = _watched_rate(settings.schedule, state)
    following = settings.schedule.reduced(history.validation_losses or history.losses, rate)
    state.learning_rate = settings.schedule.learning_rate, following
    return rate


def _watched_rate(schedule: ReduceOnPlateau, state: State) -> float:
    """The present rate of a schedule that watches the loss: its own at first, and when the user has changed that."""
    own, present = state.learning_rate or (None, 0.0)
    return present if own == schedule.learning_rate else schedule.learning_rate


def warn_at_end(settings: Settings, state: State) -> None:
    """Warns once, of the first epoch that begins with a schedule at its end and a rate too small to change weights."""
    schedule, planned = settings.schedule, max(settings.max_iter, 1)
    if state.epochs - state.first_epoch - 1 != planned:
        return
    rate = float(schedule.rates(np.array([float(planned)]), settings.max_iter)[0])
    if rate <= 1e-4 * getattr(schedule, "learning_rate", 0.0):
        warnings.warn(
            f"learning_rate={schedule!r} came to its end after max_iter={settings.max_iter} epochs: from this call of "
            f"partial_fit on the rate is {rate:g}, and weights hardly change; raise max_iter, or give a number or a "
            "schedule without an end",
            ModelWarning, stacklevel=3,
        )  # fmt: skip


class _Bar:
    """tqdm's bar over rows when ``verbose``, else nothing; Ctrl-C is looked at either way."""

    def __init__(self, settings: Settings, n_rows: int | None, batch: int):
        self.bar = None
        self.batch, self.n_rows, self.seen = batch, n_rows, 0
        self.progress: Callable[[int], object] | None = None
        if settings.verbose:
            from tqdm.auto import tqdm

            total = None if n_rows is None else settings.max_iter * n_rows
            self.bar = tqdm(total=total, unit="row", unit_scale=True)
            self.progress = self._advance

    def _advance(self, steps: int) -> None:
        rows = steps * self.batch if self.n_rows is None else min(steps * self.batch, self.n_rows)
        self.bar.update(rows - self.seen)  # type: ignore[union-attr]
        self.seen = rows

    def epoch(self, info: EpochInfo) -> None:
        if self.bar is not None:
            self.bar.update(0 if self.n_rows is None else self.n_rows - self.seen)
            self.seen = 0
            shown = {"loss": f"{info.loss:.5g}"}
            if info.validation_loss is not None:
                shown["validation"] = f"{info.validation_loss:.5g}"
            self.bar.set_description(f"epoch {info.epoch}", refresh=False)  # the one that the loss is of
            self.bar.set_postfix(shown)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
