"""Fitting with L-BFGS and conjugate gradient: how it ends, is interrupted, goes on, and is stored."""

import pickle
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_full_batch import SOLVERS, START, WEIGHT, X, flat, model, numpy_objective, optimum

import fastae
from fastae.full_batch.objective import Objective


def test_sample_weights_count_rows():
    fitted = model(penalties=[fastae.L2(1e-2)]).fit(X, sample_weight=WEIGHT)
    assert fitted.loss_ == pytest.approx(optimum(1e-2, weighted=True).fun, rel=1e-10)
    repeated = model(penalties=[fastae.L2(1e-2)]).fit(np.repeat(X, WEIGHT.astype(int), axis=0))
    assert fitted.loss_ == pytest.approx(repeated.loss_, rel=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_rows_and_sparse_rows_are_computed_in_float64(backend, solver):
    rows = np.where(np.abs(X) < 0.5, 0, X).astype(np.float32)
    settings = {"backend": backend, "max_iter": 10, "tol": 1e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        double = model(solver, **settings).fit(rows.astype(np.float64))
        single = model(solver, **settings).fit(rows)
        sparse = model(solver, **settings).fit(scipy.sparse.csr_array(rows))
    assert single.plan_.dtype == np.float64 and double.weights_[0][0].dtype == np.float64
    assert single.loss_curve_ == double.loss_curve_ == sparse.loss_curve_
    for one in (single, sparse):
        assert one.transform(rows).dtype == np.float32
        for (w, b), (w2, b2) in zip(one.weights_, double.weights_, strict=True):
            assert w.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(w, w2.astype(np.float32))
            np.testing.assert_array_equal(b, b2.astype(np.float32))


@pytest.mark.parametrize("solver", SOLVERS)
def test_how_training_ends(solver):
    l2 = fastae.L2(1e-2)
    with pytest.warns(ConvergenceWarning, match=f"solver='{solver}' did not converge.*raise max_iter or tol") as caught:
        short = model(solver, max_iter=7, penalties=[l2]).fit(X)
    assert caught[0].filename == __file__
    assert short.n_iter_ == short.t_ == len(short.loss_curve_) == 7 and short.loss_ == short.loss_curve_[-1]
    assert np.all(np.diff(short.loss_curve_) < 0)
    option = (fastae.LBFGS if solver == "lbfgs" else fastae.ConjugateGradient)(max_evaluations=5)
    with pytest.warns(ConvergenceWarning, match="evaluations were done; raise the solver's max_evaluations"):
        assert 1 <= model(option).fit(X).n_iter_ <= 5
    # the gradient; the loss; nothing lower within rounding
    by_gradient = model(solver, tol=1e-2, penalties=[l2]).fit(X)
    slope, first = (
        np.abs(numpy_objective(theta, 1e-2)[1]).max() for theta in (flat(by_gradient.weights_), flat(START))
    )
    assert 1e-4 * first < slope <= 1e-2 * first
    just = model(solver, tol=1e-2, penalties=[l2], max_iter=by_gradient.n_iter_).fit(X)  # no warning
    assert just.loss_ == by_gradient.loss_
    by_loss = model(solver, tol=1e-3, n_iter_no_change=2).fit(X)
    a, b, c, d = by_loss.loss_curve_[-4:]
    assert b < (1 - 1e-3) * a and b - d < 2e-3 * b and c > (1 - 1e-3) * b
    to_the_end = model(solver, tol=0.0, max_iter=10**6, penalties=[l2]).fit(X)
    assert to_the_end.loss_ == pytest.approx(optimum(1e-2).fun, rel=1e-12)
    again = to_the_end.set_params(warm_start=True).fit(X)  # and there is nothing left to do
    assert again.n_iter_ < 15 and again.loss_ == pytest.approx(again.loss_curve_[0], rel=1e-12)


def test_a_line_that_leads_nowhere_is_a_warning(monkeypatch):
    def wrong(self, theta, right=Objective.__call__):
        value, grad = right(self, theta)
        return value, -grad  # upwards

    monkeypatch.setattr(Objective, "__call__", wrong)
    with pytest.warns(ConvergenceWarning, match="no lower point was found"):
        fitted = model().fit(X)
    assert fitted.n_iter_ == 0 and fitted.loss_ == pytest.approx(numpy_objective(flat(START))[0])
    assert flat(fitted.weights_).tobytes() == flat(START).tobytes()


@pytest.mark.parametrize("solver", SOLVERS)
def test_callbacks_see_each_iteration_and_may_stop_it(solver):
    seen = []

    def callback(info):
        seen.append((info.epoch, info.loss, flat(info.model.weights_)))
        assert np.isnan(info.learning_rate) and info.validation_loss is None and info.seconds > 0
        return info.epoch == 6

    fitted = model(solver, callbacks=callback, verbose=1).fit(X)
    assert [epoch for epoch, *_ in seen] == [1, 2, 3, 4, 5, 6] and fitted.n_iter_ == 6
    for _, loss, theta in seen:
        assert loss == pytest.approx(numpy_objective(theta)[0], rel=1e-12)
    assert [loss for _, loss, _ in seen] == fitted.loss_curve_
    np.testing.assert_array_equal(flat(fitted.weights_), seen[-1][2])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluation", [1, 2, 9])
def test_an_interrupted_line_search_leaves_the_last_iteration(solver, evaluation, monkeypatch):
    seen, count = [flat(START)], [0]

    def interrupted(self, theta, right=Objective.__call__):
        count[0] += 1
        result = right(self, theta)
        if count[0] == evaluation:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Objective, "__call__", interrupted)
    fitted = model(solver, callbacks=lambda info: seen.append(flat(info.model.weights_)))
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X)
    np.testing.assert_array_equal(flat(fitted.weights_), seen[-1])
    assert fitted.n_iter_ == len(seen) - 1


def test_a_start_that_is_not_finite_is_an_error():
    huge = [(w * 1e200, b) for w, b in START]
    fitted = model(initializer=huge, activation="identity")
    with pytest.raises(fastae.NonFiniteLossError, match="at the starting weights, which were kept; scale X"):
        fitted.fit(X)
    np.testing.assert_array_equal(flat(fitted.weights_), flat(huge))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_line_search_comes_back_from_where_nothing_is_finite(solver, monkeypatch):
    wall, met = 2.6, []

    def walled(self, theta, right=Objective.__call__):
        value, grad = right(self, theta)
        if np.linalg.norm(theta) < wall:
            return value, grad
        met.append(theta)
        return np.inf, np.full_like(grad, np.nan)

    expected = model(solver, penalties=[fastae.L2(0.05)]).fit(X)
    assert np.linalg.norm(flat(expected.weights_)) < wall
    monkeypatch.setattr(Objective, "__call__", walled)
    small = [(w / 2, b) for w, b in START]
    fitted = model(solver, penalties=[fastae.L2(0.05)], initializer=small).fit(X)
    assert met and fitted.loss_ == pytest.approx(expected.loss_, rel=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_exponentials_that_overflow_on_the_way(solver):
    counts = 2000.0 * np.random.default_rng(0).poisson(3, size=(200, 7))  # the first step of length 1 gives exp(20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", fastae.SaturationWarning)
        fitted = fastae.Autoencoder(2, solver=solver, loss="poisson", activation="tanh", random_state=0).fit(counts)
    assert fitted.n_iter_ > 3 and fitted.loss_ < -20_000


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_early_stopping_puts_the_best_weights_back(dtype):
    seen = []
    noisy = np.random.default_rng(0).normal(size=(60, 12)).astype(dtype)
    fitted = fastae.Autoencoder(6, hidden_layer_sizes=(40,), activation="tanh", solver="lbfgs", early_stopping=True,
                                validation_fraction=0.3, random_state=0, n_iter_no_change=8, callbacks=lambda info:
                                seen.append((info.validation_loss, flat(info.model.weights_)))).fit(noisy)  # fmt: skip
    assert fitted.n_iter_ < 100 and fitted.best_validation_score_ == max(fitted.validation_scores_)
    losses = [loss for loss, _ in seen]
    assert losses.index(min(losses)) == len(losses) - 9
    np.testing.assert_array_equal(flat(fitted.weights_), seen[-9][1])
    assert [-loss for loss in losses] == fitted.validation_scores_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_warm_starts_with_and_after_other_solvers():
    fitted = model(max_iter=5, warm_start=True)
    first, second = fitted.fit(X).loss_, fitted.fit(X).loss_
    assert second < first and fitted.n_iter_ == 5 and fitted.t_ == 10
    third = fitted.set_params(solver="adam").fit(X).loss_
    assert fitted.t_ == 5  # one step an epoch
    assert fitted.set_params(solver="cg").fit(X).loss_ < third
    single = model(max_iter=3, warm_start=True).fit(X.astype(np.float32)).fit(X)  # the first fit decides
    assert single.weights_[0][0].dtype == np.float32


@pytest.mark.parametrize("solver", [*SOLVERS, fastae.LBFGS(history=3)])
def test_partial_fit_wants_an_update_rule(solver):
    estimator = model(solver)
    assert not hasattr(estimator, "partial_fit")
    with pytest.raises(AttributeError, match="partial_fit"):
        estimator.partial_fit(X)
    with pytest.raises(AttributeError) as caught:
        estimator.partial_fit(X)
    assert "use an update rule such as solver='adam'" in str(caught.value.__cause__)
    assert estimator.set_params(solver="adam").partial_fit(X).n_iter_ == 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", [*SOLVERS, fastae.LBFGS(history=3)])
def test_files_and_copies_go_on_where_training_ended(solver, tmp_path):
    fitted = model(solver, max_iter=4, warm_start=True, initializer="auto").fit(X)
    fitted.save(tmp_path / "m.safetensors")
    loaded = fastae.load(tmp_path / "m.safetensors")
    copy = pickle.loads(pickle.dumps(fitted))
    assert loaded.t_ == 4 and loaded.solver == solver and loaded.loss_curve_ == fitted.loss_curve_
    codes = fitted.fit(X).transform(X)
    np.testing.assert_array_equal(loaded.fit(X).transform(X), codes)
    np.testing.assert_array_equal(copy.fit(X).transform(X), codes)


@pytest.mark.parametrize("solver", SOLVERS)
def test_dropout_and_noise_are_drawn_once(backend, solver):
    settings = {"hidden_layer_sizes": (8,), "dropout": 0.25, "noise": "masking", "initializer": "auto", "max_iter": 12,
                "backend": backend, "tol": 1e-3, "n_iter_no_change": 3}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = model(solver, **settings).fit(X), model(solver, **settings).fit(X)
        other = model(solver, **settings | {"random_state": 1}).fit(X)
    assert np.all(np.diff(one.loss_curve_) <= 0)
    assert flat(one.weights_).tobytes() == flat(two.weights_).tobytes() != flat(other.weights_).tobytes()


def test_kl_sparsity_reaches_its_goal():
    settings = {"activation": "sigmoid", "n_components": 12, "initializer": "auto", "tol": 1e-5, "max_iter": 4000}
    sparse = model(penalties=[fastae.KLSparsity(0.07, 1.0), fastae.L2(1e-5)], **settings).fit(X)
    assert np.abs(sparse.transform(X).mean(axis=0) - 0.07).max() < 0.02


def test_concurrent_fits_give_blas_its_threads_back():
    from threadpoolctl import threadpool_info

    def limits():
        return sorted((info["prefix"], info["num_threads"]) for info in threadpool_info() if info["user_api"] == "blas")

    import scipy.optimize  # noqa: F401  its BLAS is loaded

    before = limits()
    threads = [
        threading.Thread(target=lambda: model(callbacks=lambda info: info.epoch == 9, n_jobs=1).fit(X))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limits() == before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([fastae.Autoencoder(2, solver=solver, max_iter=5, random_state=0) for solver in SOLVERS])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


STRUCTURES = {
    "batch norm, skips": {"hidden_layer_sizes": (7, 12), "normalization": "batch", "skip_connections": True},
    "tied, layer norm, Laplacian": {"hidden_layer_sizes": (9,), "normalization": "layer", "tied_weights": True,
                                    "penalties": [fastae.Laplacian(5, 0.01), fastae.OnLayers("l1", "encoder")]},
    "maxout, SVD projector": {"activation": [fastae.Maxout(2), "tanh"], "hidden_layer_sizes": (9,),
                              "penalties": [fastae.SVDProjector(0.1), fastae.Decorrelation(0.1)]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_structure_descends_and_keeps_its_dtype(name, dtype):
    fitted = model(initializer="auto", max_iter=60, callbacks=lambda info: None, early_stopping=dtype == np.float64,
                   **STRUCTURES[name]).fit(X.astype(dtype))  # fmt: skip
    assert np.all(np.diff(fitted.loss_curve_) < 1e-12) and fitted.loss_ < 0.5 * fitted.loss_curve_[0]
    arrays = [array for norm in fitted.norms_ for array in (norm or {}).values()]
    assert {array.dtype for pair in fitted.weights_ for array in pair} | {a.dtype for a in arrays} == {np.dtype(dtype)}


@pytest.mark.parametrize("evaluation", [None, 24])
def test_batch_norm_keeps_the_statistics_of_the_final_weights(backend, evaluation, monkeypatch):
    rng, count = np.random.default_rng(7), [0]

    def interrupted(self, theta, right=Objective.__call__):
        count[0] += 1
        probe = theta + 10 * rng.normal(size=len(theta)) if count[0] == evaluation else theta
        result = right(self, probe)
        if count[0] == evaluation:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Objective, "__call__", interrupted)
    fitted = model(initializer="auto", hidden_layer_sizes=(9,), normalization="batch", max_iter=30, backend=backend)
    with pytest.raises(KeyboardInterrupt) if evaluation else pytest.warns(ConvergenceWarning):
        fitted.fit(X)
    (w, b), norm = fitted.weights_[0], fitted.norms_[0]
    z = X @ w.T + b
    np.testing.assert_allclose(norm["mean"], z.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(norm["var"], z.var(axis=0, ddof=1), rtol=1e-10)
    assert -fitted.score(X) == pytest.approx(fitted.loss_, rel=0.02)  # the variance is divided by 199, not by 200
