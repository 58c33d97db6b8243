"""Fitting of sparse autoencoders: from rows or streams to fitted attributes, checkpoints on the way."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..exceptions import ModelWarning
from ..plan import schema
from ..plan.plan import aligned_bytes
from ..plan.sparse import sparse_inference_plan
from ..schedules import ReduceOnPlateau, schedule
from ..sparse_training import Position, Progress, SparseHistory, Trainer, dense_rows
from ..spec.options import flag, number, unknown
from ..spec.sparse import Matryoshka, Resample, SparseNetwork
from ..training import EpochInfo, Settings, warn_at_end
from .base import checked_callbacks, seed_of
from .feed import Block, Feed, changes_within_epochs, check_repeatable, check_timing, on_one_side, open_checked
from .ranks import together
from .sparse_start import BIAS_INITIALIZERS, INITIALIZERS, SAMPLE_ROWS, fit_scale, input_scale, start_weights
from .sparse_state import SparseOptimizer, SparseState

_NEVER = 2**62
_TRAINED_STEPS = 100  # fewer are a trial, of which nothing is expected


class SparseFitting(SparseState):
    """Base of `SparseAutoencoder`: fit, partial_fit, files."""

    def fit(
        self, X: Any, y: Any = None, *, checkpoint: Any = None, checkpoint_every: int = 1000, resume: bool = False
    ) -> Self:
        """Trains on the rows of X.

        X : array, sparse matrix or frame (N, p); path of a .npy file, list of such paths; iterable of blocks of rows,
            or a function that returns one (for more than one epoch). float16 and bfloat16 are read as they are, names
            of columns are checked in every block.
        y : targets (N, q) of a transcoder, in the same forms; others ignore it
        checkpoint : file to keep the state of training in, every ``checkpoint_every`` steps and at the end
        resume : bool, whether to go on from ``checkpoint`` where that file exists; the bits are those of a training
            that was not interrupted. The file must be of the same parameters and data; max_iter may have grown, where
            nothing that was done so far depended on it.
        Raises NonFiniteLossError when the loss becomes NaN or infinite; the last good weights are kept, and those of
        the last step after Ctrl-C (KeyboardInterrupt).
        """
        with together(self.backend):
            _check_checkpoint(checkpoint, checkpoint_every, resume)
            with self._unchanged_on_error():
                backend = self._backend()
                feed, dtype, settings = self._open(X, y, backend, reset=True, passes=self.max_iter)
                found = resume and Path(checkpoint).is_file()
                self._stopped = False
                if found:
                    trainer, blocks = self._resumed(checkpoint, feed, dtype, settings, backend)
                else:
                    self.seed_ = settings.seed
                    trainer, blocks = self._begun(feed, dtype, settings, backend)
            self._live = None
            self._train(trainer, feed, blocks, checkpoint, checkpoint_every)
        self._warn_of_target()
        return self

    def _warn_of_target(self) -> None:
        """Warns where an L0 that was asked for was not come near to."""
        option = self.network_.sparsity
        wanted = getattr(option, "target_l0", None)
        if wanted is None or self.t_ < _TRAINED_STEPS or self.l0_curve_[-1] <= 2 * wanted:
            return
        remedy = (
            "train for longer, raise JumpReLU's strength, bandwidth or threshold, take logarithm=False, or give the "
            "fitted model a threshold by calibrate"
        )
        if "quadratic" not in option.penalty_kind:  # type: ignore[attr-defined]
            remedy = f"penalty_kind={option.penalty_kind!r} does not look at it; take 'quadratic'"  # type: ignore[attr-defined]
        warnings.warn(
            f"{self.l0_curve_[-1]:.4g} latents a row were active in the last epoch, where target_l0={wanted:g} was "
            f"wanted, after {self.t_} steps; {remedy}",
            ModelWarning, stacklevel=3,
        )  # fmt: skip

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """One pass over X in batches, going on from the present weights and optimiser state. X, y: as of `fit`."""
        with together(self.backend):
            first = "_arrays" not in self.__dict__
            with self._unchanged_on_error():
                backend = self._backend()
                feed, dtype, settings = self._open(X, y, backend, reset=first, passes=1)
                if first:
                    self.seed_ = settings.seed
                    trainer, blocks = self._begun(feed, dtype, settings, backend)
                else:
                    settings.seed = feed.seed = self.seed_
                    trainer = self._same_trainer(feed, settings, backend)
                    trainer.position.begin()  # a pass that broke off is no part of this one
                    blocks = feed.blocks(trainer.state.epochs, 0)
            try:
                trainer.epoch(blocks, lambda step: _NEVER, lambda: None)
            finally:
                self._finish(trainer)
            self._live = trainer
            warn_at_end(settings, trainer.state)
        return self

    def _same_trainer(self, feed: Feed, settings: Settings, backend: Any) -> Trainer:
        """The trainer of the last ``partial_fit``, which has its memory, or one that goes on where it was."""
        live: Trainer | None = self.__dict__.get("_live")
        if live is None or self._state is None or self._state.memory is not live.state.spaces.share(schema.STATE) or (
            live.backend is not backend or live.batch != feed.batch or live.resample != self.resample
            or live.bf16 != self._bf16
            or live.network != replace(self._same_network(feed), dead_after=live.network.dead_after)
        ):  # fmt: skip
            return self._continued(feed, settings, backend)
        live.settings, live.steps_per_epoch = settings, feed.steps_per_epoch
        return live

    # ---- what the parameters mean ---

    def _settings(self, n_components: int) -> Settings:
        rate = self.learning_rate
        if isinstance(rate, str):
            if rate != "auto":
                raise ValueError(f"learning_rate={rate!r} must be 'auto', a number or a schedule")
            rate = 2e-4 / np.sqrt(n_components / 2**14)
        if isinstance(rate, ReduceOnPlateau):
            raise ValueError(
                f"learning_rate={rate!r} watches the loss of dense models; give a number or another schedule"
            )
        return Settings(
            schedule=schedule(rate), rule=None, max_iter=number("max_iter", self.max_iter, 1, 2**31, integer=True),
            seed=seed_of(self.random_state), n_threads=self._threads(), shuffle=flag("shuffle", self.shuffle),
            callbacks=checked_callbacks(self.callbacks), verbose=self.verbose,
        )  # fmt: skip

    def _batch(self, n_rows: int | None) -> int:
        if isinstance(self.batch_size, str):
            if self.batch_size != "auto":
                raise ValueError(f"batch_size={self.batch_size!r} must be 'auto' or a positive integer")
            if n_rows is None:
                return 4096
            return min(n_rows, 4096, max(64, n_rows // 32))
        batch = number("batch_size", self.batch_size, 1, 2**31 - 1, integer=True)
        return batch if n_rows is None else min(batch, n_rows)

    def _open(self, X: Any, y: Any, backend: Any, *, reset: bool, passes: int) -> tuple[Feed, np.dtype, Settings]:
        rows, dtype, unchecked = open_checked(self, X, reset=reset, backend=backend, precision=self.precision)
        targets = None
        if flag("transcoder", self.transcoder):
            if y is None:
                raise ValueError("transcoder=True learns targets from inputs; give fit(X, Y)")
            from .reconstruction import row_checker

            targets, _, unchecked_y = open_checked(row_checker(type(self).__name__)(), y, reset=True, backend=backend,
                                                   precision=self.precision)  # fmt: skip
            unchecked = unchecked or unchecked_y
            if targets.sequential != rows.sequential:
                raise ValueError(
                    "X and y are shuffled alike only where both are arrays or files, or both are iterables of blocks; "
                    "give them in one form"
                )
            if None not in (targets.n_rows, rows.n_rows) and targets.n_rows != rows.n_rows:
                raise ValueError(f"y has {targets.n_rows} rows, X {rows.n_rows}; give a target for each row")
        rows, targets = on_one_side(rows, targets)
        network = self._network(rows.n_features, None if targets is None else targets.n_features, n_rows=rows.n_rows)
        settings = self._settings(network.n_components)
        settings.rule = network.solver
        if self.initializer not in INITIALIZERS:
            raise unknown("initializer", self.initializer, INITIALIZERS)
        if self.bias_initializer not in BIAS_INITIALIZERS:
            raise unknown("bias_initializer", self.bias_initializer, BIAS_INITIALIZERS)
        if self.resample is not None and not isinstance(self.resample, Resample):
            raise TypeError(f"resample={self.resample!r} must be fastae.Resample(…) or None")
        check_timing(rows, self._timed(network) | {
            f"learning_rate={self.learning_rate!r}": changes_within_epochs(settings.schedule)
        })  # fmt: skip
        check_repeatable(rows, passes)
        feed = Feed(rows, targets, self._batch(rows.n_rows), settings.shuffle, settings.seed, backend, unchecked)
        return feed, dtype, settings

    def _timed(self, network: SparseNetwork) -> dict[str, bool]:
        """What takes parts of the whole training, and whether it is in use."""
        return {
            "resample": self.resample is not None, "warmup": getattr(network.sparsity, "warmup", 0.0) > 0,
            "k_start": getattr(network.selection, "k_start", None) is not None,
        }  # fmt: skip

    # ---- the ways to begin ---

    def _trainer(self, network: SparseNetwork, feed: Feed, dtype: np.dtype, settings: Settings, backend: Any,
                 position: Position | None = None) -> Trainer:  # fmt: skip
        if self._bf16 and dtype != np.float32:
            raise ValueError(
                f"precision={self.precision!r} computes in float32, but the fitted weights are {dtype}; set the "
                "precision back, or call fit"
            )
        scale = 1.0
        if isinstance(network.sparsity, Matryoshka) and network.sparsity.reduction == "mean":
            scale = 1.0 / len(network.groups or (1,))
        return Trainer(backend, network, dtype, feed.batch, settings, position=position, resample=self.resample,
                       steps_per_epoch=feed.steps_per_epoch, sum_scale=scale, bf16=self._bf16)  # fmt: skip

    def _begun(self, feed: Feed, dtype: np.dtype, settings: Settings, backend: Any) -> tuple[Trainer, Iterator[Block]]:
        """A trainer with starting weights, and the blocks of the first epoch."""
        with np.errstate(all="ignore"):  # what overflows here is found in the first loss
            trainer = self._started(feed, dtype, settings, backend, feed.first(0))
        return trainer, feed.blocks(0, 0)

    def _started(self, feed: Feed, dtype: np.dtype, settings: Settings, backend: Any, first: Block) -> Trainer:
        """A trainer with starting weights, made from the first rows."""
        rows = first.places(0, SAMPLE_ROWS)
        x = dense_rows(first.sources[0], rows)
        y = dense_rows(first.sources[1], rows) if self.transcoder else x
        scale = input_scale(x) if self.normalization == "scale" else 1.0
        scale = getattr(backend, "same", float)(scale)  # where ranks train one model, each on rows of its own
        network = self._network(x.shape[1], y.shape[1], n_rows=feed.x.n_rows, input_scale=scale)
        trainer = self._trainer(network, feed, dtype, settings, backend)
        start_weights(network, trainer.view, x, y, settings.seed, self.initializer, self.bias_initializer,
                      settings.n_threads)  # fmt: skip
        trainer.view("batch_threshold")[...] = -1.0
        if network.groups is not None:
            trainer.view("groups")[0] = network.groups
        if not network.transcoder:
            fit_scale(backend, network, dtype, trainer.state.spaces, x, y, self._bf16)
        if network.ema is not None:
            trainer.view("ema")[...] = trainer.view("theta")
        return trainer

    def _continued(self, feed: Feed, settings: Settings, backend: Any, state: SparseOptimizer | None = None) -> Trainer:
        """A trainer that goes on from the fitted weights."""
        state = self._state if state is None else state
        network = self._same_network(feed)
        trainer = self._trainer(network, feed, self._dtype, settings, backend,
                                None if state is None else replace(state.position))  # fmt: skip
        theta = trainer.state.spaces[schema.THETA]
        theta[: len(self._theta)] = self._theta
        if network.ema is not None:
            trainer.view("ema")[...] = trainer.view("theta")
        if state is not None and state.rule == network.solver.name:
            if state.memory.nbytes != trainer.state.spaces[schema.STATE].nbytes:
                raise ValueError("the optimiser's state does not fit the model; call fit")
            trainer.state.spaces[schema.STATE][:] = state.memory
            trainer.view("guess")[...] = state.guess
            if state.raw is not None:
                trainer.view("theta")[...] = state.raw.view(self._dtype)
            trainer.state.steps, trainer.state.epochs = state.steps, state.epochs
            trainer.state.first_epoch = state.first_epoch
        trainer.history = SparseHistory(
            list(self.loss_curve_), list(self.l0_curve_), list(self.fvu_curve_), list(self.dead_curve_)
        )
        return trainer

    def _same_network(self, feed: Feed) -> SparseNetwork:
        old = self.network_
        width = None if feed.y is None else feed.y.n_features
        new = self._network(feed.x.n_features, width, n_rows=feed.x.n_rows, input_scale=old.input_scale)
        if new.parameters != old.parameters or new.sparsity.name != old.sparsity.name:
            raise ValueError("parameters describe another network than the fitted one; undo the change, or call fit")
        return new

    def _resumed(self, path: Any, feed: Feed, dtype: np.dtype, settings: Settings, backend: Any):
        from ..io.model_file import load

        saved = load(path)
        if not isinstance(saved, type(self)) or saved._state is None:
            raise ValueError(f"{os.fspath(path)!r} is no checkpoint of a {type(self).__name__}; give its file")
        left_out = {"callbacks", "random_state", "backend", "n_jobs", "verbose", "device"}
        for name, value in self.get_params(deep=False).items():
            if name in left_out or value == getattr(saved, name):
                continue
            remedy = "set it back, or begin anew without resume"
            if name == "max_iter" and settings.max_iter > saved.max_iter:
                parts = self._timed(saved.network_) | {
                    f"learning_rate={self.learning_rate!r}": settings.schedule.planned
                }
                if not any(parts.values()):
                    continue
                remedy = f"{next(part for part, used in parts.items() if used)} goes by the whole training; {remedy}"
            raise ValueError(
                f"checkpoint {os.fspath(path)!r} was made with {name}={getattr(saved, name)!r}, now it is "
                f"{value!r}; {remedy}"
            )
        now = _fingerprint(feed)
        if saved._data != now:
            raise ValueError(f"checkpoint {os.fspath(path)!r} was made on (rows, width, dtype, hash) {saved._data}, "
                             f"now they are {now}; give the same data")  # fmt: skip
        if saved._dtype != dtype:
            raise ValueError(f"checkpoint {os.fspath(path)!r} is in {saved._dtype}, now {dtype} would be computed in")
        if self.random_state is not None and isinstance(self.random_state, (int, np.integer)) and (
            settings.seed != saved.seed_
        ):  # fmt: skip
            raise ValueError(f"checkpoint {os.fspath(path)!r} was made with random_state={saved.seed_}")
        settings.seed = feed.seed = self.seed_ = saved.seed_
        trainer = saved._continued(feed, settings, backend)
        position = trainer.position
        if trainer.state.epochs >= settings.max_iter or saved._stopped:
            self._stopped = saved._stopped
            return trainer, iter(())
        return trainer, feed.blocks(trainer.state.epochs, position.step)

    # ---- training ---

    def _train(self, trainer: Trainer, feed: Feed, blocks: Iterator[Block], checkpoint: Any, every: int) -> None:
        settings = trainer.settings
        bar = Progress(settings.verbose, trainer, feed.x.n_rows)
        written = -1

        def next_stop(steps: int) -> int:
            return (steps // every + 1) * every if checkpoint is not None else _NEVER

        def between() -> None:
            bar.show(trainer)
            if checkpoint is not None and trainer.state.steps % every == 0:
                save()

        def save() -> None:
            nonlocal written
            if written == trainer.state.steps:
                return
            self._finish(trainer, feed)
            self.save(checkpoint)
            written = trainer.state.steps

        try:
            while trainer.state.epochs < settings.max_iter and not self._stopped:
                begin = time.perf_counter()
                trainer.epoch(blocks, next_stop, between)
                bar.epoch(trainer, feed.passed)
                self._stopped = self._after_epoch(trainer, time.perf_counter() - begin)
                if trainer.state.epochs < settings.max_iter and not self._stopped:
                    blocks = feed.blocks(trainer.state.epochs, 0)
        finally:  # also after Ctrl-C or a loss that is not finite: the model has its last good weights
            bar.close()
            self._finish(trainer, feed)
        if checkpoint is not None:
            written = -1
            save()

    def _after_epoch(self, trainer: Trainer, seconds: float) -> bool:
        """Callbacks; whether one of them ends training."""
        settings, history = trainer.settings, trainer.history
        if not settings.callbacks:
            return False
        self._finish(trainer)
        rate = float(settings.schedule.rates(np.array([trainer.state.epochs - 1.0]), settings.max_iter)[0])
        metrics = {"l0": history.l0[-1], "fvu": history.fvu[-1], "dead": history.dead[-1]}
        info = EpochInfo(trainer.state.epochs, history.loss[-1], None, rate, seconds, self, metrics)
        return any([callback(info) for callback in settings.callbacks])

    def _finish(self, trainer: Trainer, feed: Feed | None = None) -> None:
        """Fitted attributes from the trainer; its memory becomes the model's until it trains on."""
        state, network = trainer.state, trainer.network
        size = sparse_inference_plan(network, trainer.dtype).sizes[schema.THETA]
        theta, raw = state.spaces[schema.THETA], None
        if network.ema is not None:
            raw = trainer.view("theta").copy().view(np.uint8).reshape(-1)
            averaged = np.array(theta[:size])
            theta = aligned_bytes(size)
            theta[...] = averaged
            flat = trainer.view("ema").view(np.uint8).reshape(-1)
            theta[: len(flat)] = flat
        self._use(network, trainer.dtype, theta[:size])
        self._state = SparseOptimizer(
            state.spaces.share(schema.STATE), raw, float(trainer.view("guess")[0, 0]), network.solver.name, state.steps,
            state.epochs, state.first_epoch, replace(trainer.position, totals=replace(trainer.position.totals)),
        )  # fmt: skip
        if feed is not None:
            self._data = _fingerprint(feed)
        history = trainer.history
        self.loss_curve_, self.l0_curve_ = list(history.loss), list(history.l0)
        self.fvu_curve_, self.dead_curve_ = list(history.fvu), list(history.dead)
        self.n_iter_, self.t_ = state.epochs, state.steps
        self.plan_ = trainer.plan
        self.backend_, self.device_ = trainer.backend.name, trainer.backend.device


def _check_checkpoint(path: Any, every: int, resume: bool) -> None:
    """Raises, before any work, where a checkpoint could not be written."""
    if resume and path is None:
        raise ValueError("resume=True needs checkpoint, the file to go on from")
    number("checkpoint_every", every, 1, _NEVER, integer=True)
    if path is None:
        return
    name, folder = os.fspath(path), Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write checkpoint {name!r}: make its folder first")
    if Path(path).is_dir():
        raise IsADirectoryError(f"checkpoint {name!r} is a folder; give a file in it")
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"cannot write checkpoint {name!r}: no permission to write into its folder; give another one"
        )


def _fingerprint(feed: Feed) -> list:
    """What tells one data set from another: numbers, widths, dtypes, and a hash of the first rows where it can be."""
    found: list[Any] = []
    for rows in (feed.x, feed.y):
        if rows is None:
            continue
        found += [rows.n_rows, rows.n_features, rows.dtype.name]
        if not rows.sequential:
            found.append(rows.digest())
    return found
