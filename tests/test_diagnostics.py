"""Diagnoses, warnings that fit gives of its own accord, the comparison to PCA, HTML."""

import dataclasses
import html.parser
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn
from conftest import assert_close

import fastae
from fastae.diagnostics import measure, pca
from fastae.plan.plan import Source

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 12))).astype(np.float32)
U = RNG.uniform(size=(200, 9)).astype(np.float32)


def quick(**parameters):
    return fastae.Autoencoder(**{"n_components": 4, "max_iter": 3, "random_state": 0} | parameters)


def source_of(rows):
    if scipy.sparse.issparse(rows):
        return Source(rows.data, rows.indptr.astype(np.int64), rows.indices, rows.shape[1])
    return Source(rows, columns=rows.shape[1])


def with_weights(code_w, code_b, **parameters):
    """A model of one layer each way whose code is a(x Wᵀ + b)."""
    code_w = np.asarray(code_w, np.float32)
    return fastae.Autoencoder.from_arrays([(code_w, code_b)], [(code_w.T.copy(), None)], **parameters)


# ---- outputs of layers ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 33, 700])
def test_outputs_of_layers(backend, dtype, n):
    model = quick(hidden_layer_sizes=(7, 5), activation="tanh", loss="poisson", dropout=0.5).fit(U.astype(dtype))
    model.backend = backend
    rows = np.resize(U, (n, 9)).astype(dtype)
    order = np.arange(n)[::-1].copy()
    blocks = list(model._layer_outputs(source_of(rows), np.dtype(dtype), order))
    h = rows[order].astype(np.float64)
    for i, (w, b) in enumerate(model.weights_):
        z = h @ w.T + b
        kind = model.network_.layers[i].activation.name
        h = np.exp(z) if i == 5 else np.tanh(z) if kind == "tanh" else z
        assert_close(np.concatenate([outputs[i] for _, outputs in blocks]), h.astype(dtype), length=9, scale=4)
    np.testing.assert_array_equal(np.concatenate([part for part, _ in blocks]), order)


@pytest.mark.parametrize(
    "structure, words",
    [
        ({"tied_weights": True}, ["tied to layer 2", "tied to layer 0"]),
        ({"activation": fastae.Maxout(3)}, ["Maxout(pieces=3)"]),
        ({"normalization": "batch"}, ["BatchNorm"]),
        ({"normalization": "layer", "skip_connections": True}, ["LayerNorm, skip"]),
        ({"normalization": "batch", "tied_weights": True, "loss": "multinomial"}, ["BatchNorm, tied", "softmax"]),
    ],
)
def test_outputs_of_structured_layers_are_those_of_the_model(backend, structure, words):
    model = quick(hidden_layer_sizes=(7, 7), code_activation="tanh", backend=backend, max_iter=2, **structure).fit(U)
    ((_, outputs),) = model._layer_outputs(source_of(U), np.dtype(np.float32), np.arange(200))
    np.testing.assert_array_equal(outputs[2], model.transform(U))
    np.testing.assert_array_equal(outputs[-1], model.reconstruct(U))
    assert [r.n_out for r in model.diagnose(U).layers] == [7, 7, 4, 7, 7, 9]
    page = own_part(model._repr_html_())
    for word in (*words, f"{model.n_parameters_:,} parameters"):
        assert word in page


def test_wide_models_are_looked_at_in_blocks(monkeypatch):
    model = quick(hidden_layer_sizes=(20,)).fit(X)
    whole = model.diagnose(X)
    monkeypatch.setattr("fastae.models.base._LAYER_BYTES", 4096)
    blocks = list(model._layer_outputs(source_of(X), np.dtype(np.float32), np.arange(300)))
    assert len(blocks) > 10 and sum(len(part) for part, _ in blocks) == 300
    pieces = model.diagnose(X)
    assert [r.low for r in pieces.layers] == pytest.approx([r.low for r in whole.layers], rel=1e-5)  # BLAS, by blocks
    assert pieces.explained_variance == pytest.approx(whole.explained_variance, rel=1e-6)


def test_sample_is_spread_and_complete():
    assert measure.sample(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = measure.sample(1000, 7)
    assert len(rows) == 7 and rows[0] == 0 and len(set(np.diff(rows))) <= 2 and rows[-1] < 1000


# ---- the diagnosis ---


def test_diagnosis_of_a_good_model_finds_nothing():
    model = quick(hidden_layer_sizes=(32,), activation="tanh", max_iter=60, learning_rate=fastae.Cosine(0.01)).fit(X)
    seen = model.diagnose(X)
    assert seen.findings == () and "nothing found" in str(seen) and seen.n_rows == 300
    assert [r.name for r in seen.layers] == ["encoder 1", "code", "decoder 1", "output"]
    assert [(r.n_in, r.n_out) for r in seen.layers] == [(12, 32), (32, 4), (4, 32), (32, 12)]
    assert seen.data_range == (float(X.min()), float(X.max()))
    shown = model.reconstruct(X).astype(float)
    assert seen.output_range == pytest.approx((shown.min(), shown.max()))
    explained = 1 - ((X - shown) ** 2).sum() / ((X - X.mean(axis=0, dtype=float)) ** 2).sum()
    assert seen.explained_variance == pytest.approx(explained, rel=1e-6)
    code = model.transform(X)
    assert (seen.layers[1].low, seen.layers[1].high) == (code.min(), code.max())
    assert seen.layers[1].mean == pytest.approx(code.mean(dtype=float)) and seen.layers[1].saturated is None
    assert model.diagnose(scipy.sparse.csr_array(X)) == seen


def test_dead_units_are_counted():
    w = np.eye(9, dtype=np.float32)
    bias = np.where(np.arange(9) < 5, -2, 0)  # five of nine units stay off for values in [0, 1]
    seen = with_weights(w, bias, code_activation="relu").diagnose(U)
    assert seen.layers[0].dead == pytest.approx(5 / 9)
    finding = seen.findings[0]
    assert (finding.kind, finding.layer) == ("dead_units", 0)
    assert "5 of 9 relu units" in str(finding) and "code_activation='leaky_relu'" in finding.remedy
    seen = with_weights(w, np.where(np.arange(9) < 4, -2, 0), code_activation="relu").diagnose(U)
    assert seen.layers[0].dead == pytest.approx(4 / 9) and not any(f.kind == "dead_units" for f in seen.findings)
    few = with_weights(w[:3], [-2, -2, 0], code_activation="relu").diagnose(U)  # a small layer: all or none
    assert few.layers[0].dead == pytest.approx(2 / 3) and not any(f.kind == "dead_units" for f in few.findings)


def test_only_the_first_dead_layer_is_named():
    w = np.eye(9, dtype=np.float32)
    model = fastae.Autoencoder.from_arrays([(w, None), (w, np.full(9, -9)), (w, None)], [(w, None)])
    kinds = [(f.kind, f.layer) for f in model.diagnose(U).findings]
    assert kinds == [("dead_units", 1), ("no_better_than_mean", None)]


@pytest.mark.parametrize("activation, scale", [("sigmoid", 1e3), ("tanh", 1e3), ("hard_sigmoid", 1e3)])
def test_saturation(activation, scale):
    w = RNG.normal(size=(9, 9)).astype(np.float32)
    seen = with_weights(w * scale, None, code_activation=activation).diagnose(U)
    assert seen.layers[0].saturated > 0.9
    assert [f.kind for f in seen.findings][:1] == ["saturation"] and activation in seen.findings[0].message
    calm = with_weights(w * 0.1, None, code_activation=activation).diagnose(U)
    assert calm.layers[0].saturated < 0.1 and not any(f.kind == "saturation" for f in calm.findings)


def test_what_is_added_to_a_skip_connection_has_no_ends():
    model = quick(hidden_layer_sizes=(9, 5), activation="tanh", skip_connections=True).fit(U)
    seen = model.diagnose(100 * U)
    assert [r.saturated is None for r in seen.layers] == [True, False, True, False, False, True]


def test_a_sparse_code_may_rest_at_its_lower_end():
    w = RNG.uniform(-2, -1, size=(9, 9)).astype(np.float32)
    penalties = [fastae.KLSparsity(0.01)]
    off = with_weights(50 * w, None, code_activation="sigmoid").diagnose(U)
    meant = with_weights(50 * w, None, code_activation="sigmoid", penalties=penalties).diagnose(U)
    assert off.layers[0].saturated == meant.layers[0].saturated > 0.9
    assert any(f.kind == "saturation" for f in off.findings)
    assert not any(f.kind == "saturation" for f in meant.findings)
    stuck = with_weights(-50 * w, None, code_activation="sigmoid", penalties=penalties).diagnose(U)
    assert any(f.kind == "saturation" for f in stuck.findings)


def test_findings_about_training_and_scale():
    scaled = U * np.where(np.arange(9) == 6, 30, 1)
    model = quick(max_iter=20, code_activation="identity").fit(scaled)
    found = {f.kind: f for f in model.diagnose(scaled).findings}
    assert "feature 6 has" in found["feature_scale"].message
    assert "max_iter" in found["still_learning"].remedy
    model = with_weights(np.zeros((2, 12)), None, code_activation="identity")
    (finding,) = [f for f in model.diagnose(X).findings if f.kind == "no_better_than_mean"]
    assert "no better than each feature's mean" in finding.message


@pytest.mark.parametrize(
    "curve, expected",
    [([], False), ([1.0], False), ([2.0, 1.0], True), ([1.0] * 30, False), (list(np.linspace(2, 1, 40)), True),
     (list(1 + 0.5 ** np.arange(60.0)), False), ([-1.0, -2.0], True), ([1.0, 1.5], False)],
)  # fmt: skip
def test_still_learning(curve, expected):
    from fastae.diagnostics.findings import still_learning

    assert still_learning(curve) is expected


def test_features_with_values_missing():
    rows = 1e6 + RNG.normal(size=(50, 5))
    rows[RNG.uniform(size=rows.shape) < 0.3] = np.nan
    rows[:7, 2] = np.nan
    rows[:, 4] = np.nan
    seen = measure.FeatureStatistics(5)
    for start in range(0, 50, 7):
        seen.add(rows[start : start + 7], np.full_like(rows[start : start + 7], 1e6))
    observed = rows[:, :4]
    np.testing.assert_allclose(seen.spread[:4], np.nanvar(observed, axis=0) * (~np.isnan(observed)).sum(axis=0))
    assert seen.spread[4] == 0 and seen.errors == pytest.approx(np.nansum((observed - 1e6) ** 2))
    assert seen.range == (np.nanmin(observed), np.nanmax(observed))


@pytest.mark.parametrize("missing", [np.nan, 0, -1, -0.1])
def test_diagnosis_of_rows_with_missing_entries(missing):
    gone = RNG.uniform(size=U.shape) < 0.2
    rows = np.where(gone, np.float32(missing), U + 1)
    model = quick(missing=missing, code_activation="identity", max_iter=300, learning_rate=0.01).fit(rows)
    seen = model.diagnose(rows)
    assert seen.data_range == ((U + 1)[~gone].min(), (U + 1)[~gone].max())
    error = ((model.reconstruct(rows) - (U + 1))[~gone].astype(float) ** 2).sum()
    centred = np.where(gone, np.nan, U + 1.0)
    total = np.nansum((centred - np.nanmean(centred, axis=0)) ** 2)
    assert seen.explained_variance == pytest.approx(1 - error / total, rel=1e-5)
    with pytest.raises(ValueError, match="PCA needs whole rows"):
        model.compare_to_pca(rows)
    with pytest.warns(fastae.WorseThanPCAWarning):  # it never saw whole rows
        assert model.compare_to_pca(U + 1, U[:9] + 1).n_rows == 9


def test_features_that_are_never_observed():
    rows = U.copy()
    rows[:, [2, 5]] = np.nan
    model = quick(missing=np.nan).fit(rows)
    (finding,) = [f for f in model.diagnose(rows).findings if f.kind == "never_observed"]
    assert "2 of 9 features, 2 the first" in finding.message
    rows[0, 2] = 1
    (finding,) = [f for f in model.diagnose(rows).findings if f.kind == "never_observed"]
    assert "1 of 9 features, 5 the first" in finding.message
    assert not any(f.kind == "never_observed" for f in model.diagnose(U).findings)


def test_likelihoods_and_heads():
    counts = RNG.poisson(3, size=(200, 9))
    model = quick(loss="negative_binomial", input_transform="log1p").fit(counts)
    seen = model.diagnose(counts)
    assert seen.layers[-1].activation == "negative_binomial" and "negative_binomial" in own_part(model._repr_html_())
    shown = model.reconstruct(counts)
    assert seen.output_range == (shown.min(), shown.max()) and seen.explained_variance is not None
    heads = fastae.Heads((5, "squared_error"), (4, "binary_cross_entropy"))
    mixed = np.hstack([U[:, :5] * 9, U[:, 5:] < 0.5])
    assert quick(loss=heads).fit(mixed).diagnose(mixed).layers[-1].activation == "heads"
    assert quick(loss="cosine").fit(U).diagnose(U).explained_variance is None


def test_what_a_diagnosis_refuses():
    with pytest.raises(sklearn.exceptions.NotFittedError):
        quick().diagnose(X)
    model = quick().fit(X)
    for rows, message in ((X[:1], "minimum of 2 is required"), (X[:, :5], "12 features"), (X * np.nan, "NaN")):
        with pytest.raises(ValueError, match=message):
            model.diagnose(rows)


@pytest.mark.parametrize("loss", ["multinomial", "poisson", "binary_cross_entropy"])
def test_diagnosis_of_losses_that_own_their_output(loss):
    seen = quick(loss=loss).fit(U).diagnose(U)
    assert (seen.explained_variance is None) == (loss == "multinomial")
    assert {"multinomial": "softmax", "poisson": "exponential"}.get(loss, "sigmoid") == seen.layers[-1].activation


# ---- what fit warns of ---


@pytest.mark.parametrize(
    "parameters, rows, message",
    [
        ({"output_activation": "sigmoid"}, 300 * U, r"from 0 to 1, but X has values from .*MinMaxScaler\(\(0, 1\)\)"),
        ({"output_activation": "tanh"}, U - 1.5, r"from -1 to 1, but X .*MinMaxScaler\(\(-1, 1\)\)"),
        ({"output_activation": "relu"}, X, r"of 0 and more, but X .*MinMaxScaler\(\)"),
        ({"output_activation": "softmax"}, 9 * U, "from 0 to 1"),
        ({"output_activation": "elu"}, U - 2, "of -1 and more"),
        ({"output_activation": "sigmoid"}, scipy.sparse.csr_array(3 * U), "from 0 to 1"),
    ],
)
def test_fit_warns_of_an_output_that_cannot_reach_the_data(parameters, rows, message):
    with pytest.warns(fastae.OutputRangeWarning, match=message) as caught:
        model = quick(code_activation="identity", max_iter=1, **parameters).fit(rows)
    assert caught[0].filename == __file__
    assert any(f.kind == "output_range" for f in model.diagnose(rows).findings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.partial_fit(rows)


@pytest.mark.parametrize(
    "parameters, rows",
    [
        ({"output_activation": "sigmoid"}, U),
        ({"output_activation": "sigmoid"}, np.where(U < 0.5, -1e-4, 1 + 1e-4)),
        ({"output_activation": "tanh"}, U - 0.5),
        ({"output_activation": "relu"}, 300 * U),
        ({"output_activation": "leaky_relu"}, X),
        ({"output_activation": fastae.ELU(3.0)}, U - 2),
        ({"loss": "poisson"}, 3 * U),
        ({"loss": "binary_cross_entropy"}, U),
        ({"loss": "multinomial"}, 300 * U),
    ],
)  # fmt: skip
def test_fit_does_not_warn_where_the_output_reaches(parameters, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastae.OutputRangeWarning)
        warnings.simplefilter("ignore", fastae.DeadUnitsWarning)
        quick(max_iter=1, **parameters).fit(rows)


@pytest.mark.parametrize("sparse", [False, True])
def test_data_range(sparse):
    rows = np.array([[3.0, 0.0], [5.0, 4.0]])
    assert measure.data_range(source_of(scipy.sparse.csr_array(rows) if sparse else rows)) == (0.0, 5.0)
    full = np.array([[3.0, np.nan], [5.0, 4.0]])
    assert measure.data_range(source_of(scipy.sparse.csr_array(full) if sparse else full)) == (3.0, 5.0)
    assert measure.data_range(source_of(scipy.sparse.csr_array((3, 4)))) == (0.0, 0.0)
    assert measure.data_range(source_of(scipy.sparse.csr_array(rows) if sparse else rows), missing=0) == (3.0, 5.0)
    assert measure.data_range(source_of(scipy.sparse.csr_array(rows) if sparse else rows), missing=5) == (0.0, 4.0)
    assert np.isnan(measure.data_range(source_of(rows[:1, 1:]), missing=0)).all()


@pytest.mark.parametrize("as_rows", [np.asarray, scipy.sparse.csr_array])
def test_rows_that_vary(as_rows):
    rows = np.array([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    assert not measure.rows_vary(as_rows(rows)) and measure.rows_vary(as_rows(rows + np.diag([0, 0, 1])[:, 1:]))
    assert measure.rows_vary(as_rows(rows * np.array([[1], [1], [0]])))


def test_fit_warns_of_dead_layers_and_only_then():
    rows = np.resize(U, (300, 9))
    w = -RNG.uniform(size=(4, 9))
    off = [(w, None), (w.T, None)]  # negative weights on positive rows: no unit is ever on
    with pytest.warns(fastae.DeadUnitsWarning, match=r"layer 0 \(code\): 4 of 4 relu units .* each of 300 rows"):
        model = quick(initializer=off).fit(rows)
    assert model.n_iter_ == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(hidden_layer_sizes=(64, 32)).fit(X)
        model.partial_fit(rows)
        model.fit(rows[:127])  # too few rows to say anything
        model.fit(np.ones((300, 9)))  # all rows alike: nothing to tell apart
        model.fit(scipy.sparse.csr_array(np.ones((300, 9))))


@pytest.mark.parametrize("n_components, warned", [(4, False), (5, True)])
def test_fit_warns_of_half_a_dead_layer_only_where_it_is_narrower_than_the_code(n_components, warned):
    rows = np.resize(U, (300, 9))
    w = [RNG.uniform(size=shape) for shape in ((9, 9), (n_components, 9), (9, n_components), (9, 9))]
    w[0][4:] *= -1  # four units of nine are left
    model = quick(n_components=n_components, hidden_layer_sizes=(9,), initializer=[(a, None) for a in w], max_iter=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(rows)
    assert [str(w.message)[:39] for w in caught] == ["layer 0 (encoder 1): 5 of 9 relu units "] * warned
    assert any(f.kind == "dead_units" for f in model.diagnose(rows).findings)


@pytest.mark.parametrize("n_features, warned", [(9, True), (4, False)])
def test_fit_does_not_warn_of_half_a_dead_code_that_has_room_for_all_features(n_features, warned):
    rows = np.resize(U[:, :n_features], (300, n_features))
    w = [RNG.uniform(size=shape) for shape in ((9, n_features), (n_features, 9))]
    w[0][4:] *= -1
    model = quick(n_components=9, initializer=[(a, None) for a in w], max_iter=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(rows)
    assert [w.category for w in caught] == [fastae.DeadUnitsWarning] * warned


def test_fit_warns_of_saturated_layers():
    with pytest.warns(fastae.SaturationWarning, match="ends of their range.*StandardScaler"):
        quick(hidden_layer_sizes=(16,), activation="sigmoid").fit(1e4 * X)


def test_warnings_can_be_errors_and_can_be_silenced():
    model = quick(output_activation="sigmoid")
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastae.ModelWarning)
        with pytest.raises(fastae.OutputRangeWarning):
            model.fit(X)
        assert not hasattr(model, "weights_")  # refused before anything was done
        warnings.simplefilter("ignore", fastae.OutputRangeWarning)
        model.fit(X)


# ---- PCA ---


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("n, p, k", [(2, 3, 1), (7, 33, 5), (211, 17, 4), (64, 5, 5)])
def test_principal_axes_in_blocks(monkeypatch, sparse, exact, n, p, k):
    from sklearn.decomposition import PCA

    monkeypatch.setattr(pca, "BLOCK_BYTES", 8 * 64 * 20)
    if not exact:
        monkeypatch.setattr(pca, "EXACT_WIDTH", 1)
    rows = np.random.default_rng(1).normal(size=(n, p)) * np.arange(1, p + 1) + 3
    rows[rows < 2] = 0
    source = source_of(scipy.sparse.csr_array(rows) if sparse else rows)
    mean, axes = pca.principal_axes(source, k)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(axes @ axes.T, np.eye(k), atol=1e-10)
    reference = PCA(min(k, n), svd_solver="full").fit(rows)
    expected = np.mean((rows - reference.inverse_transform(reference.transform(rows))) ** 2)
    error = pca.projection_error(source, mean, axes)
    assert error == pytest.approx(expected, rel=1e-9 if exact else 1e-3, abs=1e-10 * rows.var())


def test_a_model_that_beats_pca():
    t = RNG.uniform(0, 2 * np.pi, size=400)
    circle = np.stack([np.cos(t), np.sin(t), np.cos(2 * t), np.sin(2 * t)], axis=1)
    model = quick(n_components=2, hidden_layer_sizes=(64,), max_iter=80, learning_rate=1e-2).fit(circle[:300])
    seen = model.compare_to_pca(circle[:300], circle[300:])
    assert seen.n_rows == 100 and seen.n_components == 2 and not seen.loses
    assert seen.model_error == -model.score(circle[300:]) < seen.pca_error
    assert seen.ratio == seen.model_error / seen.pca_error < 1 and "of PCA's" in str(seen)


def test_a_model_that_loses_to_pca_warns_of_it():
    model = quick(hidden_layer_sizes=(8,), code_activation="relu", penalties=[fastae.L2(1e-3)]).fit(X)
    with pytest.warns(fastae.WorseThanPCAWarning, match="times PCA's with the same code of 4") as caught:
        seen = model.compare_to_pca(X)
    assert caught[0].filename == __file__
    assert seen.loses and seen.ratio > 2
    for remedy in ("train longer", "code_activation='identity'", "weaken penalties", "learning_rate"):
        assert remedy in str(seen) and remedy in str(caught[0].message)


def test_a_linear_model_ties_with_pca():
    model = quick(n_components=2, activation="identity", initializer="pca", learning_rate=1e-6, max_iter=1).fit(X)
    seen = model.compare_to_pca(X)
    assert not seen.loses and seen.ratio == pytest.approx(1, abs=1e-3)


def test_comparisons_that_mean_nothing():
    for loss, instead in (("multinomial", "categorical_cross_entropy"), ("cosine", "reconstructs directions")):
        with pytest.raises(ValueError, match=instead):
            quick(loss=loss).fit(U).compare_to_pca(U)
    with pytest.warns(fastae.WorseThanPCAWarning, match="lets PCA copy its input"):
        seen = quick(n_components=12).fit(X).compare_to_pca(X)
    assert seen.pca_error < 1e-12
    assert fastae.PCAComparison(0.0, 0.0, 1, 1).ratio == 1 and fastae.PCAComparison(1.0, 0.0, 1, 1).loses
    assert "does as well" in str(fastae.PCAComparison(1.005, 1.0, 1, 1))


# ---- HTML ---


class Strict(html.parser.HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "input", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "polyline":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def own_part(text):
    """What fastae adds to scikit-learn's diagram."""
    return text[text.index('<div class="fastae"') :]


def test_html_of_a_model():
    model = quick(hidden_layer_sizes=(7,), activation=fastae.LeakyReLU(0.2), dropout=0.25, early_stopping=True)
    assert "fastae" not in model._repr_html_().partition("</style>")[2].replace("fastae.", "")
    model.fit(X)
    page = model._repr_html_()
    assert page.startswith("<style")
    part = own_part(page)
    assert part == own_part(model._repr_mimebundle_()["text/html"])
    text = " ".join(Strict(part).text)
    for fact in ("encoder 1", "12 → 7", "LeakyReLU(slope=0.2)", "0.25", "code", "identity", "output",
                 f"{model.n_parameters_:,} parameters", "3 epochs", "float32", f"backend {model.backend_}",
                 ):  # fmt: skip
        assert fact in text
    assert part.count("<polyline") == 2  # training and held-out rows
    assert "nan" not in part
    assert model._repr_mimebundle_()["text/plain"] == repr(model)


def test_html_obeys_scikit_learns_display():
    model = quick().fit(X)
    with sklearn.config_context(display="text"):
        assert not hasattr(model, "_repr_html_") and set(model._repr_mimebundle_()) == {"text/plain"}
    assert hasattr(model, "_repr_html_")
    from sklearn.pipeline import make_pipeline

    assert "Autoencoder" in make_pipeline(quick())._repr_html_()


def test_html_without_training():
    part = own_part(with_weights(np.eye(3), None)._repr_html_())
    assert "<svg" not in part and "epochs" not in part
    one = quick(max_iter=1).fit(X)
    assert "<svg" not in own_part(one._repr_html_())
    long = fastae.html.sparkline(np.geomspace(1, 1e-3, 5000), [1.0, 0.5])
    assert len(long) < 5000 and long.count("<polyline") == 2
    assert fastae.html.sparkline([2.0, 2.0, 2.0]).count("nan") == 0


def test_html_escapes():
    finding = fastae.Finding("x", None, "<script>alert(1)</script>", "a & b")
    seen = quick().fit(X).diagnose(X)
    layer = dataclasses.replace(seen.layers[0], activation="<i>")
    page = fastae.Diagnosis((layer,), seen.data_range, seen.output_range, None, 3, (finding,))._repr_html_()
    Strict(page)
    assert "<script>" not in page and page.count("<i>") == 1 and "&lt;i&gt;" in page  # one is our own
    assert "&lt;script&gt;" in page and "a &amp; b" in page
    model = quick().fit(X)
    model.backend_ = "<b>"
    assert "<b>" not in own_part(model._repr_html_())
