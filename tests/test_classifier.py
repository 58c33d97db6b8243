"""The classifier: its arithmetic, its labels, and what scikit-learn's users expect."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import fastae
from fastae.tasks.labels import stratified

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 9)) * 2
NUMBERS = RNG.integers(3, size=211)
X = CENTRES[NUMBERS] + RNG.normal(size=(211, 9))
Y = np.array(["ape", "bee", "cow"])[NUMBERS]
PRETRAINING = fastae.DenoisingPretraining(max_iter=2, batch_size=64)


def classifier(**parameters):
    settings = {"hidden_layer_sizes": (17, 12), "max_iter": 5, "learning_rate": 0.02, "random_state": 0,
                "batch_size": 64, "pretraining": None}  # fmt: skip
    return fastae.AutoencoderClassifier(**settings | parameters)


def bits(model):
    return b"".join(w.tobytes() + b.tobytes() for w, b in model.weights_)


def test_twenty_steps_beside_torch(tested_backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20 * 16, 11)), rng.integers(4, size=20 * 16)
    weight = rng.uniform(0.5, 2, size=len(X))
    widths = (11, 23, 7, 4)
    pairs = [(rng.normal(size=(n, k)) / k**0.5, rng.normal(size=n) * 0.1)
             for k, n in zip(widths, widths[1:], strict=False)]  # fmt: skip
    model = classifier(hidden_layer_sizes=(23, 7), activation=["tanh", "relu"], learning_rate=0.01, batch_size=16,
                       max_iter=1, shuffle=False, initializer=pairs, backend=tested_backend)  # fmt: skip
    model.fit(X, y, sample_weight=weight)

    layers = []
    for w, b in pairs:
        layer = torch.nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        layer.weight.data[:], layer.bias.data[:] = torch.from_numpy(w), torch.from_numpy(b)
        layers.append(layer)
    net = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    scale = torch.from_numpy(weight / weight.mean())
    losses = []
    for start in range(0, len(X), 16):
        rows = slice(start, start + 16)
        optimizer.zero_grad()
        each = torch.nn.functional.cross_entropy(net(torch.from_numpy(X[rows])), torch.from_numpy(y[rows]),
                                                 reduction="none")  # fmt: skip
        value = (scale[rows] * each).mean()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert model.loss_ == pytest.approx(np.mean(losses), rel=1e-12)
    for (w, b), layer in zip(model.weights_, layers, strict=True):
        np.testing.assert_allclose(w, layer.weight.detach().numpy(), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(b, layer.bias.detach().numpy(), rtol=1e-9, atol=1e-11)
    z = net(torch.from_numpy(X)).detach()
    np.testing.assert_allclose(model.decision_function(X), z.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.predict_proba(X), torch.softmax(z, 1).numpy(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(model.predict_log_proba(X), torch.log_softmax(z, 1).numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(model.predict(X), z.numpy().argmax(1))
    np.testing.assert_allclose(model.transform(X), net[:4](torch.from_numpy(X)).detach().numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pretraining", [None, "denoising", PRETRAINING])
def test_learns_and_says_so(pretraining):
    model = classifier(pretraining=pretraining).fit(X, Y)
    assert model.score(X, Y) > 0.95 and model.predict(X).dtype == Y.dtype
    assert model.classes_.tolist() == ["ape", "bee", "cow"]
    assert model.loss_curve_[-1] < model.loss_curve_[0] and len(model.loss_curve_) == model.n_iter_ == 5
    assert model.transform(X).shape == (211, 12)
    assert model.get_feature_names_out()[-1] == "autoencoderclassifier11"
    losses = model.pretraining_losses_
    assert losses is None if pretraining is None else [len(c) for c in losses] == [15 if pretraining is not PRETRAINING
                                                                                  else 2] * 2  # fmt: skip
    for absent in ("reconstruct", "inverse_transform", "score_samples"):
        assert not hasattr(model, absent)


@pytest.mark.parametrize("data, activation, losses", [
    ("unit", "sigmoid", ("binary_cross_entropy", "binary_cross_entropy")),
    ("any", "sigmoid", ("squared_error", "binary_cross_entropy")),
    ("unit", "relu", ("squared_error", "squared_error")),
    ("any", "tanh", ("squared_error", "squared_error")),
])  # fmt: skip
def test_pretraining_is_that_of_autoencoders_alone(data, activation, losses):
    from fastae.initializers import initial_weights
    from fastae.models.pretraining import layer_seed

    rows = (X - X.min()) / np.ptp(X) if data == "unit" else X
    model = classifier(activation=activation, pretraining=PRETRAINING, solver="sgd", learning_rate=1e-30, max_iter=1)
    model.fit(rows, Y)
    initial = initial_weights("auto", model.network_, 0)
    codes = rows
    for i, width in enumerate((17, 12)):
        layer = fastae.Autoencoder(width, code_activation=activation, loss=losses[i], max_iter=2, batch_size=64,
                                   noise=fastae.MaskingNoise(0.25), tol=0, random_state=layer_seed(0, i))  # fmt: skip
        layer.initializer = [initial[i], initial_weights("auto", layer._network(codes.shape[1]), layer_seed(0, i))[1]]
        layer.fit(codes)
        np.testing.assert_allclose(model.weights_[i][0], layer.weights_[0][0], rtol=1e-12)
        assert model.pretraining_losses_[i] == layer.loss_curve_
        codes = layer.transform(codes)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads(native_backend, threads):
    def fitted(n_jobs):
        return classifier(backend=native_backend, n_jobs=n_jobs, dropout=0.3, noise="gaussian", pretraining=PRETRAINING,
                          early_stopping=True).fit(X.astype(np.float32), Y)  # fmt: skip

    one, many = fitted(1), fitted(threads)
    assert bits(one) == bits(many) and one.validation_scores_ == many.validation_scores_
    np.testing.assert_array_equal(one.predict_proba(X), many.predict_proba(X))


@pytest.mark.parametrize("labels", [
    Y, NUMBERS, NUMBERS - 1.0, NUMBERS.astype(np.uint8), Y.astype(object), NUMBERS > 0, NUMBERS.astype(str).tolist(),
])  # fmt: skip
def test_labels_of_any_kind_in_files_and_copies(labels, tmp_path):
    model = classifier(pretraining=PRETRAINING, class_weight={k: 1.5 for k in np.unique(labels).tolist()[:1]} | {
        k: 1.0 for k in np.unique(labels).tolist()[1:]}).fit(X, labels)  # fmt: skip
    assert model.score(X, labels) > 0.9
    model.save(tmp_path / "m")
    for other in (fastae.load(tmp_path / "m"), pickle.loads(pickle.dumps(model))):
        assert bits(other) == bits(model) and other.classes_.dtype == model.classes_.dtype
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        assert other.get_params()["class_weight"] == model.class_weight
        assert other.pretraining_losses_ == model.pretraining_losses_
    assert bits(clone(model).fit(X, labels)) == bits(model)


def test_labels_that_files_cannot_hold(tmp_path):
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="datetime64[D]")[NUMBERS]
    model = classifier().fit(X, days)
    assert model.predict(X).dtype == days.dtype
    with pytest.raises(TypeError, match="cannot be stored"):
        model.save(tmp_path / "m")


def test_two_classes():
    y = Y == "bee"
    model = classifier().fit(X, y)
    z, p = model.decision_function(X), model.predict_proba(X)
    assert z.shape == (211,) and p.shape == (211, 2)
    np.testing.assert_array_equal(z > 0, model.predict(X))
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-z)), rtol=1e-9)


def test_probabilities_far_out():
    model = classifier().fit(X.astype(np.float32), Y)
    far = (X * 1e4).astype(np.float32)
    logs = model.predict_log_proba(far)
    assert logs.dtype == np.float32 and np.isfinite(logs).all() and logs.min() < -1000
    p = model.predict_proba(far)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)


def test_sparse_input_is_the_same():
    counts = RNG.poisson(0.7, size=X.shape).astype(np.float32)
    counts[:, 0] += 5 * (NUMBERS == 1)
    dense, sparse = (
        classifier(pretraining=PRETRAINING).fit(rows, Y) for rows in (counts, scipy.sparse.csr_array(counts))
    )
    assert bits(dense) == bits(sparse)
    np.testing.assert_array_equal(dense.predict_proba(counts), sparse.predict_proba(scipy.sparse.csc_matrix(counts)))


# ---- weights of rows and classes ---


def test_class_weight_multiplies_sample_weight():
    weight = RNG.uniform(0.5, 2, size=len(X))
    factor = {"ape": 1.0, "bee": 3.0, "cow": 0.5}
    by_class = classifier(class_weight=factor).fit(X, Y, sample_weight=weight)
    by_hand = classifier().fit(X, Y, sample_weight=weight * np.array([factor[k] for k in Y]))
    np.testing.assert_allclose(by_class.weights_[0][0], by_hand.weights_[0][0], rtol=1e-10)
    totals = [weight[Y == k].sum() for k in by_class.classes_]
    balanced = classifier(class_weight="balanced").fit(X, Y, sample_weight=weight)
    by_hand = classifier().fit(X, Y, sample_weight=weight / np.array(totals)[NUMBERS])
    np.testing.assert_allclose(balanced.weights_[0][0], by_hand.weights_[0][0], rtol=1e-10)


def test_class_weights_in_parts_of_one_class():
    names = ["ape", "bee", "cow"]
    plain, weighed = ([
        classifier(class_weight=weights, batch_size=256).partial_fit(X[Y == name], Y[Y == name], classes=names).loss_
        for name in names] for weights in (None, {"ape": 1, "bee": 2, "cow": 6}))  # fmt: skip
    np.testing.assert_allclose(np.divide(weighed, plain), [1 / 3, 2 / 3, 2], rtol=1e-12)


@pytest.mark.parametrize("class_weight, message", [
    ({"ape": -1.0, "bee": 1, "cow": 1}, "finite weights >= 0"), ({"ape": np.nan, "bee": 1, "cow": 1}, "finite"),
    ({"ape": 0, "bee": 0, "cow": 0}, "leaves every row"), ("balance", "class_weight"),
    ({"ape": None, "bee": 1, "cow": 1}, "finite weights >= 0"), ({"ape": "a", "bee": 1, "cow": 1}, "finite"),
])  # fmt: skip
def test_class_weights_that_are_refused(class_weight, message):
    with pytest.raises(ValueError, match=message):
        classifier(class_weight=class_weight).fit(X, Y)


# ---- held-out rows ---


@pytest.mark.parametrize("sizes, n_out", [((50, 30, 20), 10), ((7, 1, 3), 4), ((1, 1, 1), 2), ((97, 2, 1), 33)])
def test_stratified(sizes, n_out):
    codes = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = RNG.permutation(len(codes))
    out = np.bincount(codes[order[stratified(order, codes, n_out)]], minlength=len(sizes))
    ideal = np.array(sizes) * n_out / len(codes)
    assert (out < np.array(sizes)).all() and out.sum() <= n_out
    assert (np.abs(out - ideal) <= 1).all()
    if min(sizes) > 2:
        assert out.sum() == n_out


def test_early_stopping_keeps_the_most_accurate():
    y = np.where(RNG.random(len(Y)) < 0.2, "ape", Y)
    seen = []
    model = classifier(early_stopping=True, validation_fraction=0.3, max_iter=40, n_iter_no_change=8,
                       callbacks=[lambda info: seen.append(info.validation_loss)])  # fmt: skip
    model.fit(X, y)
    assert model.best_validation_score_ == max(model.validation_scores_) and len(seen) == model.n_iter_ < 40
    np.testing.assert_allclose(model.validation_scores_, 1 - np.array(seen))
    order = model._backend().permutation(model.seed_, 2**32 - 1, len(X))
    codes = np.searchsorted(model.classes_, y)
    held_out = order[stratified(order, codes, 64)]
    assert model.score(X[held_out], y[held_out]) == pytest.approx(model.best_validation_score_)


# ---- going on ---


def test_partial_fit_and_warm_start():
    model = classifier(pretraining=PRETRAINING)
    for start in range(0, len(X), 50):
        model.partial_fit(X[start : start + 50], Y[start : start + 50], classes=["cow", "bee", "ape"])
    assert model.n_iter_ == 5 and model.pretraining_losses_ is None
    assert "_announced" not in vars(model)
    for _ in range(10):
        model.partial_fit(X, Y)
    assert model.score(X, Y) > 0.95
    one = classifier().partial_fit(X[:1], Y[:1], classes=np.unique(Y))
    assert one.predict_proba(X).shape == (211, 3)
    warm = classifier(warm_start=True).fit(X, Y)
    steps = warm.t_
    warm.fit(X[:100], Y[:100])
    assert warm.t_ == steps + 5 * 2 and warm.classes_.tolist() == ["ape", "bee", "cow"]


@pytest.mark.parametrize("call, message", [
    (lambda m: m.partial_fit(X, Y), "classes must be given"),
    (lambda m: m.partial_fit(X, Y, classes=["ape", "bee"]), r"classes \['cow'\] that are not among"),
    (lambda m: m.partial_fit(X, NUMBERS, classes=["ape", "bee"]), "labels of one kind"),
    (lambda m: m.partial_fit(X, Y, classes=["ape"]), "at least 2 classes"),
    (lambda m: m.set_params(class_weight="balanced").partial_fit(X, Y, classes=np.unique(Y)), "all rows at once"),
    (lambda m: m.fit(X, np.ones(len(X))), "at least 2 classes; got 1 class, 1.0"),
    (lambda m: m.fit(X, Y, sample_weight=(Y == "ape") * 1.0), "at least 2 classes"),
    (lambda m: m.fit(X, Y[:-1]), "211 rows and y 210"),
    (lambda m: m.fit(X, None), "requires y to be passed"),
    (lambda m: m.fit(X, RNG.normal(size=len(X))), "[Uu]nknown label type"),
    (lambda m: m.fit(X, np.where(NUMBERS == 0, np.nan, 1.0)), "NaN"),
    (lambda m: m.fit(X, np.where(NUMBERS == 0, None, Y)), "y has missing labels"),
    (lambda m: m.partial_fit(X, NUMBERS, classes=[0, 1, 2, np.nan]), "classes contains NaN"),
    (lambda m: m.partial_fit(X, Y, classes=["ape", "bee", "cow", None]), "classes has missing labels"),
    (lambda m: m.fit(X, np.eye(3)[NUMBERS]), "1d array"),
    (lambda m: m.set_params(hidden_layer_sizes=()).fit(X, Y), "LogisticRegression"),
    (lambda m: m.set_params(hidden_layer_sizes=(8, 4), skip_connections=True).fit(X, Y), "repeat a width"),
    (lambda m: m.set_params(dropout=(0.1, 0.2, 0.3)).fit(X, Y), "2 hidden layers"),
    (lambda m: m.set_params(max_iter=0).fit(X, Y), "max_iter"),
    (lambda m: m.set_params(early_stopping=True, validation_fraction=0.9999).fit(X, Y), "rows to train on"),
    (lambda m: m.set_params(pretraining=fastae.DenoisingPretraining(loss="binary_cross_entropy")).fit(
        X - X.min() + 1, Y), "binary_cross_entropy"),
    (lambda m: m.set_params(pretraining=fastae.DenoisingPretraining(loss="binary_cross_entropy")).fit(
        (X - X.min()) / np.ptp(X), Y), "wants inputs in"),
])  # fmt: skip
def test_refused_calls_change_nothing(call, message):
    model = classifier()
    with pytest.raises(ValueError, match=message):
        call(model)
    assert not [name for name in vars(model) if name.endswith("_") or name == "_announced"]
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_refused_calls_on_a_fitted_model():
    model = classifier(warm_start=True).fit(X, Y)
    before, p = copy.deepcopy(vars(model)), model.predict_proba(X)
    for call in (lambda: model.partial_fit(X, np.where(Y == "ape", "dog", Y)), lambda: model.fit(X, Y.tolist()[:5]),
                 lambda: model.partial_fit(X, Y, classes=["ape", "bee"]), lambda: model.fit(X[:, :3], Y),
                 lambda: model.fit(X, np.where(Y == "ape", "dog", Y))):  # fmt: skip
        with pytest.raises(ValueError):
            call()
    assert model.classes_.tolist() == before["classes_"].tolist() and model.t_ == before["t_"]
    np.testing.assert_array_equal(model.predict_proba(X), p)


def test_structures():
    model = classifier(
        hidden_layer_sizes=(9, 9), activation=[fastae.Maxout(3), "gelu"], normalization=["layer", "batch"],
        skip_connections=True, dropout=(0.1, 0.2), penalties=["l2", fastae.Laplacian(5, 0.1)],
        constraints=["max_norm"], pretraining=PRETRAINING, max_iter=20,
    ).fit(X, Y)  # fmt: skip
    assert model.score(X, Y) > 0.9


@pytest.mark.parametrize("solver", ["lbfgs", "cg"])
def test_full_batch_solvers(solver):
    model = classifier(solver=solver, penalties=["l2"], max_iter=100, pretraining=PRETRAINING).fit(X, Y)
    assert model.score(X, Y) == 1 and not hasattr(model, "partial_fit")


def test_missing_entries():
    observed = RNG.random(X.shape) > 0.2
    holes = np.where(observed, X, np.nan)
    by_value = classifier(missing=np.nan, pretraining=PRETRAINING).fit(holes, Y)
    by_mask = classifier(pretraining=PRETRAINING).fit(X, Y, mask=observed)
    assert bits(by_value) == bits(by_mask) and by_mask.score(holes, Y) > 0.9
    marked = classifier(missing=-99, pretraining=PRETRAINING).fit(np.where(observed, X, -99), Y)
    assert bits(marked) == bits(by_value)
    plain = classifier(max_iter=1).fit(np.where(observed, X, 0), Y)  # what the encoder sees
    assert bits(classifier(max_iter=1, missing=np.nan).fit(holes, Y)) == bits(plain)
    with pytest.raises(ValueError, match=r"missing=np\.nan"):
        classifier().fit(holes, Y)


def test_counts_through_log1p():
    counts = RNG.poisson(np.exp(X / 2)).astype(np.float32)
    ours = classifier(input_transform="log1p").fit(counts, Y)
    np.testing.assert_allclose(ours.weights_[0][0], classifier().fit(np.log1p(counts), Y).weights_[0][0], rtol=2e-3,
                               atol=1e-4)  # fmt: skip
