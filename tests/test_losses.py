"""Losses beyond the elementwise ones: cosine, likelihoods of counts, heads, and entries that are missing."""

import json
import math
import pickle
from functools import cache

import numpy as np
import pytest
from conftest import assert_close, backend_named
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import fastae
from fastae import ops
from fastae.io.model_file import decode, encode
from fastae.likelihoods import LIKELIHOODS
from fastae.plan import schema
from fastae.plan.losses import loss_record
from fastae.plan.plan import Job, PlanBuilder
from fastae.registry import forget
from fastae.spec import options

DTYPES = [np.float32, np.float64]
LOSSES = sorted(options.ALL_LOSSES)
NB, ZINB = fastae.NegativeBinomial, fastae.ZeroInflatedNegativeBinomial


def case(name, m, p, dtype, seed=0):
    """Outputs, targets and a mask with a row of nothing observed; targets have a row of zeros."""
    rng = np.random.default_rng(seed)
    option = options.ALL_LOSSES[name]()
    y = rng.normal(0, 2, (m, p * option.n_outputs)).astype(dtype)
    t = rng.poisson(2.0, (m, p)) if isinstance(option, options.LikelihoodOption) else rng.uniform(size=(m, p))
    mask = rng.random((m, p)) < 0.6
    t[m // 2], mask[m // 3] = 0, False
    return y, t.astype(dtype), mask


def row_values(backend, loss, y, t):
    """Each row's sum of a loss over its features, float64."""
    kind, attributes = loss_record(loss, t.shape[1], mean=False, masked=False)
    builder = PlanBuilder(y.dtype, len(y))
    arrays = {"y": y, "target": t, "row_value": np.empty((len(y), 1))}
    for name, array in arrays.items():
        builder.external(
            name, schema.BATCH_ROWS, array.shape[1], schema.FLOAT64 if name == "row_value" else schema.REAL
        )
    builder.op(kind, **{name: name for name in arrays}, **attributes)
    plan = builder.build()
    job = Job([*plan.allocate(), *arrays.values()], n_rows=len(y), phases=schema.GRADIENT)
    backend.run(backend.compile(plan), job)
    return arrays["row_value"][:, 0]


# ---- kernels ---


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_on_every_backend(tested_backend, name, dtype, masked):
    for m, p in ((7, 33), (3, 1), (61, 17)):
        y, t, mask = case(name, m, p, dtype)
        observed = mask if masked else None
        value, dy = ops.loss(name, y, t, observed, backend=tested_backend)
        expected, slope = ops.loss(name, y.astype(float), t.astype(float), observed, backend="reference")
        assert value == pytest.approx(expected, rel=64 * float(np.finfo(dtype).eps), abs=1e-30)
        assert_close(dy, slope, length=max(p, 16))
        if masked:
            gone = np.tile(~mask, options.ALL_LOSSES[name]().n_outputs)
            assert (dy[gone] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_by_finite_differences(name, masked):
    y, t, mask = case(name, 4, 5, np.float64, seed=1)
    observed = mask if masked else None
    _, dy = ops.loss(name, y, t, observed, backend="reference")
    for i in np.ndindex(y.shape):
        up, down = y.copy(), y.copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        slope = (ops.loss(name, up, t, observed, backend="reference")[0]
                 - ops.loss(name, down, t, observed, backend="reference")[0]) / 2e-6  # fmt: skip
        assert dy[i] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_loss_is_the_loss_of_what_is_observed(backend, name):
    y, t, mask = case(name, 9, 7, np.float64, seed=2)
    option, changed = options.ALL_LOSSES[name](), np.where(mask, t, 1e300)
    value, dy = ops.loss(option, y, changed, mask, backend=backend)
    total, gradient = 0.0, np.zeros_like(dy)
    for r, seen in enumerate(mask):
        if seen.any():
            columns = np.concatenate([np.flatnonzero(seen) + k * 7 for k in range(option.n_outputs)])
            one, slope = ops.loss(option, y[r : r + 1, columns], t[r : r + 1, seen], backend=backend)
            total, gradient[r, columns] = total + one / 9, slope / 9
    assert value == pytest.approx(total, rel=1e-13)
    np.testing.assert_allclose(dy, gradient, rtol=1e-12, atol=1e-15)


def test_cosine_of_rows_that_are_zero_huge_or_tiny(backend):
    y = np.array([[0, 0, 0], [1, 2, 3], [1e30, -2e30, 1e30], [3e-30, 0, 4e-30], [1, 0, 0], [2, 2, 1]], np.float32)
    t = np.array([[1, 2, 3], [0, 0, 0], [2e30, 1e30, 0], [3e30, 0, 4e30], [-5, 0, 0], [2, 2, 1]], np.float32)
    value = row_values(backend, fastae.CosineLoss(), y, t)
    np.testing.assert_allclose(value, [1, 1, 1, 0, 2, 0], atol=1e-7)
    _, dy = ops.loss("cosine", y, t, backend=backend)
    assert (dy[:2] == 0).all() and np.isfinite(dy).all()
    bad = np.array([[np.nan, 1, 2]])
    assert math.isnan(ops.loss("cosine", bad, np.ones((1, 3)), backend=backend)[0])


# ---- counts ---

COUNTS = np.array([0, 1, 2, 3, 5, 10, 33, 100, 1e3, 1e4, 1e5, 1e6])
T_, A_ = (grid.ravel() for grid in np.meshgrid(COUNTS, np.geomspace(1e-4, 1e4, 17)))


@cache
def exact():
    """log(Γ(a + t) / (Γ(a) Γ(t + 1))) and ψ(a + t) − ψ(a) of all pairs of counts and dispersions, as sums."""
    values = []
    for t, a in zip(T_, A_, strict=True):
        n = np.arange(1, int(t))
        first = (np.log(a), 1 / a) if t else (0.0, 0.0)
        values.append((first[0] + np.log1p((a - 1) / (1 + n)).sum(), first[1] + (1 / (a + n)).sum()))
    return np.array(values).T


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_choose_and_digamma_differences(dtype):
    from fastae.backends.reference import formulas

    eps, (exact_log, exact_digamma) = float(np.finfo(dtype).eps), exact()
    t, a = T_.astype(dtype), A_.astype(dtype)
    # what rounding the argument a itself costs
    log_condition, digamma_condition = A_ * exact_digamma * eps, exact_digamma * eps
    log, digamma = formulas.log_choose(t, a), formulas.digamma_rising(t, a)
    assert log.dtype == digamma.dtype == dtype
    assert (np.abs(log - exact_log) <= 16 * eps * np.maximum(np.abs(exact_log), 1) + log_condition).all()
    assert (np.abs(digamma - exact_digamma) <= 8 * eps * exact_digamma + digamma_condition).all()
    assert (log[T_ == 0] == 0).all() and (digamma[T_ == 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_binomial_over_all_counts_and_dispersions(tested_backend, dtype):
    """Every term of −log p, and both derivatives, to rounding; from one count to a million, Poisson to heavy tails."""
    eps, (exact_log, exact_digamma) = float(np.finfo(dtype).eps), exact()
    for log_mean in (-8.0, 0.0, 6.0):
        y = np.stack([np.full_like(A_, log_mean), np.log(A_)], axis=1).astype(dtype)
        y[:, 1] = np.clip(y[:, 1], -9.21, 9.21)
        t = T_[:, None].astype(dtype)
        loss = NB(size_factor=False)
        expected = row_values(backend_named("reference"), loss, y.astype(float), t.astype(float))
        theta, ratio = np.exp(y[:, 1].astype(float)), np.exp(log_mean - y[:, 1].astype(float))
        terms = np.abs(exact_log) + theta * np.log1p(ratio) + T_ * np.log1p(1 / ratio) + 1
        assert (np.abs(row_values(tested_backend, loss, y, t) - expected) <= 32 * eps * terms).all()
        n = len(t)
        _, dy = ops.loss(loss, y, t, backend=tested_backend)
        _, slope = ops.loss(loss, y.astype(float), t.astype(float), backend="reference")
        scale = theta * (np.log1p(ratio) + exact_digamma + 1) + T_ + 1
        assert (np.abs(dy - slope) * n <= 32 * eps * scale[:, None]).all()


def test_negative_binomial_is_scipys():
    rng = np.random.default_rng(3)
    t, y = rng.poisson(4, (40, 6)).astype(float), rng.normal(size=(40, 12))
    mean, theta = np.exp(y[:, :6]), np.exp(y[:, 6:])
    expected = -stats.nbinom.logpmf(t, theta, theta / (theta + mean))
    values = row_values(backend_named("reference"), NB(size_factor=False), y, t)
    np.testing.assert_allclose(values, expected.sum(axis=1), rtol=1e-13)
    size = t.mean(axis=1, keepdims=True)
    expected = -stats.nbinom.logpmf(t, theta, theta / (theta + size * mean)).mean()
    assert ops.loss("negative_binomial", y, t)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["negative_binomial", "zero_inflated_negative_binomial"])
def test_likelihoods_are_torchs(tested_backend, name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    y, t, _ = case(name, 30, 11, np.float64, seed=4)
    t = np.delete(t, 15, axis=0)
    y = np.delete(y, 15, axis=0)
    Y, X = torch.tensor(y, requires_grad=True), torch.tensor(t)
    blocks = Y.split(11, dim=1)
    mean, theta = X.mean(dim=1, keepdim=True) * blocks[0].exp(), blocks[1].exp()
    log_p = (torch.lgamma(X + theta) - torch.lgamma(theta) - torch.lgamma(X + 1)
             + theta * (theta / (theta + mean)).log() + X * (mean / (theta + mean)).log())  # fmt: skip
    if len(blocks) == 3:
        pi = blocks[2].sigmoid()
        log_p = torch.where(X > 0, (1 - pi).log() + log_p, (pi + (1 - pi) * log_p.exp()).log())
    loss = -log_p.mean()
    loss.backward()
    value, dy = ops.loss(name, y, t, backend=tested_backend)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(dy, Y.grad.numpy(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_beyond_the_limits_are_cut(backend, dtype):
    extremes = np.array([-1e30, -60, 60, 1e30])
    y = np.stack(np.meshgrid(extremes, extremes, extremes), axis=-1).reshape(-1, 3).astype(dtype)
    t = np.tile([0.0, 7.0], 32)[:, None].astype(dtype)
    for loss, width in ((NB(size_factor=False), 2), (ZINB(size_factor=False), 3), (ZINB(), 3)):
        assert np.isfinite(row_values(backend, loss, y[:, :width], t)).all()
        _, dy = ops.loss(loss, y[:, :width], t, backend=backend)
        assert (dy[:, :2] == 0).all() and np.isfinite(dy).all()


@pytest.mark.parametrize("loss", [NB(), ZINB()])
def test_a_row_of_zeros_says_nothing(backend, loss):
    y = np.random.default_rng(5).normal(size=(1, 5 * loss.n_outputs)).astype(np.float32)
    value, dy = ops.loss(loss, y, np.zeros((1, 5)), backend=backend)
    assert abs(value) < 1e-6
    assert np.abs(dy).max() < 1e-6


# ---- estimators ---

RNG = np.random.default_rng(6)
RATES = np.exp(RNG.normal(size=(90, 2)) @ RNG.normal(size=(2, 8)) * 0.5 + 1)
COUNT_ROWS = RNG.poisson(RATES * RNG.gamma(2, 0.5, RATES.shape)).astype(np.float32)
NUMBERS = RNG.normal(size=(90, 3)) @ RNG.normal(size=(3, 8))
MIXED = np.hstack([NUMBERS[:, :3], NUMBERS[:, 3:5] > 0, np.eye(3)[np.argmax(NUMBERS[:, 5:], axis=1)]])
MIXED_HEADS = fastae.Heads((3, "squared_error"), (2, "binary_cross_entropy"), (3, "categorical_cross_entropy", 0.5))
SETTINGS = {"n_components": 2, "hidden_layer_sizes": (9,), "max_iter": 8, "batch_size": 31, "random_state": 0}


def fit(X, y=None, mask=None, **parameters):
    return fastae.Autoencoder(**SETTINGS | parameters).fit(X, mask=mask)


@pytest.mark.parametrize("loss", [NB(), ZINB(), ZINB(size_factor=False)])
def test_models_of_counts(backend, loss):
    model = fit(COUNT_ROWS, loss=loss, input_transform="log1p", learning_rate=1e-2, max_iter=60, backend=backend)
    shown = model.distribution(COUNT_ROWS)
    assert list(shown) == ["mean", "dispersion", "dropout"][: loss.n_outputs]
    assert all(array.shape == COUNT_ROWS.shape and array.dtype == np.float32 for array in shown.values())
    np.testing.assert_array_equal(shown["mean"], model.reconstruct(COUNT_ROWS))
    mean, theta = (shown[name].astype(float) for name in ("mean", "dispersion"))
    expected = -stats.nbinom.logpmf(COUNT_ROWS, theta, theta / (theta + mean))
    if loss.n_outputs == 3:
        pi = shown["dropout"].astype(float)
        expected = np.where(COUNT_ROWS > 0, expected - np.log1p(-pi), -np.log(pi + (1 - pi) * np.exp(-expected)))
    assert model.head_losses(COUNT_ROWS)[0] == pytest.approx(expected.mean(), rel=1e-4)
    assert model.loss_ < model.loss_curve_[0] - 0.1
    relative = model.inverse_transform(model.transform(COUNT_ROWS))
    size = COUNT_ROWS.mean(axis=1, keepdims=True) if loss.size_factor else 1
    np.testing.assert_allclose(relative * size, mean, rtol=1e-4)
    np.testing.assert_allclose(model.score_samples(COUNT_ROWS), -((mean - COUNT_ROWS) ** 2).mean(axis=1), rtol=1e-4)


def test_log1p_is_what_the_encoder_sees(backend):
    plain = fit(np.log1p(COUNT_ROWS), backend=backend)
    seen = fit(COUNT_ROWS, input_transform="log1p", backend=backend, max_iter=1)
    encoder, decoder = plain.weights_[:2], plain.weights_[2:]
    same = fastae.Autoencoder.from_arrays(encoder, decoder, activation="relu", input_transform="log1p", backend=backend)
    np.testing.assert_allclose(same.transform(COUNT_ROWS), plain.transform(np.log1p(COUNT_ROWS)), rtol=1e-4, atol=1e-5)
    for call in (seen.fit, seen.transform, seen.score_samples):
        with pytest.raises(ValueError, match=r"Negative values in data cannot be used with input_transform='log1p'"):
            call(-COUNT_ROWS)


def test_heads_are_their_losses(backend):
    heads = MIXED_HEADS
    model = fit(MIXED, loss=heads, backend=backend, max_iter=40, learning_rate=1e-2)
    shown, each = model.reconstruct(MIXED), model.head_losses(MIXED)
    np.testing.assert_allclose(shown[:, 5:].sum(axis=1), 1, rtol=1e-6)
    assert ((shown[:, 3:5] > 0) & (shown[:, 3:5] < 1)).all()
    p, x = shown[:, 3:], MIXED[:, 3:]
    expected = [((shown[:, :3] - MIXED[:, :3]) ** 2).mean(),
                -(x * np.log(p) + (1 - x) * np.log1p(-p))[:, :2].mean(),
                -(x * np.log(p))[:, 2:].mean()]  # fmt: skip
    np.testing.assert_allclose(each, expected, rtol=1e-9)
    frozen = clone(model).set_params(learning_rate=1e-300, max_iter=1, batch_size=90)
    frozen.set_params(initializer=model.weights_).fit(MIXED)
    assert frozen.loss_ == pytest.approx(each @ [1, 1, 0.5], rel=1e-10)
    assert model._row_values("loss", MIXED).mean() == pytest.approx(each @ [1, 1, 0.5], rel=1e-10)
    parts = model.distribution(MIXED)
    np.testing.assert_array_equal(np.hstack([part["mean"] for part in parts]), shown)
    assert model.loss_ < 0.7 * model.loss_curve_[0]


def test_one_head_of_all_columns_is_the_plain_loss(backend):
    for loss in ("huber", "multinomial", "negative_binomial"):
        plain = fit(COUNT_ROWS, loss=loss, backend=backend, max_iter=3)
        headed = fit(COUNT_ROWS, loss=fastae.Heads((8, loss)), backend=backend, max_iter=3)
        assert plain.loss_curve_ == headed.loss_curve_
        np.testing.assert_array_equal(plain.reconstruct(COUNT_ROWS), headed.reconstruct(COUNT_ROWS))


def test_heads_of_counts_and_numbers_in_any_order(backend):
    X = np.hstack([NUMBERS[:, :2], COUNT_ROWS])
    heads = fastae.Heads((slice(2, 10), ZINB()), ([0, 1], "squared_error"))
    model = fit(X, loss=heads, backend=backend)
    counts, numbers = model.distribution(X)
    assert counts["dropout"].shape == (90, 8) and numbers["mean"].shape == (90, 2)
    np.testing.assert_array_equal(model.reconstruct(X), np.hstack([numbers["mean"], counts["mean"]]))


MISSING_CASES = {
    "squared error": (NUMBERS, "squared_error", {}),
    "sum, noise, dropout": (NUMBERS, "huber", {"reduction": "sum", "noise": "masking", "dropout": 0.2}),
    "cosine, early stopping": (NUMBERS, "cosine", {"early_stopping": True}),
    "counts": (COUNT_ROWS, "zero_inflated_negative_binomial", {"input_transform": "log1p"}),
    "heads": (MIXED, MIXED_HEADS, {"initializer": "pca"}),
    "Laplacian": (NUMBERS, "squared_error", {"penalties": [fastae.Laplacian(3, 0.1)]}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISSING_CASES)
def test_nan_mask_and_number_are_the_same(backend, name):
    X, loss, more = MISSING_CASES[name]
    observed = np.random.default_rng(7).random(X.shape) < 0.7
    observed[4] = False
    given = {"loss": loss, "backend": backend, "max_iter": 3, **more}
    gone, marked = np.where(observed, X, np.nan), np.where(observed, X, -77.0)
    by_nan, by_number = fit(gone, missing=np.nan, **given), fit(marked, missing=-77, **given)
    by_mask = fit(np.where(observed, X, 1e9 if "counts" not in name else 5), mask=observed, **given)
    by_both = fit(np.where(observed, X, 3), mask=observed, missing=-77, **given)
    for model in (by_number, by_mask, by_both):
        assert model.loss_curve_ == by_nan.loss_curve_
        assert model.validation_scores_ == by_nan.validation_scores_
        for (a, _), (b, _) in zip(model.weights_, by_nan.weights_, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(by_nan.reconstruct(gone), by_number.reconstruct(marked))
    np.testing.assert_array_equal(by_nan.reconstruct(gone), by_mask.reconstruct(gone))
    scores = by_nan.score_samples(gone)
    errors = np.where(observed, by_nan.reconstruct(gone) - X, 0.0) ** 2
    expected = -errors.sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
    np.testing.assert_allclose(scores, expected, rtol=2e-4 if X.dtype == np.float32 else 1e-11, atol=1e-12)
    assert scores[4] == 0
    np.testing.assert_array_equal(scores, by_number.score_samples(marked))
    np.testing.assert_array_equal(by_nan.head_losses(gone), by_number.head_losses(marked))


def test_what_is_missing_does_not_matter_and_can_be_filled_in():
    basis = np.random.default_rng(8)
    X = basis.normal(size=(800, 2)) @ basis.normal(size=(2, 10))
    observed = basis.random(X.shape) < 0.8
    model = fastae.Autoencoder(2, hidden_layer_sizes=(32,), activation="tanh", max_iter=150, missing=np.nan,
                               learning_rate=5e-3, random_state=0).fit(np.where(observed, X, np.nan))  # fmt: skip
    filled = model.reconstruct(np.where(observed, X, np.nan))
    assert ((filled - X)[~observed] ** 2).mean() < 0.3 * X[~observed].var()


@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"loss": "cosine"}], ids=str)
def test_rows_without_an_observed_entry_are_no_data(options):
    said = "no entry of X is observed"
    gone = np.full((40, 4), np.nan)
    for X, missing in ((gone, np.nan), (np.full((40, 4), -1, np.int8), -1), (sparse.csr_array((40, 4)), 0),
                       (sparse.csr_array(np.full((40, 4), np.nan)), np.nan)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{said}.*missing={missing!r}"):
            fit(X, missing=missing, **options)
    with pytest.raises(ValueError, match=f"{said}.*mask"):
        fit(np.ones((40, 4)), mask=np.zeros((40, 4), bool), **options)
    one = gone.copy()
    one[39, 3] = 2
    fit(one, missing=np.nan, **options)
    if not options:
        with pytest.raises(ValueError, match=said):
            fit((part for part in (gone, gone)), missing=np.nan, max_iter=1)
        fit((part for part in (gone, one)), missing=np.nan, max_iter=1)
        fit(one, missing=np.nan).partial_fit(gone)  # a batch may have nothing to say


def test_sparse_ratings():
    dense = np.where(RNG.random((90, 8)) < 0.4, RNG.integers(1, 6, (90, 8)), 0)
    for make, dtype in ((sparse.csr_array, np.uint8), (sparse.csr_matrix, np.float64), (sparse.csc_array, np.float32)):
        a = fit(make(dense.astype(dtype)), missing=0)
        b = fit(dense.astype(dtype), missing=0)
        assert a.loss_curve_ == b.loss_curve_
        np.testing.assert_array_equal(a.score_samples(make(dense.astype(dtype))), b.score_samples(dense.astype(dtype)))
    with_nan = sparse.csr_array(np.where(dense == 3, np.nan, dense))
    c = fit(with_nan, missing=np.nan)
    d = fit(np.where(dense == 3, np.nan, dense), missing=np.nan)
    assert c.loss_curve_ == d.loss_curve_
    heads = fastae.Heads((5, "squared_error"), (3, "categorical_cross_entropy"))
    mixed = np.hstack([dense[:, :5], MIXED[:, 5:]])
    assert fit(sparse.csr_array(mixed), loss=heads).loss_curve_ == fit(mixed, loss=heads).loss_curve_


def test_frames_integers_halves_and_partial_fits():
    pandas = pytest.importorskip("pandas")
    gone = np.where(RNG.random(NUMBERS.shape) < 0.7, NUMBERS, np.nan)
    frame = pandas.DataFrame(gone, columns=list("abcdefgh"))
    assert fit(frame, missing=np.nan).loss_curve_ == fit(gone, missing=np.nan).loss_curve_
    nullable = frame.convert_dtypes()
    assert fit(nullable, missing=np.nan).loss_curve_ == fit(gone, missing=np.nan).loss_curve_
    whole = np.where(np.isnan(gone), -9, np.round(gone * 3)).astype(np.int16)
    half = np.where(whole == -9, np.nan, whole).astype(np.float16)
    assert fit(whole, missing=-9).loss_curve_ == fit(half, missing=np.nan).loss_curve_
    observed = ~np.isnan(gone)
    a = fastae.Autoencoder(**SETTINGS, missing=np.nan).partial_fit(gone).partial_fit(gone)
    b = fastae.Autoencoder(**SETTINGS).partial_fit(NUMBERS, mask=observed).partial_fit(NUMBERS, mask=observed)
    assert a.loss_curve_ == b.loss_curve_ and len(a.loss_curve_) == 2


def test_threads_change_no_bit(native_backend):
    for loss, X in ((ZINB(), COUNT_ROWS), ("cosine", NUMBERS), (MIXED_HEADS, MIXED)):
        gone = np.where(RNG.random(X.shape) < 0.8, X, np.nan)
        models = [fit(gone, missing=np.nan, loss=loss, n_jobs=n, backend=native_backend, batch_size=90) for n in (1, 3)]
        np.testing.assert_array_equal(models[0].weights_[0][0], models[1].weights_[0][0])
        np.testing.assert_array_equal(models[0].score_samples(gone), models[1].score_samples(gone))
        assert models[0].reconstruct(gone[5:6]).tolist() == models[0].reconstruct(gone)[5:6].tolist()


def test_models_come_back(tmp_path):
    gone = np.where(RNG.random(MIXED.shape) < 0.8, MIXED, np.nan)
    heads = fastae.Heads((slice(0, 3), ZINB(size_factor=False)), (2, "binary_cross_entropy"), (3, "multinomial", 0.5))
    X = np.abs(np.round(gone))
    for model in (fit(X, loss=heads, missing=np.nan, input_transform="log1p"), fit(NUMBERS, mask=~np.isnan(gone))):
        rows = X if model.missing is not None else gone
        model.save(tmp_path / "model.safetensors")
        for same in (fastae.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))):
            assert same.get_params()["loss"] == model.loss
            np.testing.assert_array_equal(same.reconstruct(rows), model.reconstruct(rows))
            np.testing.assert_array_equal(same.score_samples(rows), model.score_samples(rows))
        assert clone(model).get_params()["loss"] == model.loss


@pytest.mark.parametrize(
    "heads",
    [
        fastae.Heads((3, "huber"), ([3, 4], NB(), 2)),
        fastae.Heads([fastae.Head(slice(0, 2)), fastae.Head(1, "poisson")]),
    ],
)
def test_heads_come_back_as_options(heads):
    assert decode(json.loads(json.dumps(encode(heads)))) == heads
    assert eval(repr(heads), vars(fastae) | vars(options) | {"Head": fastae.Head, "Heads": fastae.Heads}) == heads
    assert hash(heads) == hash(pickle.loads(pickle.dumps(heads)))
    assert decode(json.loads(json.dumps(encode(float("-inf"))))) == -np.inf


@pytest.mark.parametrize(
    "parameters, X, message",
    [
        ({}, np.full((3, 8), np.nan), "contains NaN.*missing=np.nan"),
        ({"missing": 0}, np.full((3, 8), np.nan), "contains NaN"),
        ({"missing": np.nan}, np.full((3, 8), np.inf), "infinity"),
        ({"missing": "nan"}, NUMBERS, "missing='nan' must be None, NaN or a number"),
        ({"missing": np.inf}, NUMBERS, "missing=inf must be in"),
        ({"missing": 0, "loss": "multinomial"}, COUNT_ROWS, "missing=0 does not go with loss='multinomial'"),
        ({"missing": 0, "loss": MIXED_HEADS}, MIXED, "missing=0 does not go with"),
        ({"input_transform": "sqrt"}, COUNT_ROWS, "input_transform='sqrt' is unknown"),
        ({"loss": "negative_binomial"}, NUMBERS, "Negative values in data .*wants values >= 0"),
        ({"loss": "negative_binomial", "missing": np.nan}, np.where(NUMBERS > 2, np.nan, NUMBERS), "Negative values"),
        ({"loss": NB(), "output_activation": "exponential"}, COUNT_ROWS, "leave it at 'identity'"),
        ({"loss": NB(), "tied_weights": True}, COUNT_ROWS, "16 outputs for 8 features; untie"),
        ({"loss": MIXED_HEADS, "output_activation": "relu"}, MIXED, "leave it at 'identity'"),
        ({"loss": fastae.Heads((3, "huber"), (4, "huber"))}, MIXED, "column 7 of X is in no head; the heads cover 7"),
        ({"loss": fastae.Heads((5, "huber"), (4, "huber"))}, MIXED, r"head 1 has columns 5\.\.8, X has 8 columns"),
        ({"loss": fastae.Heads((8, "huber"), (slice(2, 4), "huber"))}, MIXED, "column 2 is in head 0 and in head 1"),
        ({"loss": fastae.Heads((3, "huber"), (5, "binary_cross_entropy"))}, NUMBERS, r"columns 3\.\.7 of X have"),
        ({"loss": MIXED_HEADS}, np.hstack([MIXED[:, :5], MIXED[:, :3] ** 2]), r"rows of columns 5\.\.7 of X must sum"),
        ({"loss": MIXED_HEADS}, sparse.csr_array(np.hstack([MIXED[:, :5], MIXED[:, :3] ** 2])), "must sum to 1"),
    ],
)  # fmt: skip
def test_refusals(parameters, X, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(X, **parameters)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fastae.Heads(), "at least one head"),
        (lambda: fastae.Heads(3), "must be \\(columns, loss\\)"),
        (lambda: fastae.Heads((3, "hubert")), "did you mean 'huber'"),
        (lambda: fastae.Heads((3, MIXED_HEADS)), "must be a name or one of"),
        (lambda: fastae.Heads(([0, 2], "huber")), "consecutive"),
        (lambda: fastae.Heads((slice(2, None), "huber")), "must have an end"),
        (lambda: fastae.Heads(("ab", "huber")), "a number of columns, a slice"),
        (lambda: fastae.Heads((0, "huber")), "columns=0 must be in"),
        (lambda: fastae.Heads(([0.5, 1.5], "huber")), "a number of columns, a slice"),
        (lambda: fastae.Heads(([False, True], "huber")), "a number of columns, a slice"),
        (lambda: fastae.Heads((slice("a", "b"), "huber")), "a number of columns, a slice"),
        (lambda: fit(COUNT_ROWS, loss="poisson").head_losses(-COUNT_ROWS), "Negative values"),
        (lambda: fastae.Head(2, "huber", -1.0), "Head.weight=-1.0 must be in"),
        (lambda: fit(NUMBERS, mask=np.ones((90, 7), bool)), "mask has shape"),
        (lambda: fit(NUMBERS, mask=np.ones((90, 8))), "dtype float64; wanted bool"),
        (lambda: fit(sparse.csr_array(NUMBERS), mask=np.ones((90, 8), bool)), "use missing=0"),
        (lambda: fit(np.where(NUMBERS > 0, NUMBERS, np.nan), mask=np.ones((90, 8), bool)), "NaN where mask is True"),
        (lambda: ops.loss("huber", NUMBERS, NUMBERS, np.ones((90, 7), bool)), "mask has shape"),
        (lambda: ops.loss("negative_binomial", NUMBERS, NUMBERS), "target has shape"),
        (lambda: fit(NUMBERS).transform(np.full((2, 8), np.nan)), "missing=np.nan"),
    ],
)
def test_calls_that_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_tag_follows_the_parameter():
    from sklearn.utils import get_tags

    assert get_tags(fastae.Autoencoder(missing=np.nan)).input_tags.allow_nan
    assert not get_tags(fastae.Autoencoder(missing=0.0)).input_tags.allow_nan
    assert not get_tags(fastae.Autoencoder()).input_tags.allow_nan


def test_plans_name_parts_of_buffers():
    model = fit(MIXED, loss=MIXED_HEADS, max_iter=1)
    text = repr(model.plan_)
    assert "target=x[3:5](m,2)" in text and "dy=delta[5:8](m,3)" in text


def test_every_likelihood_has_its_outputs():
    for row in LIKELIHOODS:
        assert row.outputs[0].name == "mean"
        assert len({output.letter for output in row.outputs}) == len(row.outputs)


# ---- with what else there is ---


def test_what_is_missing_is_looked_for_as_it_is_stored():
    """-0.1 of float32 is no -0.1 of float64, which the PCA of the initialiser and the neighbours are made in."""
    X = np.random.default_rng(9).uniform(size=(200, 8)).astype(np.float32)
    gone = np.random.default_rng(10).random(X.shape) < 0.2
    options = {"initializer": "pca", "penalties": [fastae.Laplacian(5, strength=0.1)]}
    by_number = fit(np.where(gone, np.float32(-0.1), X), missing=-0.1, **options)
    assert by_number.loss_curve_ == fit(np.where(gone, np.float32("nan"), X), missing=np.nan, **options).loss_curve_


def test_diagnosis_and_pca_know_what_is_missing():
    observed = np.random.default_rng(9).random((200, 8)) < 0.8
    X = np.random.default_rng(10).uniform(size=(200, 2)) @ np.random.default_rng(11).uniform(size=(2, 8)) / 2
    marked = np.where(observed, X, -999.0)
    by_number = fit(marked, missing=-999, output_activation="sigmoid", max_iter=30)  # no warning of the range
    by_nan = fit(np.where(observed, X, np.nan), missing=np.nan, output_activation="sigmoid", max_iter=30)
    seen, same = by_number.diagnose(marked), by_nan.diagnose(np.where(observed, X, np.nan))
    assert seen == same and seen.data_range == (X[observed].min(), X[observed].max())
    for model, rows in ((by_number, marked), (by_nan, np.where(observed, X, np.nan))):
        with pytest.raises(ValueError, match="PCA needs whole rows"):
            model.compare_to_pca(rows)
    with pytest.warns(fastae.WorseThanPCAWarning):  # X has rank 2
        assert fit(X, missing=np.nan).compare_to_pca(X).n_rows == 200
    for loss, message in (("cosine", "directions"), (fastae.Heads((4, "huber"), (4, "multinomial")), "distributions")):
        with pytest.raises(ValueError, match=message):
            fit(X, loss=loss).compare_to_pca(X)
    assert fit(X, loss="cosine").diagnose(X).explained_variance is None


@pytest.mark.parametrize("loss", ["squared_error", "zero_inflated_negative_binomial"])
def test_pretraining(loss):
    X = np.where(RNG.random(COUNT_ROWS.shape) < 0.8, COUNT_ROWS, np.nan)
    given = {"hidden_layer_sizes": (12,), "n_components": 3, "activation": "sigmoid", "input_transform": "log1p",
             "loss": loss, "random_state": 0, "max_iter": 2, "missing": np.nan}  # fmt: skip
    model = fastae.StackedAutoencoder(**given).fit(X)
    assert [len(losses) for losses in model.pretraining_losses_] == [15, 15]
    assert model.pretraining_losses_[0][-1] < model.pretraining_losses_[0][0]
    assert clone(model).get_params()["input_transform"] == "log1p"
    assert np.isfinite(model.transform(X)).all()
    masked = fastae.StackedAutoencoder(**given | {"missing": None}).fit(np.nan_to_num(X), mask=~np.isnan(X))
    assert masked.pretraining_losses_ == model.pretraining_losses_
    option = fastae.DenoisingPretraining(loss="squared_error")
    if loss == "squared_error":
        fastae.StackedAutoencoder(**given, pretraining=option).fit(X)
    else:
        with pytest.raises(ValueError, match="has for each feature; use loss='auto'"):
            fastae.StackedAutoencoder(**given, pretraining=option).fit(X)


def test_full_batch_solvers_and_registered_losses():
    X = np.where(RNG.random(NUMBERS.shape) < 0.8, NUMBERS, np.nan)
    settings = {"n_components": 2, "activation": "tanh", "random_state": 0, "missing": np.nan, "max_iter": 60}
    with pytest.warns(ConvergenceWarning):
        model = fastae.Autoencoder(**settings, solver="lbfgs", tol=0).fit(X)
    assert model.loss_ < 0.5 * model.loss_curve_[0]
    option = fastae.register_loss("fourth_power", value="(y - t) * (y - t) * (y - t) * (y - t)",
                         dy="4 * (y - t) * (y - t) * (y - t)")  # fmt: skip
    try:
        heads = fastae.Heads((3, "squared_error"), (5, "fourth_power"))
        model = fit(X, loss=heads, missing=np.nan)
        error = np.where(np.isnan(X), 0, model.reconstruct(X) - X)[:, 3:] ** 4
        expected = (error.sum(axis=1) / np.maximum((~np.isnan(X))[:, 3:].sum(axis=1), 1)).mean()
        assert model.head_losses(X)[1] == pytest.approx(expected, rel=1e-12)
    finally:
        forget(option._index)
