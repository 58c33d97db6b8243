"""Weights of rows and of classes under data parallel training are those of one process with all rows."""

import numpy as np
import pytest
from conftest import backend_named
from thread_ranks import LOCAL, SIZE, X, model, of_rank, on_ranks

import fastae
from fastae.distributed import DataParallel

WEIGHT = np.random.default_rng(1).exponential(size=len(X)) * np.where(np.arange(len(X)) % 60 < 30, 1.0, 5.0)


def assert_same_training(ranks, one):
    for (a, b), (c, d), (w, v) in zip(*(m.weights_ for m in (*ranks, one)), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
        np.testing.assert_allclose(a, w, atol=2e-6)
        np.testing.assert_allclose(b, v, atol=2e-6)
    np.testing.assert_allclose(ranks[0].loss_curve_, one.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0**900])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_sample_weights_are_relative_to_all_rows(call, scale):
    """Also where one rank's are many times the other's."""
    scales = np.where(np.arange(len(X)) % 60 < 30, 1.0, scale)

    def fit(rank, comm):
        made = model(DataParallel(comm, backend_named("avx2")), LOCAL, penalties=[fastae.L2(0.1)])
        return getattr(made, call)(of_rank(X, rank), sample_weight=of_rank(WEIGHT * scales, rank))

    one = model(backend_named("avx2"), SIZE * LOCAL, penalties=[fastae.L2(0.1)])
    assert_same_training(on_ranks(fit), getattr(one, call)(X, sample_weight=WEIGHT * scales))


def test_weights_of_classes_are_relative_to_all_rows():
    labels = np.where(np.arange(len(X)) % 60 < 30, np.arange(len(X)) % 2, np.arange(len(X)) % 5 == 0).astype(int)
    options = {"max_iter": 3, "shuffle": False, "random_state": 0, "tol": 0, "pretraining": None,
               "class_weight": {0: 1.0, 1: 7.0}}  # fmt: skip

    def fit(rank, comm):
        backend = DataParallel(comm, backend_named("avx2"))
        made = fastae.AutoencoderClassifier((8,), backend=backend, batch_size=LOCAL, **options)
        return made.fit(of_rank(X, rank), of_rank(labels, rank), sample_weight=of_rank(WEIGHT, rank))

    one = fastae.AutoencoderClassifier((8,), backend=backend_named("avx2"), batch_size=SIZE * LOCAL, **options)
    assert_same_training(on_ranks(fit), one.fit(X, labels, sample_weight=WEIGHT))


def test_weights_of_rows_held_out_are_relative_to_all_rows():
    """Weights of 1 on one rank and of 5 on the other: the score is what all held-out rows together have."""

    def fit(rank, comm):
        made = model(DataParallel(comm, backend_named("avx2")), LOCAL, early_stopping=True, max_iter=1)
        return made.fit(of_rank(X, rank), sample_weight=np.full(len(X) // SIZE, 1 + 4 * rank))

    first, second = on_ranks(fit)
    assert first.validation_scores_ == second.validation_scores_
    held, scores = 12, []
    for rank, fitted in enumerate((first, second)):
        order = backend_named("avx2").permutation(0, 2**32 - 1, len(X) // SIZE)
        scores.append(-fitted.score_samples(of_rank(X, rank)[np.sort(order[:held])]).mean())
    assert first.validation_scores_[0] == pytest.approx(-(scores[0] + 5 * scores[1]) / 6, rel=1e-5)
