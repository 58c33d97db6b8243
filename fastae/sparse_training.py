"""Training of sparse autoencoders: steps over streams of blocks, checkpoints, resampling.

Every step is a function of (seed, epoch, number of the step) and the rows, so neither threads nor the cutting into
blocks nor an interruption changes a bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import HostRows, on_device
from .exceptions import NonFiniteLossError
from .initializers import philox_key
from .plan import schema
from .plan.plan import Job, Plan, Source
from .plan.sparse import L0, LOSS, OTHER, OVERFLOW, VARIANCE, Scalars, capacity_of, scalars_of, sparse_training_plan
from .spec.sparse import Resample, SparseNetwork
from .training import Block, Settings, State, ahead, step_scalars, steps_seen

_KEEP_STEPS = 100  # between copies of the weights, for when a loss is not finite


@dataclass
class Totals:
    """Sums over the steps of an epoch so far, weighted by rows. error: of the squared errors, whatever the loss is."""

    rows: int = 0
    loss: float = 0.0
    other: float = 0.0
    l0: float = 0.0
    variance: float = 0.0
    error: float = 0.0

    def add(self, values: np.ndarray, rows: np.ndarray, normalized: bool) -> None:
        for step, n in zip(values, rows, strict=True):  # one by one: sums must not depend on how steps are cut
            self.rows += int(n)
            self.loss += float(step[LOSS] * n)
            self.other += float(step[OTHER] * n)
            self.l0 += float(step[L0] * n)
            self.variance += float(step[VARIANCE] * n)
            self.error += float(step[LOSS] * (step[VARIANCE] if normalized else 1.0) * n)


@dataclass
class SparseHistory:
    """Means over each epoch: objective, active latents a row, unexplained part of variance; dead part at its end."""

    loss: list[float] = field(default_factory=list)
    l0: list[float] = field(default_factory=list)
    fvu: list[float] = field(default_factory=list)
    dead: list[float] = field(default_factory=list)


@dataclass
class Position:
    """How far a training has come beyond what `State` says: steps done of the epoch, room of a code, sums so far."""

    step: int = 0
    capacity: int | None = None
    totals: Totals = field(default_factory=Totals)

    def begin(self) -> None:
        """At the beginning of an epoch."""
        self.step, self.totals = 0, Totals()


class Trainer:
    """A plan with its memory that goes through blocks of rows.

    ``spaces`` of the state are those of the plan; a code that finds no room makes a new plan with more.
    """

    def __init__(
        self, backend: Any, network: SparseNetwork, dtype: np.dtype, batch: int, settings: Settings,
        state: State | None = None, position: Position | None = None, steps_per_epoch: int | None = None,
        resample: Resample | None = None, sum_scale: float = 1.0, bf16: int = 0,
    ):  # fmt: skip
        self.backend, self.network, self.dtype, self.batch = backend, network, dtype, batch
        self.settings, self.steps_per_epoch, self.resample = settings, steps_per_epoch, resample
        self.position = Position() if position is None else position
        self.sum_scale = sum_scale  # of the loss in VARIANCE's units
        self.bf16 = bf16  # as of the plan
        # parameters may have changed since: never less room than the codes of now take
        self._plan(min(network.n_components, max(self.position.capacity or 0, capacity_of(network, batch))))
        self.state = State(self.backend.allocate(self.plan)) if state is None else state
        self.history = SparseHistory()
        self.kept: Any = None
        self.kept_at = 0
        self.rates: Scalars = scalars_of(network)

    def _plan(self, capacity: int) -> None:
        self.position.capacity = capacity
        self.plan: Plan = sparse_training_plan(self.network, self.dtype, self.batch, capacity, bf16=self.bf16)
        self.handle = self.backend.compile(self.plan)

    def view(self, name: str) -> np.ndarray:
        return self.plan.view(self.state.spaces, name)

    # ---- steps ---

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole training, None where the number of rows is not known."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.settings.max_iter

    def scalars(self, n_steps: int) -> np.ndarray:
        """(n_steps, plan.n_scalars) of the next steps: rate, the rule's constants, k, the penalty's strength."""
        state, network = self.state, self.network
        per_epoch = self.steps_per_epoch or max(1, self.position.step + n_steps)
        fractions = (self.position.step + np.arange(n_steps)) / per_epoch
        columns = step_scalars(self.settings, state, n_steps, fractions)
        done = (state.epochs - state.first_epoch) * per_epoch + self.position.step + np.arange(n_steps)
        progress = done / max(1, (self.total_steps or per_epoch) - 1)
        out = np.empty((n_steps, self.plan.n_scalars))
        out[:, : columns.shape[1]] = columns
        if self.rates.k >= 0:
            option = network.selection
            first, last, part = option.k_start, option.k, option.k_anneal  # type: ignore[attr-defined]
            left = np.clip(1.0 - progress / part, 0.0, 1.0) if part > 0 else np.zeros(n_steps)
            out[:, self.rates.k] = np.round(last + (first - last) * left)
        if self.rates.strength >= 0:
            part = network.sparsity.warmup  # type: ignore[attr-defined]
            out[:, self.rates.strength] = np.minimum(progress / part, 1.0) if part > 0 else 1.0
        if self.rates.decay >= 0:  # so that an average forgets where it began: it is of the last ninth of the steps
            steps = state.steps + np.arange(n_steps)
            out[:, self.rates.decay] = (1.0 + steps) / (10.0 + steps)
        return out

    def run(self, block: Block, first: int, n_steps: int) -> None:
        """Steps ``first`` … of a block."""
        n_rows = block.n_rows
        while n_steps:
            values = np.zeros((n_steps, self.plan.n_values))
            job = Job(
                self.state.spaces, block.sources, n_rows, block.order, first, n_steps, scalars=self.scalars(n_steps),
                values=values, seed=self.settings.seed, epoch=self.state.epochs, n_threads=self.settings.n_threads,
            )  # fmt: skip
            try:
                done = self.backend.run(self.handle, job)
            except BaseException:  # Ctrl-C
                self._count(values[: steps_seen(values)], first, n_rows)
                raise
            self._count(values[:done], first, n_rows)
            first, n_steps = first + done, n_steps - done
            if n_steps:
                self.more_room(values[done])

    def _count(self, values: np.ndarray, first: int, n_rows: int) -> None:
        """Takes the values (steps, n) of steps ``first`` … of a block in, which were done."""
        starts = (first + np.arange(len(values))) * self.batch
        counts = np.minimum(self.batch, n_rows - starts).astype(np.float64)
        self.position.totals.add(values, counts, self.network.loss == "normalized")
        self.state.steps += len(values)
        self.position.step += len(values)

    def more_room(self, values: np.ndarray) -> None:
        """After a step that could not be done: a plan with room for more entries, or the error."""
        capacity, n = self.position.capacity or 0, self.network.n_components
        if values[OVERFLOW] != np.inf or capacity >= n:
            raise NonFiniteLossError(
                f"loss became NaN or infinite in epoch {self.state.epochs + 1}, step {self.position.step + 1}; the "
                "last good weights were kept; lower learning_rate, scale X (normalization='scale'), or set the "
                "solver's clip_norm"
            )
        self._plan(min(n, 2 * capacity))
        self.state.spaces = self.state.spaces.with_arena(self.plan)

    # ---- epochs ---

    def epoch(self, blocks: Iterator[Block], stop: Callable[[int], int], between: Callable[[], None]) -> None:
        """The rest of an epoch: ``blocks`` begin at the position's step.

        stop : step of the whole training → the next one at which ``between`` is to be called, a checkpoint's
        """
        self.keep()
        try:
            for block, placed in ahead(self.backend, blocks, self.placed):
                first, n_steps = 0, -(-block.n_rows // self.batch)
                while first < n_steps:
                    until = min(stop(self.state.steps), self.next_resample(self.state.steps))
                    count = min(n_steps - first, until - self.state.steps)
                    self.run(placed, first, count)
                    first += count
                    if self.state.steps == self.next_resample(self.state.steps - 1):
                        self.revive(block, (first - 1) * self.batch)
                        self.agree()
                    between()
                self.keep()
            if not self.finite():
                raise NonFiniteLossError(
                    f"weights became NaN or infinite in epoch {self.state.epochs + 1}; lower learning_rate or set the "
                    "solver's clip_norm"
                )
        except NonFiniteLossError:
            self.put_back()
            raise
        self.finish_epoch()

    def placed(self, block: Block) -> Block:
        """A block where steps read it best."""
        return block._replace(sources=self.backend.place(block.sources))

    # ---- the last weights that were good ---

    def finite(self) -> bool:
        return self.state.spaces.finite(self.backend, self.plan, "theta", self.settings.n_threads)

    def keep(self) -> None:
        """Copies the weights aside, every hundred steps or so, when they are finite."""
        if self.kept is not None and self.state.steps < self.kept_at + _KEEP_STEPS:
            return
        if self.kept is None or self.finite():
            self.kept = self.state.spaces.snapshot(schema.THETA, self.kept)
        self.kept_at = self.state.steps

    def put_back(self) -> None:
        """After a loss that is not finite: the weights kept aside, as those now led to it."""
        if self.kept is None:
            return
        self.state.spaces.restore(schema.THETA, self.kept)
        self.state.spaces.zero(schema.STATE)  # it may hold infinities too
        self.state.steps = self.kept_at = 0
        self.position.begin()

    def finish_epoch(self) -> None:
        t, history = self.position.totals, self.history
        rows = max(t.rows, 1)
        history.loss.append((t.loss + t.other) / rows)
        history.l0.append(t.l0 / rows)
        history.fvu.append(self.fvu())
        history.dead.append(self.dead_fraction())
        self.position.begin()
        self.state.epochs += 1

    def fvu(self) -> float:
        """Of the epoch so far. Where nothing varies as `metrics` has it: 0 of an exact reconstruction, else 1.

        NaN where it cannot be told: the cosine loss has no squared error, the normalized one is 0 where nothing varies.
        """
        t = self.position.totals
        if t.variance > 0:
            return t.error / (self.sum_scale * t.variance)
        return float(t.loss > 0) if self.network.loss == "squared_error" and t.rows else np.nan

    def dead_fraction(self) -> float:
        return float((self.state.spaces.peek(self.plan, "since") >= self.network.dead_after).mean())

    # ---- dead latents begin anew ---

    def next_resample(self, steps: int) -> int:
        """The first step after ``steps`` that ends with a resampling; far away for none."""
        never = 2**62
        if self.resample is None or self.total_steps is None:
            return never
        step = (steps // self.resample.every + 1) * self.resample.every
        return step if step <= self.resample.until * self.total_steps else never

    def revive(self, block: Block, start: int) -> None:
        """Resampling after Bricken et al. (2023), on the rows of a batch, which begins at ``start``."""
        assert self.resample is not None
        dead = np.flatnonzero(self.view("since")[0] >= self.network.dead_after)
        if not len(dead):
            return
        rng = np.random.Generator(np.random.Philox(key=philox_key(self.settings.seed, self.state.steps)))
        x, error = residuals(self, block.sources, block.places(start, self.batch))
        with np.errstate(over="ignore"):
            square = (error * error).sum(axis=1) ** 2
        if not 0 < square.sum() < np.inf:  # nothing to learn; or weights on their way to infinity, as a loss will say
            return
        drawn = x[rng.choice(len(x), len(dead), p=square / square.sum())]
        norm = np.linalg.norm(drawn, axis=1, keepdims=True)
        direction = np.divide(drawn, norm, out=np.zeros_like(drawn), where=norm > 0)
        encoder, decoder = self.view("encoder"), self.view("decoder")
        alive = np.setdiff1d(np.arange(len(encoder)), dead)
        mean = np.linalg.norm(encoder[alive].astype(np.float64), axis=1).mean() if len(alive) else 1.0
        changed = [("encoder", direction * mean * self.resample.scale)]
        if decoder.shape[1] == direction.shape[1]:
            changed.append(("decoder", direction))
        changed += [(name, 0.0) for name, rows, _ in self.network.parameters if name.endswith("_bias") and rows == 1
                    and name != "decoder_bias"]  # fmt: skip
        for name, value in changed:
            array = self.view(name)
            target = array[dead] if len(array) > 1 else array[:, dead]
            target[...] = value
            if len(array) > 1:
                array[dead] = target
            else:
                array[:, dead] = target
            self._forget_moments(name, dead)
        self.view("since")[0, dead] = 0

    def agree(self) -> None:
        """What was changed between steps is rank 0's on all ranks, where gradients are shared."""
        share = getattr(self.backend, "share", None)
        if share is not None:
            share(self.state.spaces)

    def _forget_moments(self, name: str, latents: np.ndarray) -> None:
        """Zeroes the rule's states of some latents of a parameter."""
        buffer = self.plan.buffers[self.plan.index[name]]
        first = buffer.offset // self.dtype.itemsize
        for state in self.network.solver._row.states:
            flat = self.view(f"state_{state}")[0, first : first + buffer.rows * buffer.columns]
            moments = flat.reshape(buffer.rows, buffer.columns)
            if buffer.rows > 1:
                moments[latents] = 0.0
            else:
                moments[0, latents] = 0.0


def residuals(trainer: Trainer, sources: tuple[Source, ...], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoder's input and reconstruction error of some rows, float64, in the units of the data."""
    from .plan.sparse import sparse_inference_plan

    plan = sparse_inference_plan(trainer.network, trainer.dtype, part="reconstruct", bf16=trainer.bf16)
    spaces = plan.allocate()
    spaces[schema.THETA] = trainer.state.spaces[schema.THETA]
    out = np.empty((len(rows), trainer.network.n_targets), trainer.dtype)
    job = Job([*spaces, out], sources, len(rows), rows.astype(np.int64), n_steps=-(-len(rows) // plan.batch),
              phases=schema.PREPARE | schema.GRADIENT, n_threads=trainer.settings.n_threads)  # fmt: skip
    trainer.backend.run(trainer.backend.compile(plan), job)
    x = dense_rows(sources[0], rows)
    target = dense_rows(sources[1], rows) if trainer.network.transcoder else x
    centre = trainer.view("decoder_bias").astype(np.float64) if trainer.network.pre_bias else 0.0
    return x - centre, target - out.astype(np.float64)


def dense_rows(source: Source, rows: np.ndarray) -> np.ndarray:
    """Some rows of a source as float64."""
    if source.indptr is None:
        data = HostRows(source.data) if on_device(source.data) else source.data
        return np.asarray(data[rows], dtype=np.float64)
    from scipy.sparse import csr_array

    shape = (source.n_rows, source.columns)
    return csr_array((source.data, source.indices, source.indptr), shape)[rows].toarray().astype(np.float64)


class Progress:
    """tqdm's bar over rows, with what matters of a sparse code."""

    def __init__(self, verbose: int, trainer: Trainer, n_rows: int | None):
        """n_rows : of the source, or None"""
        self.bar: Any = None
        self.seen, self.last = trainer.position.totals.rows, time.perf_counter()
        if verbose:
            from tqdm.auto import tqdm

            done = (n_rows or 0) * trainer.state.epochs + self.seen  # by the training that is gone on with
            total = None if n_rows is None else n_rows * trainer.settings.max_iter
            self.bar = tqdm(total=total, initial=done, unit="row", unit_scale=True)

    def show(self, trainer: Trainer) -> None:
        """In an epoch, now and then: its sums so far."""
        if self.bar is None or time.perf_counter() - self.last < 0.2:
            return
        self.last = time.perf_counter()
        t = trainer.position.totals
        rows = max(t.rows, 1)
        self._say(trainer.state.epochs + 1, t.rows, (t.loss + t.other) / rows, trainer.fvu(), t.l0 / rows,
                  trainer.dead_fraction())  # fmt: skip

    def epoch(self, trainer: Trainer, rows: int) -> None:
        """At the end of one, which had so many rows: what the history says of it."""
        if self.bar is not None:
            h = trainer.history
            self._say(trainer.state.epochs, rows, h.loss[-1], h.fvu[-1], h.l0[-1], h.dead[-1])
        self.seen = 0

    def _say(self, epoch: int, rows: int, loss: float, fvu: float, l0: float, dead: float) -> None:
        self.bar.update(rows - self.seen)
        self.seen = rows
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix(loss=f"{loss:.4g}", FVU=f"{fvu:.4f}", L0=f"{l0:.1f}", dead=f"{100 * dead:.1f} %")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
