"""Ranks that fail or do something else than others: an error on all, and nobody waits for ever."""

import numpy as np
import pytest
from conftest import backend_named
from thread_ranks import LOCAL, SIZE, X, errors_of, model, rows_of

import fastae
from fastae.distributed import DataParallel


def bad(rows):
    return np.where(np.arange(rows.size).reshape(rows.shape) == 7, np.nan, rows)


FAILURES = {
    "rows": lambda m, X, rank: m.fit(bad(X) if rank else X),
    "weights": lambda m, X, rank: m.fit(X, sample_weight=np.full(len(X), -1.0 if rank else 1.0)),
    "parameter": lambda m, X, rank: m.set_params(tol=-1 if rank else 0).fit(X),
    "batch": lambda m, X, rank: m.fit(X).partial_fit(bad(X) if rank else X),
    "block": lambda m, X, rank: m.set_params(max_iter=1).fit(iter([X, bad(X) if rank else X])),
}


def failing_callback(rank):
    def callback(info):
        if rank and info.epoch == 2:
            raise KeyError("mine")

    return callback


@pytest.mark.parametrize("way", [*FAILURES, "callback"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_rank_that_fails_ends_training_on_all(way, early_stopping):
    if way in ("batch", "block") and early_stopping:
        pytest.skip("of fit with rows in memory alone")

    def fit(rank, comm):
        made = model(DataParallel(comm, backend_named("avx2")), LOCAL, early_stopping=early_stopping)
        if way == "callback":
            return made.set_params(callbacks=[failing_callback(rank)]).fit(rows_of(rank))
        return FAILURES[way](made, rows_of(rank), rank)

    other, own = errors_of(fit)
    assert isinstance(other, RuntimeError) and "ranks [1] failed, so that training ends on all" in str(other)
    assert isinstance(own, (ValueError, KeyError))


@pytest.mark.parametrize("kind", ["sparse", "sparse with a scale", "detector", "classifier", "stacked"])
def test_a_rank_of_any_estimator_that_fails_ends_training_on_all(kind):
    def fit(rank, comm):
        options = {"backend": DataParallel(comm, backend_named("avx2")), "batch_size": LOCAL, "max_iter": 2}
        rows, labels = rows_of(rank), np.arange(len(X) // SIZE) % 2
        if kind.startswith("sparse"):
            scaled = {"normalization": "scale"} if kind != "sparse" else {}
            return fastae.SparseAutoencoder(12, k=2, **options, **scaled).fit(bad(rows) if rank else rows)
        if kind == "detector":
            return fastae.AutoencoderDetector(**options, contamination=0.9 if rank else 0.1).fit(rows)
        if kind == "classifier":
            return fastae.AutoencoderClassifier((8,), **options).fit(rows, labels[:-1] if rank else labels)
        return fastae.StackedAutoencoder(3, hidden_layer_sizes=(8,), **options, callbacks=[failing_callback(rank)]).fit(
            rows)  # fmt: skip

    other, own = errors_of(fit)
    assert isinstance(other, RuntimeError) and "ranks [1] failed" in str(other)
    assert isinstance(own, (ValueError, KeyError))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_iter": 2}, "rank 0 begins steps, rank 1 has ended"),
        ({"callbacks": [lambda info: True]}, "rank 0 begins steps, rank 1 has ended"),
        ({"early_stopping": True}, "rank 0 begins steps, rank 1 takes a mean over rows"),
        ("weighted", "rank 0 begins steps, rank 1 gives sample weights"),
    ],
    ids=str,
)
def test_ranks_that_do_different_things_are_told(options, message):
    weighted = options == "weighted"

    def fit(rank, comm):
        made = model(DataParallel(comm, backend_named("avx2")), LOCAL, **(options if rank and not weighted else {}))
        return made.fit(rows_of(rank), sample_weight=np.ones(len(X) // SIZE) if rank and weighted else None)

    for error in errors_of(fit):
        assert isinstance(error, ValueError) and message in str(error)


def test_a_communicator_that_breaks_is_asked_once():
    class Broken:
        rank, size, calls = 0, 2, 0

        def sum(self, array):
            self.calls += 1
            raise OSError("no network")

    comm = Broken()
    with pytest.raises(OSError, match="no network"):
        model(DataParallel(comm, backend_named("avx2")), LOCAL).fit(X)
    assert comm.calls == 1


def test_an_error_that_all_ranks_have_is_each_ones_own():
    errors = errors_of(lambda rank, comm: model(DataParallel(comm, backend_named("avx2")), LOCAL).fit(bad(X)))
    assert all(isinstance(error, ValueError) and "NaN" in str(error) for error in errors)
