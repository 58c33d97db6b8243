"""What a fit is given: parameters and rows, checked, whether these lie in memory or come in blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from .. import training
from ..plan.plan import Source
from ..schedules import schedule
from ..spec import options
from ..spec.network import Network
from ..spec.options import flag, number
from ..validation import (
    apply_mask,
    check_mark,
    check_rows,
    check_target,
    check_transform,
    check_weight,
    computing_dtype,
    has_observed,
    is_nan,
    nothing_observed,
)
from .base import checked_callbacks, seed_of
from .feed import Feed, is_stream, open_checked
from .state import Stored
from .streamed import Blocks, check_blocks_suffice


@dataclass
class Given:
    """What a fit is given, checked."""

    network: Network
    dtype: np.dtype
    settings: training.Settings
    sources: tuple[Source, ...]  # all rows (and targets), or some of the first block
    n_rows: int | None
    blocks: Blocks | None = None  # where rows don't lie in memory


class TakesRows(Stored):
    """Base of `FittedByBatches`: what its parameters and the rows mean."""

    _least_epochs = 1  # that ``max_iter`` may ask for

    # ---- what the parameters mean ---

    def _settings(self, network: Network, seed: int) -> training.Settings:
        number("validation_fraction", self.validation_fraction, 0.0, 1.0, "neither")
        flag("early_stopping", self.early_stopping)
        return training.Settings(
            schedule=schedule(self.learning_rate),
            rule=network.solver,
            max_iter=number("max_iter", self.max_iter, self._least_epochs, 2**31, integer=True),
            seed=seed,
            n_threads=self._threads(),
            tol=number("tol", self.tol, 0.0, float("inf"), "both"),
            n_iter_no_change=number("n_iter_no_change", self.n_iter_no_change, 1, 2**31, integer=True),
            shuffle=flag("shuffle", self.shuffle),
            callbacks=checked_callbacks(self.callbacks),
            verbose=self.verbose,
        )

    def _batch(self, n_rows: int | None) -> int:
        batch = 256
        if not isinstance(self.batch_size, str):
            batch = number("batch_size", self.batch_size, 1, 2**31 - 1, integer=True)
        elif self.batch_size != "auto":
            raise ValueError(f"batch_size={self.batch_size!r} must be 'auto' or a positive integer")
        return batch if n_rows is None else min(batch, n_rows)

    # ---- rows ---

    def _given(
        self, X: Any, y: Any, *, reset: bool, sample_weight: Any, mask: Any, passes: int,
        fit: bool = False,
    ) -> Given:  # fmt: skip
        """Checked rows, all or in blocks, with what they are trained by; sets seed_ (``reset``).

        fit : whether it is ``fit`` that asks, and not ``partial_fit``
        """
        if not is_stream(X):
            sources, dtype, network = self._prepare(X, y, reset=reset, sample_weight=sample_weight, mask=mask)
            if fit and not has_observed(sources[0], network.missing):
                raise nothing_observed(network.missing)
            if reset:
                self.seed_ = seed_of(self.random_state)
            return Given(network, dtype, self._settings(network, self.seed_), sources, sources[0].n_rows)
        self._check_takes_blocks(begins=fit and reset)
        backend = self._backend()
        rows, dtype, _ = open_checked(self, X, reset=reset, backend=backend, precision=self.precision)
        network = self._network(rows.n_features)
        if not reset:
            network, dtype = self._as_fitted(network, dtype)
        else:
            self.seed_ = seed_of(self.random_state)
        settings = self._settings(network, self.seed_)
        check_blocks_suffice(rows, network, settings, passes, **{
            "sample_weight": (sample_weight is not None, "give rows as often as they should count"),
            "mask": (mask is not None, "store NaN where an entry is unobserved and set missing=np.nan"),
            "early_stopping=True": (fit and self.early_stopping, "end training by a callback"),
        })  # fmt: skip
        feed = Feed(rows, None, self._batch(rows.n_rows), settings.shuffle, settings.seed, backend, True,
                    is_nan(network.missing))  # fmt: skip
        blocks = Blocks(feed, network, dtype, 0 if reset or self._state is None else self._state.epochs, fit)
        return Given(network, dtype, settings, (blocks.sample,), rows.n_rows, blocks)

    def _check_takes_blocks(self, begins: bool) -> None:
        """Raises where rows in blocks cannot be trained on.

        begins : whether it is by a ``fit`` that is no warm start
        """

    def _as_fitted(self, network: Network, dtype: np.dtype) -> tuple[Network, np.dtype]:
        """The network, with what a mask at the first fit made of it, and the dtype that training goes on in.

        Raises unless the layers are the fitted ones but for dropout, and precision that of the optimiser's state.
        """
        fitted = self.network_.layers
        if [replace(q, dropout=0.0) for q in network.layers] != [replace(q, dropout=0.0) for q in fitted]:
            raise ValueError(
                "the layers differ from those that were fitted; undo the change of parameters, or set "
                "warm_start=False and call fit"
            )
        if self._state is not None:
            dtype = self._state.dtype
            if (wanted := computing_dtype(dtype, self.precision)) != dtype:
                raise ValueError(
                    f"precision={self.precision!r} computes in {wanted}, but the model was fitted in {dtype}; undo the "
                    "change, or set warm_start=False and call fit"
                )
        if network.missing is None and is_nan(self.network_.missing):
            network = replace(network, missing=math.nan)
        return network, dtype

    def _prepare(
        self, X: Any, y: Any, *, reset: bool, sample_weight: Any, mask: Any
    ) -> tuple[tuple[Source, ...], np.dtype, Network]:
        """Checked rows (and targets, where these are not the rows), the dtype to compute in, and the network."""
        missing = getattr(self, "missing", None)
        masked = mask is not None or (not reset and is_nan(self.network_.missing))  # now, or when it was fitted
        allow_nan = masked if missing is None else isinstance(missing, Real) and is_nan(float(missing))
        backend = self._backend()
        source, dtype = check_rows(self, X, reset=reset, backend=backend, precision=self.precision,
                                   allow_nan=allow_nan)  # fmt: skip
        targets, weight = self._targets(y, check_weight(sample_weight, source.n_rows, backend), source.n_rows, reset)
        network = self._network(source.columns)
        if mask is not None:
            source = apply_mask(source, dtype, mask, network.missing, getattr(self, "feature_names_in_", None))
        if masked and network.missing is None:
            network = replace(network, missing=math.nan)
        if not reset:
            network, dtype = self._as_fitted(network, dtype)
        if not targets:
            check_target(source, network)
        check_transform(source, network)
        check_mark(source, np.dtype(np.float64) if options.is_full_batch(network.solver) else dtype, network.missing)
        source = Source(source.data, source.indptr, source.indices, source.columns, weight)
        return (source, *targets), dtype, network

    def _targets(
        self, y: Any, weight: np.ndarray | None, n_rows: int, reset: bool
    ) -> tuple[tuple[Source, ...], np.ndarray | None]:
        """The source of the targets, none where the input is its own, and the weight of each row."""
        return (), weight
