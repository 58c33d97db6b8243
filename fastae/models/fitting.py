"""Fitting: from parameters and rows to fitted attributes, by `fastae.training` or `fastae.full_batch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from sklearn.utils.metaestimators import available_if

from .. import diagnostics, full_batch, training
from ..initializers import PCAInit, initial_weights, principal_directions
from ..plan import schema
from ..plan.build import evaluation_plan, training_plan
from ..plan.plan import Plan, Source
from ..spec import options
from ..spec.network import Network
from ..validation import (
    input_seen,
    seen_source,
)
from . import weights
from .base import _Compiled
from .given import TakesRows
from .graph import neighbour_graph, source_rows
from .ranks import over_ranks, together
from .state import Optimizer
from .streamed import SAMPLE_ROWS


@dataclass
class _Live:
    """Memory and compiled plan of the last ``partial_fit``, for the next one on batches alike."""

    key: tuple
    plan: Plan
    handle: Any
    state: training.State


def takes_batches(estimator: Any) -> bool:
    if options.is_full_batch(estimator.solver):
        raise AttributeError(
            f"partial_fit is there for solvers that go batch by batch; solver={estimator.solver!r} looks at all rows "
            "at once; use an update rule such as solver='adam', or fit with warm_start=True"
        )
    return True


class FittedByBatches(TakesRows):
    """Base of estimators whose ``_network`` is trained on minibatches.

    Subclasses give ``_network(n_features)`` and have the parameters that are read here.
    """

    _live: _Live | None
    _perfect_score = 0.0  # validation score where nothing is lost
    _diagnosed = True  # whether ``fit`` says what is wrong with the model

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, mask: Any = None) -> Self:
        """Trains on the rows of X.

        X : array, sparse matrix or frame (N, p); or rows in blocks: path of a .npy file, list of such paths or of
            arrays, memory map of more than 1 GiB, dataset in chunks (h5py, zarr, dask), iterable of blocks of rows, or
            a function that returns one (for more than one epoch). Names of columns are checked in every block
        y : (N,), class of each row, for classifiers; others ignore it
        sample_weight : (N,), weight of each row's loss; only ratios matter. Penalties on the code (`ActivityL1`,
            `Contractive`, `Decorrelation`, …) and batch normalisation count all rows alike
        mask : bool (N, p), True where an entry of X is observed; costs a copy of X, which NaN and ``missing`` do not
        Rows in blocks take memory for a buffer, whatever their number. With ``shuffle`` they are read in sequential
        pieces whose order, and that of the rows within some 2²⁴ elements, is a function of (seed, epoch): another one
        than an array's. What needs all rows at once is refused (ValueError): ``early_stopping``, ``sample_weight``,
        ``mask``, full-batch solvers, `Laplacian`, pretraining; what begins with a look at data (PCA) sees the first
        4096 rows of the first block at most.
        Raises ValueError where no entry of X is observed, of rows in blocks after an epoch of them.
        Raises NonFiniteLossError when the loss becomes NaN or infinite; the last good weights are kept. After Ctrl-C
        (KeyboardInterrupt) it is those of the last step (or iteration; with ``early_stopping`` the best), from which
        ``partial_fit`` or a warm start goes on. A full-batch solver that has not converged is a scikit-learn
        ConvergenceWarning.
        Warns, with a `fastae.ModelWarning`, about an output that cannot reach X, and about layers that are dead or
        saturated.
        """
        with together(self.backend):
            warm = options.flag("warm_start", self.warm_start) and "weights_" in self.__dict__
            with self._unchanged_on_error():
                backend = self._backend()
                given = self._given(X, y, reset=not warm, sample_weight=sample_weight, mask=mask, passes=self.max_iter,
                                    fit=True)  # fmt: skip
                network, dtype, settings, sources = given.network, given.dtype, given.settings, given.sources
                if network.n_targets is None and self._diagnosed:
                    diagnostics.warn_before_fit(network, sources[0])
                rows, held_out = (None, None) if given.blocks else self._split(sources, settings)
                if rows is not None and (weight := sources[0].weight) is not None:  # of mean 1, whatever is held out
                    mean = over_ranks(backend, float(weight[rows].mean()), len(rows))
                    sources = (replace(sources[0], weight=weight / mean), *sources[1:])
                n_rows = given.n_rows if rows is None else len(rows)
                # no name for the initial weights: in float64, they would take as much as Adam's moments all the while
                state = self._begin(backend, network, sources[0], dtype, n_rows,
                                    None if warm else self._start(network, sources[0], rows))  # fmt: skip
                state.first_epoch, state.learning_rate = state.epochs, None  # the schedule begins with the fit
                placed = (*sources, *self._graph(network, sources[0], held_out))
                if not given.blocks:  # once for all epochs, and for the rows held out
                    placed = backend.place(placed)
                validate = None
                if held_out is not None:
                    validate = self._validator(backend, network, sources, placed[0], held_out, state)
            self._live = None
            history = training.History()

            def publish() -> None:
                self._finish(backend, network, dtype, state, history, state.epochs - state.first_epoch)

            full = options.is_full_batch(network.solver)
            train = full_batch.fit if full else training.fit
            feed: Any = training.Held(backend, settings, placed, rows) if full or given.blocks is None else given.blocks
            try:
                if settings.max_iter:
                    train(backend, self.plan_, state, feed, settings, validate=validate, model=self, history=history,
                          publish=publish)  # fmt: skip
            finally:  # also after Ctrl-C or a loss that is not finite: the model has its last good weights
                publish()
            state.spaces.release()  # working memory, before another plan takes some; the optimiser's is the model's now
            if self._diagnosed:
                diagnostics.warn_after_fit(self, sources[0], self.plan_.dtype)
        return self

    @available_if(takes_batches)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, mask: Any = None) -> Self:
        """One pass over X in batches, going on from the present weights, optimiser state and learning-rate schedule.

        X, y, sample_weight, mask : as of `fit`
        A batch is ``batch_size`` rows, so there is one step when X has no more. Rows are shuffled by (seed, number of
        the call). ``sample_weight`` is of the loss alone, and only ratios within the call matter. Not there
        (AttributeError) with a full-batch solver.
        A schedule that is planned over ``max_iter`` epochs (`Cosine`, `LinearWarmup`, `OneCycle`) ends after as many
        calls, epochs of the last ``fit`` counted; a `fastae.ModelWarning` says once that the rate is then too
        small for weights to change. What looks back on epochs is of ``fit`` and has no effect here:
        ``early_stopping``, ``tol``, ``callbacks``.
        """
        with together(self.backend):
            first = "weights_" not in self.__dict__
            with self._unchanged_on_error():
                backend = self._backend()
                given = self._given(X, y, reset=first, sample_weight=sample_weight, mask=mask, passes=1)
                network, dtype, settings, source = given.network, given.dtype, given.settings, given.sources[0]
                key = (network, dtype, self._bf16, self._batch(given.n_rows), source.weight is not None, backend)
                live = None if first else self.__dict__.get("_live")
                if live is None or live.key != key or self._state is None or (
                    self._state.memory is not live.state.spaces.share(schema.STATE)
                ):  # fmt: skip
                    state = self._begin(backend, network, source, dtype, given.n_rows,
                                        self._random_start(network, source) if first else None)  # fmt: skip
                    live = _Live(key, self.plan_, backend.compile(self.plan_), state)
                else:
                    weights.write(live.plan, live.state.spaces, network, *self._arrays)  # the user's to change
                    self.plan_ = live.plan
                sources = (*given.sources, *self._graph(network, given.sources[0], None))
            self._live, state = live, live.state
            history = training.History(losses=getattr(self, "loss_curve_", []))
            feed = given.blocks or training.Held(backend, settings, sources)
            try:
                history.losses.append(training.run_epoch(backend, live.plan, live.handle, state, feed, settings))
                training.next_rate(settings, state, history)
            finally:
                self._finish(backend, network, dtype, state, history, state.epochs)
            training.warn_at_end(settings, state)
        return self

    # ---- the steps of a fit ---

    def _split(self, sources: tuple[Source, ...], settings: training.Settings):
        """Rows to train on and rows held out; (None, None) for all and none."""
        if not self.early_stopping:
            return None, None
        n_rows = sources[0].n_rows
        n_out = int(np.ceil(self.validation_fraction * n_rows))
        order = self._backend().permutation(settings.seed, training.SPLIT_EPOCH, n_rows)
        chosen = self._held_out(order, n_out, sources) if n_out < n_rows else np.zeros(n_rows, bool)
        if not chosen.any():
            raise ValueError(
                f"early_stopping needs rows to hold out and rows to train on; got n_samples={n_rows} with "
                f"validation_fraction={self.validation_fraction}; give more rows or early_stopping=False"
            )
        rows, weight = np.sort(order[~chosen]), sources[0].weight
        if weight is not None and not weight[rows].any():
            raise ValueError(
                "early_stopping held out every row whose sample_weight is not 0; leave rows of weight 0 out of X, give "
                "another random_state or early_stopping=False"
            )
        return rows, np.sort(order[chosen])

    def _held_out(self, order: np.ndarray, n_out: int, sources: tuple[Source, ...]) -> np.ndarray:
        """Which of the rows in ``order`` (random) to hold out, bool (N,): ``n_out`` of them."""
        return np.arange(len(order)) < n_out

    def _start(self, network: Network, source: Source, rows: np.ndarray | None) -> weights.Arrays:
        """Arrays that ``fit`` begins with; ``rows`` are those to train on, None for all."""
        return self._random_start(network, source)

    def _random_start(self, network: Network, source: Source) -> weights.Arrays:
        return self._initial_weights(network, source), weights.initial_norms(network)

    def _begin(
        self, backend: Any, network: Network, source: Source, dtype: np.dtype, n_rows: int | None,
        start: weights.Arrays | None,
    ) -> training.State:  # fmt: skip
        """Memory with the arrays to start from, None for the present ones (a warm start); sets plan_."""
        warm, weighted = start is None, source.weight is not None
        if options.is_full_batch(network.solver):
            if self._bf16:
                raise ValueError(
                    f"precision={self.precision!r} cannot go with solver={network.solver.name!r}, which computes in "
                    "float64; use precision='auto', or an update rule such as solver='adam'"
                )
            if hasattr(backend, "share"):
                raise ValueError(
                    f"solver={network.solver.name!r} cannot go with {backend!r}: its line searches share no gradients, "
                    "so each rank would train a model of its own; use an update rule such as solver='adam'"
                )
            assert n_rows is not None
            self.plan_ = full_batch.plan(network, n_rows, weighted=weighted)
        else:
            self.plan_ = training_plan(network, dtype, self._batch(n_rows), weighted=weighted, bf16=self._bf16)
        if self.plan_.batch == 1 and n_rows != 1 and any(isinstance(q.norm, options.BatchNorm) for q in network.layers):
            raise ValueError(
                "batch_size=1 cannot go with batch normalisation; use at least 2, or normalization='layer'"
            )
        spaces = backend.allocate(self.plan_)
        weights.write(self.plan_, spaces, network, *(start or self._arrays))
        if network.n_directions:
            self.plan_.view(spaces, "basis")[...] = self._basis(network, source, warm)
        old = self._state if warm else None
        if old is None:
            return training.State(spaces)
        if (old.rule, old.dtype, old.memory.nbytes) == (network.solver.name, dtype, spaces[schema.STATE].nbytes):
            spaces[schema.STATE][:] = old.memory
            return training.State(spaces, old.steps, old.epochs, old.first_epoch, old.learning_rate)
        # another rule or precision: the optimiser starts anew
        return training.State(spaces, 0, old.epochs, old.first_epoch)

    def _initial_weights(self, network: Network, source: Source) -> list[tuple[np.ndarray, np.ndarray]]:
        pca = self.initializer == "pca" if isinstance(self.initializer, str) else isinstance(self.initializer, PCAInit)
        return initial_weights(
            self.initializer, network, self.seed_, _first_rows(source, network, SAMPLE_ROWS) if pca else None
        )

    def _basis(self, network: Network, source: Source, warm: bool) -> np.ndarray:
        """Principal directions (n_directions, p) for an `SVDProjector`; a warm start keeps the earlier ones."""
        if not warm or getattr(getattr(self, "basis_", None), "shape", None) != (
            network.n_directions,
            network.n_features,
        ):
            self.basis_ = principal_directions(_first_rows(source, network, SAMPLE_ROWS), network.n_directions)
        return self.basis_

    def _graph(self, network: Network, source: Source, held_out: np.ndarray | None) -> tuple[Source, ...]:
        """The graph between rows where a `Laplacian` needs it, as a source, else none."""
        option = network.penalty(options.Laplacian)
        return () if option is None else (neighbour_graph(option, seen_source(source, network), held_out),)

    def _validator(self, backend: Any, network: Network, sources: tuple[Source, ...], placed: Source,
                   held_out: np.ndarray, state: training.State):  # fmt: skip
        """The function that gives the mean loss of the held-out rows under the weights of ``state``.

        placed : the first source where steps read it best
        """
        plan, values, row_losses = self._validation(network, self.plan_.dtype, sources, held_out)
        compiled = _Compiled(backend, plan)
        weight = sources[0].weight
        weight = None if weight is None else weight[held_out]
        if weight is not None and not over_ranks(backend, float(weight.sum()), 1):
            weight = None
        own = weight if weight is not None and weight.any() else None
        total = len(held_out) if weight is None else float(weight.sum())

        def validate() -> float:
            compiled.spaces.take(schema.THETA, state.spaces)
            compiled.packed = False
            compiled.run(placed, values, self._threads(), held_out)
            # where ranks train one model, they must end training together
            return over_ranks(backend, float(np.average(row_losses(values), weights=own)), total)

        return validate

    def _validation(
        self, network: Network, dtype: np.dtype, sources: tuple[Source, ...], held_out: np.ndarray
    ) -> tuple[Plan, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """A plan, the array for what it says of the held-out rows, and the function from that to each row's loss."""
        plan = evaluation_plan(network, dtype, bf16=self._bf16)
        return plan, np.empty((len(held_out), 1)), lambda values: values[:, 0]

    def _finish(
        self, backend: Any, network: Network, dtype: np.dtype, state: training.State, history: training.History,
        epochs: int,
    ) -> None:  # fmt: skip
        """Fitted attributes from the state."""
        self._forget_compiled()
        self.network_ = network
        plan = self.plan_
        self.weights_, self.norms_ = weights.read(plan, state.spaces, network, dtype)
        self._state = Optimizer(state.spaces.share(schema.STATE), network.solver.name, dtype, state.steps, state.epochs,
                                state.first_epoch, state.learning_rate)  # fmt: skip
        self.n_iter_ = epochs
        self.t_ = state.steps
        self.loss_curve_ = history.losses
        self.loss_ = history.losses[-1] if history.losses else np.nan
        validated = history.validation_losses
        self.validation_scores_ = [self._perfect_score - v for v in validated] if validated else None
        self.best_validation_score_ = self._perfect_score - min(validated) if validated else None
        self.n_parameters_ = weights.n_parameters(network)
        self.backend_ = backend.name
        self.device_ = backend.device


def _first_rows(source: Source, network: Network, limit: int) -> np.ndarray:
    """At most ``limit`` rows as the encoder sees them, float64."""
    rows = source_rows(source)[:limit]
    return input_seen(rows if source.indptr is None else rows.toarray(), network)
