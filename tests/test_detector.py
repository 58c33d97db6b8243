"""AutoencoderDetector: conventions, thresholds, scores from residuals, safety on awkward data, files, determinism."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

import fastae
from fastae.plan.plan import Source
from fastae.tasks import residuals
from fastae.tasks.scaling import LIMIT, Scaling

SCORINGS = residuals.SCORINGS


def factors(n=400, p=9, outliers=20, seed=0):
    """Rows on three factors with a little noise, the last ones off them; labels 1 for those."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, p)) + 0.1 * rng.normal(size=(n, p))
    X[n - outliers :] = rng.permuted(X[n - outliers :], axis=0)  # same columns, without what ties them together
    return X, (np.arange(n) >= n - outliers).astype(int)


def detector(**parameters):
    return fastae.AutoencoderDetector(**{"random_state": 0, "max_iter": 10, "batch_size": 64} | parameters)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_it_finds_rows_off_the_factors(scoring):
    X, y = factors()
    fitted = detector(scoring=scoring, max_iter=60, learning_rate=1e-2, contamination=0.05).fit(X)
    assert roc_auc_score(y, fitted.decision_scores_) > (0.95 if scoring == "mahalanobis" else 0.75)
    new, labels = factors(seed=0, n=300, outliers=30)
    assert fitted.anomaly_scores(new).shape == labels.shape


def test_both_conventions():
    X, _ = factors()
    fitted = detector(contamination=0.1).fit(X)
    scores = fitted.anomaly_scores(X)
    np.testing.assert_array_equal(scores, fitted.decision_scores_)
    np.testing.assert_array_equal(fitted.score_samples(X), -scores)
    np.testing.assert_array_equal(fitted.decision_function(X), fitted.score_samples(X) - fitted.offset_)
    assert fitted.offset_ == -fitted.threshold_
    np.testing.assert_array_equal(fitted.predict(X), np.where(fitted.decision_function(X) < 0, -1, 1))
    np.testing.assert_array_equal(fitted.labels_, (fitted.predict(X) == -1).astype(int))
    np.testing.assert_array_equal(clone(fitted).fit_predict(X), fitted.predict(X))
    assert set(fitted.labels_) == {0, 1} and scores.dtype == np.float64 and (scores >= 0).all()


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.25, 0.5])
def test_contamination_is_the_fraction_of_training_rows(contamination):
    X, _ = factors(n=301)
    fitted = detector(contamination=contamination, max_iter=2).fit(X)
    assert abs(fitted.labels_.mean() - contamination) <= 1 / len(X)
    twins = detector(contamination=contamination, max_iter=2, scoring="plain").fit(np.repeat(X[:3], 50, axis=0))
    highest = twins.decision_scores_ == twins.decision_scores_.max()
    assert highest.sum() == 50 and twins.labels_[highest].all()  # not none of them, where the quantile is theirs


@pytest.mark.parametrize("contamination", [0, -0.1, 0.51, 2, np.nan, "some", None])
def test_contamination_out_of_range(contamination):
    with pytest.raises((ValueError, TypeError), match="contamination"):
        detector(contamination=contamination).fit(factors()[0])


@pytest.mark.parametrize("p", [2, 3, 10, 100])
def test_automatic_threshold_on_chi_square(p):
    rng = np.random.default_rng(p)
    scores = rng.chisquare(p, 200_000) / p
    flagged = (scores > residuals.tail_threshold(scores)).mean()
    assert 0.0006 < flagged < 0.002  # a Gaussian's 0.00135
    # a fifth of gross outliers moves it little, and all of them are found
    dirty = np.append(scores[:800], np.full(200, 1e6))
    assert (dirty > residuals.tail_threshold(dirty)).sum() in range(200, 204)


def test_automatic_threshold_at_its_limits():
    assert (np.ones(9) > residuals.tail_threshold(np.ones(9))).sum() == 0
    assert (np.zeros(9) > residuals.tail_threshold(np.zeros(9))).sum() == 0
    assert residuals.tail_threshold(np.array([3.0])) == 3.0
    mostly_equal = np.array([1.0] * 20 + [1.1, 50.0])
    assert list(np.flatnonzero(mostly_equal > residuals.tail_threshold(mostly_equal))) == [21]
    close = np.linspace(1.0, 1.1, 11)
    assert list(np.flatnonzero(close > residuals.tail_threshold(close))) == [10]  # the highest, always


def test_mahalanobis_is_that_of_ledoit_and_wolf(tested_backend):
    rng = np.random.default_rng(1)
    E = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    X = rng.normal(size=E.shape)

    def blocks():
        for start in range(0, 300, 128):
            yield X[start : start + 128], E[start : start + 128]

    score = residuals.learn("mahalanobis", blocks, 7, tested_backend, 2)
    z = (E - E.mean(axis=0)) / E.std(axis=0)
    expected = LedoitWolf(assume_centered=True).fit(z).mahalanobis(z) / 7
    got = score(E.copy(), tested_backend, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    single = score(E.astype(np.float32), tested_backend, 2)
    np.testing.assert_allclose(single, expected, rtol=2e-4)
    plainer = residuals.learn("standardized", blocks, 7, tested_backend, 1)
    got = plainer(E.copy(), tested_backend, 1)
    np.testing.assert_allclose(got, np.square(z).mean(axis=1), rtol=1e-10)


def test_plain_is_the_autoencoders_own_error():
    X, _ = factors()
    fitted = detector(scoring="plain").fit(X)
    scaled = (X - fitted.scaling_.center) / fitted.scaling_.scale
    np.testing.assert_allclose(-fitted.autoencoder_.score_samples(scaled), fitted.decision_scores_, rtol=1e-12)


def test_outliers_in_training_do_not_hide_themselves():
    X, _ = factors(n=300, p=5, outliers=1)
    X[:20] = 40 + np.random.default_rng(1).normal(size=(20, 5))  # a clump far out
    for scoring in SCORINGS:
        fitted = detector(scoring=scoring).fit(X)
        assert fitted.labels_[:20].all() and fitted.labels_.sum() < 40


# ---- scaling ---


@pytest.mark.parametrize("kind", ["robust", "standard", "minmax", "maxabs"])
def test_scaling_of_awkward_columns(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 8))
    X[:, 0] = 0.1  # constant, not exactly representable
    X[:, 1] = 0.0
    X[:, 2] = rng.normal(size=50) * 1e300
    X[:, 3] = rng.normal(size=50) * 1e-300
    X[:, 4] = 0.0
    X[7, 4] = 3.0  # no range between the quantiles
    X[:, 5] += 1e9
    X[9, 6] = 1e200
    scaling = Scaling.learn(kind, Source(X, columns=8))
    assert np.isfinite(scaling.center).all() and np.isfinite(scaling.scale).all() and (scaling.scale > 0).all()
    for dtype in (np.float32, np.float64):
        scaled = scaling.rows(Source(X, columns=8), slice(None), np.dtype(dtype))
        assert np.isfinite(scaled).all() and abs(scaled).max() <= LIMIT and scaled.dtype == dtype
        if kind != "maxabs":
            assert (scaled[:, :2] == scaled[0, :2]).all() and abs(scaled[:, :2]).max() < 1e-9
        assert 0.1 < np.ptp(scaled[:, 2]) < 10 and 0.1 < np.ptp(scaled[:, 3]) < 10
        assert scaled[7, 4] > 0.9


def test_scaling_against_scikit_learn():
    from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

    X = np.random.default_rng(0).normal(3, 2, size=(101, 5))
    robust = RobustScaler(quantile_range=(5, 95), unit_variance=True)
    for kind, theirs in (("standard", StandardScaler()), ("minmax", MinMaxScaler()), ("robust", robust)):
        ours = Scaling.learn(kind, Source(X, columns=5)).rows(Source(X, columns=5), slice(None), np.dtype(np.float64))
        np.testing.assert_allclose(ours, theirs.fit_transform(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scaling", ["maxabs", None])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_sparse_rows_are_as_good_as_dense(scaling, scoring):
    X = sparse.random(130, 23, 0.3, format="csr", random_state=0, dtype=np.float64) * 5
    dense = detector(scaling=scaling, scoring=scoring).fit(X.toarray())
    thin = detector(scaling=scaling, scoring=scoring).fit(sparse.csr_array(X))
    np.testing.assert_allclose(thin.decision_scores_, dense.decision_scores_, rtol=1e-9)
    np.testing.assert_allclose(thin.anomaly_scores(X.tocsc()[:9]), dense.decision_scores_[:9], rtol=1e-9)


def test_sparse_rows_that_scaling_would_fill():
    with pytest.raises(ValueError, match=r"sparse.*scaling='maxabs'"):
        detector().fit(sparse.csr_array(np.eye(5)))


# ---- awkward data ---


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("rows", [np.full((40, 3), 7.5), np.zeros((2, 1), np.float32), np.ones((1, 4))])
def test_one_constant_score_is_never_silent(scoring, rows):
    with pytest.warns(UserWarning, match=r"same anomaly score.*(all alike|fit more rows)"):
        fitted = detector(scoring=scoring, contamination=0.2).fit(rows)
    assert not fitted.labels_.any() and np.isfinite(fitted.decision_scores_).all()
    far = fitted.anomaly_scores(rows[:1] + 5)
    assert np.isfinite(far).all() and far > fitted.threshold_  # and yet a row unlike them is one


def test_a_constant_score_of_rows_that_differ():
    with pytest.warns(UserWarning, match="reconstructs them all equally well"):
        detector(scoring="plain", scaling=None, initializer=fastae.Normal(1e-9), learning_rate=1e-12).fit(
            np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        )
    with pytest.warns(UserWarning, match="fit more rows"):
        detector().fit(np.random.default_rng(0).normal(size=(2, 5)))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n, p", [(3, 5), (3, 1), (7, 40), (33, 33)])
def test_fewer_rows_than_features(scoring, dtype, n, p):
    X = np.random.default_rng(n).normal(size=(n, p)).astype(dtype)
    fitted = detector(scoring=scoring, contamination=0.4, batch_size=256).fit(X)
    assert np.isfinite(fitted.decision_scores_).all() and np.isfinite(fitted.anomaly_scores(100 * X)).all()
    assert fitted.autoencoder_.t_ == 10  # a batch that isn't full trains too


@pytest.mark.parametrize("scoring", SCORINGS)
def test_constant_and_repeated_columns(scoring):
    X, _ = factors(p=7)
    wide = np.column_stack([X, X, np.full(len(X), 3.0), X[:, 0] * 1e6]).astype(np.float32)
    fitted = detector(scoring=scoring).fit(wide)
    assert np.isfinite(fitted.decision_scores_).all()
    ordinary, changed = wide[:1], wide[:1].copy()
    changed[0, 14] = 60.0
    assert fitted.anomaly_scores(changed) > max(fitted.threshold_, 5 * fitted.anomaly_scores(ordinary)[0])
    if scoring == "mahalanobis":  # two columns that were always equal
        changed = wide[:1].copy()
        changed[0, 0] = changed[0, 7] + 1
        assert fitted.predict(changed) == [-1]


@pytest.mark.parametrize("scoring", SCORINGS)
def test_enormous_values_have_enormous_scores(scoring):
    X, _ = factors()
    for dtype, size in ((np.float32, 1e38), (np.float64, 1e308)):
        fitted = detector(scoring=scoring).fit(X.astype(dtype))
        far = X[:2].astype(dtype)
        far[0, 3], far[1, :] = size, -size
        scores = fitted.anomaly_scores(far)
        assert np.isfinite(scores).all() and (scores > 1e6).all()
    X[0, 0] = 1e300
    fitted = detector(scoring=scoring).fit(X)
    assert np.argmax(fitted.decision_scores_) == 0


def test_scores_that_cannot_be_finite_are_an_error():
    fitted = detector(scaling=None, scoring="plain").fit(factors()[0])
    with pytest.raises(ValueError, match=r"row 1 is not finite.*scaling='robust'"):
        fitted.anomaly_scores(np.array([[0.0] * 9, [1e200] * 9]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_values_are_refused(bad):
    X, _ = factors()
    fitted = detector().fit(X)
    X[3, 4] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        detector().fit(X)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        fitted.predict(X)


@pytest.mark.parametrize(
    "parameters, error",
    [
        ({"scoring": "best"}, ValueError), ({"scaling": "unit"}, ValueError), ({"n_components": "some"}, ValueError),
        ({"n_components": 0}, ValueError), ({"max_iter": 0}, ValueError), ({"loss": "huge"}, ValueError),
        ({"backend": "abacus"}, ValueError), ({"device": "cuda"}, ImportError), ({"learning_rate": "fast"}, TypeError),
    ],
)  # fmt: skip
def test_a_refused_fit_leaves_the_detector_as_it_was(parameters, error):
    X, _ = factors()
    fitted = detector().fit(X)
    before = dict(fitted.__dict__)
    with pytest.raises(error):
        fitted.set_params(**parameters).fit(X[:, :4])
    after = dict(fitted.__dict__)
    assert all(after[name] is before[name] for name in before if name not in parameters)


# ---- the same bits ---


@pytest.mark.parametrize("scoring", SCORINGS)
def test_threads_and_blocks(native_backend, scoring, monkeypatch):
    X, _ = factors(n=700, p=13)
    X = X.astype(np.float32)
    fitted = [detector(backend=native_backend, n_jobs=n, scoring=scoring).fit(X) for n in (1, 2, 5)]
    for other in fitted[1:]:
        assert other.decision_scores_.tobytes() == fitted[0].decision_scores_.tobytes()
        assert other.threshold_ == fitted[0].threshold_
    together = fitted[0].decision_scores_
    for start, stop in ((0, 1), (5, 6), (3, 40), (698, 700)):
        np.testing.assert_array_equal(fitted[1].anomaly_scores(X[start:stop]), together[start:stop])
    monkeypatch.setattr("fastae.tasks.detector._block_rows", lambda p: 101)
    np.testing.assert_array_equal(fitted[0].anomaly_scores(X), together)
    in_small_blocks = detector(backend=native_backend, scoring=scoring).fit(X)
    np.testing.assert_allclose(in_small_blocks.decision_scores_, together, rtol=1e-4)


def test_backends_agree():
    X, _ = factors()
    scores = [detector(backend=name, max_iter=3).fit(X).decision_scores_ for name in ("reference", "numba", "auto")]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-8)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-8)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("scaling", ["robust", None])
def test_file_pickle_and_clone(scoring, scaling, tmp_path):
    X, _ = factors()
    settings = {"penalties": (fastae.L2(1e-3),), "hidden_layer_sizes": (5,), "activation": fastae.LeakyReLU(0.2)}
    fitted = detector(scoring=scoring, scaling=scaling, max_iter=2, **settings).fit(X)
    fitted.save(tmp_path / "m.safetensors")
    loaded = fastae.load(tmp_path / "m.safetensors")
    for copy in (loaded, pickle.loads(pickle.dumps(fitted)), clone(fitted).fit(X)):
        np.testing.assert_array_equal(copy.anomaly_scores(X), fitted.decision_scores_)
        np.testing.assert_array_equal(copy.decision_scores_, fitted.decision_scores_)
        np.testing.assert_array_equal(copy.labels_, fitted.labels_)
        assert (copy.threshold_, copy.offset_) == (fitted.threshold_, fitted.offset_)
        assert (copy.scoring_, copy.n_components_, copy.n_features_in_) == (scoring, 3, 9)
    assert loaded.get_params()["penalties"] == (fastae.L2(1e-3),)
    loaded.save(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(fastae.load(tmp_path / "again.safetensors").predict(X), fitted.predict(X))


def test_files_that_do_not_fit_together(tmp_path):
    from fastae.io import model_file

    fitted = detector().fit(factors()[0])
    fitted.save(tmp_path / "m")
    tensors, description = model_file.read(tmp_path / "m")
    for name in ("center", "whitening", "decision_scores", "autoencoder.w0"):
        damaged = {key: tensor for key, tensor in tensors.items() if key != name}
        model_file.save(tmp_path / "bad", damaged, description)
        with pytest.raises(fastae.ModelFileError):
            fastae.load(tmp_path / "bad")
        model_file.save(tmp_path / "bad", damaged | {name: tensors[name][:-1]}, description)
        if name != "decision_scores":
            with pytest.raises(fastae.ModelFileError):
                fastae.load(tmp_path / "bad")


def test_input_kinds_and_defaults():
    X, _ = factors()
    fitted = fastae.AutoencoderDetector(random_state=0).fit((X * 20).astype(np.int8))
    assert fitted.n_components_ == 3 and fitted.scoring_ == "mahalanobis" and fitted.n_iter_ <= 30
    assert fitted.autoencoder_.weights_[0][0].dtype == np.float32
    assert fitted.autoencoder_.batch_size == 256 and fitted.autoencoder_.max_iter == 30
    wide = np.random.default_rng(0).normal(size=(20, 1025)).astype(np.float32)
    assert detector(max_iter=1).fit(wide).scoring_ == "standardized"


def test_names_of_columns():
    pandas = pytest.importorskip("pandas")
    X, _ = factors(p=3)
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    fitted = detector().fit(frame)
    assert list(fitted.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame.rename(columns={"a": "z"}))


def test_real_anomalies(data_dir):
    """Satellite images: 1.2 % of the rows are of another kind of ground."""
    with np.load(data_dir / "adbench" / "satimage-2.npz") as file:
        X, y = file["X"], file["y"]
    fitted = fastae.AutoencoderDetector(random_state=0).fit(X)
    assert roc_auc_score(y, fitted.decision_scores_) > 0.98


@pytest.mark.parametrize(
    "change", [{"activation": "relu"}, {"tied_weights": True}, {"hidden_layer_sizes": (9,)}, {"scaling": None}]
)
def test_parameters_changed_after_fit_are_not_saved(change, tmp_path):
    X, _ = factors()
    fitted = fastae.AutoencoderDetector(max_iter=2, random_state=0).fit(X)
    scores = fitted.anomaly_scores(X)
    with pytest.raises(ValueError, match="changed after fit"):
        fitted.set_params(**change).save(tmp_path / "m")
    fitted.set_params(**{"activation": "tanh", "tied_weights": False, "hidden_layer_sizes": (), "scaling": "robust"})
    fitted.set_params(n_components=7, contamination=0.1, scoring="plain")  # which load does not go by
    fitted.save(tmp_path / "m")
    np.testing.assert_array_equal(fastae.load(tmp_path / "m").anomaly_scores(X), scores)
