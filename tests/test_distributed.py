"""Data parallel training, with a communicator between threads in the place of NCCL."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import backend_named
from thread_ranks import LOCAL, SIZE, X, model, on_ranks, rows_of

import fastae
from fastae.distributed import DataParallel, nccl
from fastae.exceptions import NonFiniteLossError


@pytest.mark.parametrize("name", ["avx2", "cuda_host"])
def test_ranks_together_train_as_one(name):
    ranks = on_ranks(
        lambda rank, comm: model(DataParallel(comm, backend_named(name)), LOCAL).fit(rows_of(rank))
    )  # fmt: skip
    one = model(backend_named(name), SIZE * LOCAL).fit(X)
    for (a, _), (b, _), (c, _) in zip(*(m.weights_ for m in (*ranks, one)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=2e-6)
    np.testing.assert_allclose(ranks[0].loss_curve_, one.loss_curve_, rtol=1e-6)
    assert ranks[0].loss_curve_ == ranks[1].loss_curve_


def test_masks_differ_between_ranks_and_weights_do_not():
    def fit(rank, comm):
        return model(DataParallel(comm, backend_named("avx2")), LOCAL, dropout=0.5).fit(rows_of(0))

    first, second = on_ranks(fit)
    alone = model(backend_named("avx2"), LOCAL, dropout=0.5).fit(rows_of(0))
    np.testing.assert_array_equal(first.weights_[0][0], second.weights_[0][0])
    assert np.abs(first.weights_[0][0] - alone.weights_[0][0]).max() > 1e-4


def test_sparse_models_train_together():
    def fit(rank, comm):
        return fastae.SparseAutoencoder(
            40, k=3, batch_size=LOCAL, max_iter=2, random_state=0, backend=DataParallel(comm, backend_named("avx2"))
        ).fit(rows_of(rank))

    first, second = on_ranks(fit)
    np.testing.assert_array_equal(first.dictionary_, second.dictionary_)
    assert np.isfinite(first.fvu_curve_).all()


def test_latents_begin_anew_alike_on_all_ranks():
    def fit(rank, comm):
        options = {"resample": fastae.Resample(every=3, until=1.0), "dead_after": 40, "learning_rate": 1e-2}
        return fastae.SparseAutoencoder(
            40,
            k=2,
            batch_size=LOCAL,
            max_iter=3,
            random_state=0,
            backend=DataParallel(comm, backend_named("avx2")),
            **options,
        ).fit(rows_of(rank))

    first, second = on_ranks(fit)
    for name in first.arrays_:
        np.testing.assert_array_equal(first.arrays_[name], second.arrays_[name])


def test_the_inputs_scale_is_one_for_all_ranks():
    def fit(rank, comm):
        backend = DataParallel(comm, backend_named("avx2"))
        model = fastae.SparseAutoencoder(12, k=2, normalization="scale", batch_size=LOCAL, max_iter=2, backend=backend)
        return model.set_params(random_state=0).fit(rows_of(rank) * (1 + rank))

    first, second = on_ranks(fit)
    assert first.input_scale_ == second.input_scale_
    np.testing.assert_array_equal(first.transform(X).toarray(), second.transform(X).toarray())


def test_ranks_with_other_numbers_of_batches_are_an_error():
    with pytest.raises(ValueError, match=r"ranks have \[4, 3\] batches"):
        on_ranks(lambda rank, comm: model(DataParallel(comm, backend_named("avx2")), LOCAL).fit(
            rows_of(rank)[: LOCAL * (4 - rank)]))  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e-2},
        {"solver": "sgd"},
        {"activation": "elu"},
        {"loss": "huber"},
        {"penalties": [fastae.L2(0.1)]},
        {"hidden_layer_sizes": (9,)},
    ],
    ids=str,
)
def test_other_options_on_a_rank_are_an_error(options):
    def fit(rank, comm):
        return model(DataParallel(comm, backend_named("avx2")), LOCAL, **(options if rank else {})).fit(rows_of(rank))

    with pytest.raises(ValueError, match=r"ranks \[1\] train another model than rank 0"):
        on_ranks(fit)


def test_full_batch_solvers_which_share_nothing_are_refused():
    with pytest.raises(ValueError, match=r"solver='lbfgs' cannot go with DataParallel.*use an update rule"):
        on_ranks(lambda rank, comm: model(DataParallel(comm, backend_named("avx2")), LOCAL, solver="lbfgs").fit(X))


def test_early_stopping_judges_the_rows_of_all_ranks():
    options = {"early_stopping": True, "max_iter": 60, "n_iter_no_change": 2, "learning_rate": 0.05}
    first, second = on_ranks(
        lambda rank, comm: model(DataParallel(comm, backend_named("avx2")), LOCAL, **options).fit(rows_of(rank))
    )
    assert first.n_iter_ == second.n_iter_ < 60
    assert first.validation_scores_ == second.validation_scores_
    np.testing.assert_array_equal(first.weights_[0][0], second.weights_[0][0])


@pytest.mark.parametrize("kind", [fastae.Autoencoder, fastae.StackedAutoencoder])
def test_dense_models_encode_alike_on_all_ranks(kind):
    """Statistics of batch normalisation too, which each rank gathers from its own rows."""

    def fit(rank, comm):
        options = {"normalization": "batch"} if kind is fastae.Autoencoder else {}
        backend = DataParallel(comm, backend_named("avx2"))
        model = kind(3, hidden_layer_sizes=(8,), batch_size=LOCAL, max_iter=2, random_state=0, backend=backend)
        return model.set_params(**options).fit(rows_of(rank))

    first, second = on_ranks(fit)
    np.testing.assert_array_equal(first.transform(X), second.transform(X))
    np.testing.assert_array_equal(first.encoder()(X), first.transform(X))


def test_a_loss_that_is_not_finite_on_one_rank_ends_training_on_all():
    failed = []

    def fit(rank, comm):
        rows = rows_of(rank) * (1e25 if rank else 1)
        try:
            model(DataParallel(comm, backend_named("avx2")), LOCAL).fit(rows)
        except NonFiniteLossError:
            failed.append(rank)

    on_ranks(fit)
    assert sorted(failed) == [0, 1]


def test_it_is_there_as_its_documentation_writes_it():
    code = "import fastae; fastae.distributed.nccl, fastae.distributed.DataParallel"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rank_must_be_one_of_size():
    with pytest.raises(ValueError, match=r"rank=2 must be in 0\.\.1"):
        nccl(2, 2)
