"""Fitting again and going on: warm starts, partial fits, refused calls, callbacks."""

import copy

import numpy as np
import pytest
import scipy.sparse

import fastae

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 12))).astype(np.float32)


def quick(**parameters):
    return fastae.Autoencoder(**{"n_components": 4, "max_iter": 3, "random_state": 0} | parameters)


def bits(model):
    return b"".join(w.tobytes() + b.tobytes() for w, b in model.weights_)


@pytest.mark.parametrize("change", [
    {"initializer": "xavir"}, {"solver": "adm"}, {"n_components": 0}, {"batch_size": -1}, {"learning_rate": -1},
    {"loss": "binary_cross_entropy"}, {"backend": "cuda"}, {"early_stopping": True, "validation_fraction": 0.9999},
])  # fmt: skip
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_refused_fit_changes_nothing(change, call):
    model = quick().fit(X)
    before, codes = copy.deepcopy(vars(model)), model.transform(X)
    model.set_params(**change)
    other = X[:, :9] if call == "fit" else X
    if call == "partial_fit" and set(change) & {"initializer", "early_stopping"}:
        pytest.skip("partial_fit reads neither once fitted")
    with pytest.raises((ValueError, TypeError, ImportError)):
        getattr(model, call)(other)
    model.set_params(**{name: before[name] for name in change})
    assert model.n_features_in_ == 12 and model.t_ == before["t_"] and model.loss_curve_ == before["loss_curve_"]
    np.testing.assert_array_equal(model.transform(X), codes)
    unfitted = quick(**change)
    with pytest.raises((ValueError, TypeError, ImportError)):
        getattr(unfitted, "fit" if "early_stopping" in change else call)(other)
    assert not [name for name in vars(unfitted) if name.endswith("_")]


def test_callbacks_see_the_present_weights():
    scores = []
    model = quick(max_iter=4, callbacks=[lambda info: scores.append(info.model.score(X))]).fit(X)
    assert len(set(scores)) == 4 and scores[-1] == model.score(X)


def test_a_warm_start_begins_its_schedule_anew_and_keeps_the_optimiser():
    rates = []
    model = quick(warm_start=True, max_iter=3, learning_rate=fastae.StepDecay(0.01, 0.1, every=2),
                  callbacks=[lambda info: rates.append(info.learning_rate)]).fit(X)  # fmt: skip
    steps = model.t_
    model.fit(X)
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.001] * 2)
    assert model.t_ == 2 * steps and model.n_iter_ == 3 and len(model.loss_curve_) == 3


def test_a_warm_start_learns_after_a_schedule_that_ended_at_zero():
    model = quick(warm_start=True, max_iter=2, learning_rate=fastae.Cosine(0.01)).fit(X)
    before = bits(model)
    assert bits(model.fit(X)) != before


def test_early_stopping_ends_with_the_weights_of_the_best_epoch():
    seen = []
    model = quick(early_stopping=True, max_iter=40, learning_rate=0.05, n_iter_no_change=5,
                  callbacks=[lambda info: seen.append((info.validation_loss, bits(info.model)))]).fit(X)  # fmt: skip
    best = min(seen)[1]
    assert best != seen[-1][1] and bits(model) == best


def test_partial_fits_go_on_in_the_schedule():
    schedule = fastae.Cosine(0.01)
    whole = quick(max_iter=4, learning_rate=schedule, tol=0).fit(X)
    parts = quick(max_iter=4, learning_rate=schedule)
    for _ in range(4):
        parts.partial_fit(X)
    assert bits(whole) == bits(parts) and parts.n_iter_ == 4
    assert parts.validation_scores_ is None and parts.best_validation_score_ is None


@pytest.mark.parametrize("schedule", [fastae.Cosine(0.01), fastae.LinearWarmup(0.01), fastae.OneCycle(0.01)], ids=repr)
def test_a_schedule_at_its_end_is_told_once(schedule):
    model = quick(max_iter=2, learning_rate=schedule).partial_fit(X).partial_fit(X)
    with pytest.warns(fastae.ModelWarning, match="max_iter=2 epochs: from this call of partial_fit on the rate is"):
        model.partial_fit(X)
    model.partial_fit(X)  # warnings are errors
    fitted = quick(max_iter=2, learning_rate=schedule).fit(X)
    with pytest.warns(fastae.ModelWarning, match="raise max_iter"):
        fitted.partial_fit(X)


def test_a_schedule_that_leaves_something_to_learn_has_no_warning():
    cosines = fastae.Cosine(0.01, floor=1e-3), fastae.Cosine(0.01, restart=2)
    for schedule in (0.01, *cosines, fastae.ReduceOnPlateau(0.01)):
        model = quick(max_iter=2, learning_rate=schedule)
        for _ in range(4):
            before = model.partial_fit(X).loss_
        assert model.partial_fit(X).loss_ < before


def test_partial_fits_go_on_in_a_schedule_that_watches_the_loss():
    schedule = fastae.ReduceOnPlateau(0.3, patience=0)
    whole = quick(max_iter=8, learning_rate=schedule, tol=0).fit(X)
    parts = quick(learning_rate=schedule)
    for _ in range(8):
        parts = copy.deepcopy(parts).partial_fit(X)
    assert np.max(np.diff(whole.loss_curve_)) > 0  # it did come to a plateau
    assert bits(whole) == bits(parts)
    kept, before = copy.deepcopy(parts).partial_fit(X), bits(parts)
    assert bits(parts.set_params(learning_rate=fastae.ReduceOnPlateau(1e-30)).partial_fit(X)) == before != bits(kept)


def test_partial_fits_on_batches_of_changing_size_match_fresh_memory():
    live, fresh = quick(), quick()
    for rows in (64, 64, 100, 64, 64):
        live.partial_fit(X[:rows])
        fresh = copy.deepcopy(fresh).partial_fit(X[:rows])  # a copy has no working memory to reuse
        assert bits(live) == bits(fresh)


def test_a_device_that_is_refused_changes_nothing():
    model = quick().fit(X)
    for device in ("gpu", None):
        with pytest.raises(ValueError, match=f"device={device!r} is unknown"):
            model.to(device)
    assert model.device == model.backend == "auto"


def test_partial_fit_takes_weights_changed_by_hand():
    model = quick().partial_fit(X)
    model.weights_[0][0][:] = 0.25
    twin = copy.deepcopy(model)
    assert bits(model.partial_fit(X)) == bits(twin.partial_fit(X))


CALLS = {
    "transform": lambda m: m.transform(X),
    "one row": lambda m: m.transform(X[:1]),
    "numbers of another type": lambda m: m.transform(X.astype(float)),
    "a list": lambda m: m.transform(X.tolist()),
    "reconstruct": lambda m: m.reconstruct(X),
    "decode": lambda m: m.inverse_transform(np.ones((3, 4))),
    "loss": lambda m: m.score_samples(X),
}


def halved(model):
    model.weights_[0][0][:] *= 0.5
    model.weights_[-1][1][:] += 1


def replaced(model):
    model.weights_ = [(w / 2, b + 1) for w, b in model.weights_]


def replaced_within(model):
    model.weights_[0] = tuple(a / 2 for a in model.weights_[0])
    model.weights_[-1][1][:] += 1


def normalised(model):
    model.norms_[0]["gamma"][:] *= 2
    model.norms_[-2]["beta"][:] -= 1


@pytest.mark.parametrize("change", [halved, replaced, replaced_within, normalised])
@pytest.mark.parametrize("name", CALLS)
def test_weights_changed_by_hand_are_the_ones_that_count(name, change):
    options = {"normalization": "batch"} if change is normalised else {"tied_weights": True}
    model = quick(hidden_layer_sizes=(6,), **options).fit(X)
    if change is replaced:
        model = fastae.Autoencoder.from_arrays(model.weights_[:2], model.weights_[2:])
    before = CALLS[name](model)
    for _ in range(2):  # again after plans were made anew
        change(model)
        after = CALLS[name](model)
        assert (after != before).any()
        np.testing.assert_array_equal(after, CALLS[name](copy.deepcopy(model)))
        before = after


def test_weights_kept_from_before_cannot_change_unseen():
    model = quick(tied_weights=True, hidden_layer_sizes=(6,), normalization="batch").fit(X)
    encoder = model.encoder()
    w, v, gamma = model.weights_[0][0], model.weights_[-1][0], model.norms_[0]["gamma"]
    w *= 2  # nothing is compiled yet
    codes = model.transform(X)
    for array in (w, v, gamma):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    np.testing.assert_array_equal(model.transform(X), codes)
    assert model.weights_[0][0] is w and np.shares_memory(w, v)
    v *= 2  # of the same memory
    assert (model.transform(X) != codes).any()
    assert (encoder(X) != codes).any() and (encoder(X) != model.transform(X)).any()


def test_reading_a_model_keeps_its_plans(tmp_path):
    model = quick().fit(X)
    model.transform(X)
    plans = dict(model._compiled)
    model.save(tmp_path / "m.safetensors")
    model.encoder()
    model.score(X)
    copy.deepcopy(model)
    assert plans.items() <= model._compiled.items()


def test_another_rule_starts_its_state_anew():
    model = quick(solver="momentum").fit(X).set_params(solver="adagrad")  # states of the same size
    model.partial_fit(X)
    assert np.isfinite(model.loss_) and model.t_ == 2


def test_dropout_may_change_between_fits():
    """It needs no other weights: what is trained with another rate from the start has the same network."""
    for call in ("fit", "partial_fit"):
        model, same = (quick(warm_start=True, hidden_layer_sizes=(9,)).fit(X) for _ in range(2))
        getattr(model.set_params(dropout=0.5), call)(X)
        getattr(same, call)(X)
        assert bits(model) != bits(same) and model.network_.layers[0].dropout == 0.5
        model.set_params(dropout=0.0).partial_fit(X)
        assert model.network_.layers == same.network_.layers
        with pytest.raises(ValueError, match="layers differ"):
            getattr(model.set_params(activation="tanh"), call)(X)


@pytest.mark.parametrize("fitted, changed", [
    ("auto", "float64"), ("float32", "float64"), ("float64", "float32"), ("float64", "bfloat16"),
])  # fmt: skip
def test_another_precision_is_refused(fitted, changed):
    model = quick(warm_start=True, precision=fitted).fit(X)
    before = bits(model)
    model.set_params(precision=changed)
    for call in (model.fit, model.partial_fit, lambda X: model.partial_fit([X, X])):
        with pytest.raises(ValueError, match=f"precision='{changed}' computes in .*, but the model was fitted in "):
            call(X)
    assert bits(model) == before
    model.set_params(precision="auto").fit(X)
    assert model.weights_[0][0].dtype == (np.float64 if fitted == "float64" else np.float32)


def test_after_a_loss_that_was_not_finite_training_can_go_on():
    model = quick(learning_rate=1e30, hidden_layer_sizes=(8,))
    with pytest.raises(fastae.NonFiniteLossError, match="lower learning_rate, scale X"):
        model.fit(X)
    assert model.t_ == 0
    first = model.set_params(learning_rate=1e-3).partial_fit(X).loss_
    for _ in range(20):
        model.partial_fit(X)
    assert model.loss_ < first


def test_zero_weights_among_the_held_out_rows():
    weight = np.zeros(40)
    weight[3] = 1
    model = quick(early_stopping=True).fit(X[:40], sample_weight=weight)
    assert np.isfinite(model.best_validation_score_)


def test_weights_are_relative_to_those_of_the_rows_to_train_on():
    order, weight = quick()._backend().permutation(0, 2**32 - 1, len(X)), np.arange(1.0, len(X) + 1)
    weight[order[0]] = 1e6  # held out
    model = quick(early_stopping=True, learning_rate=1e-12, max_iter=1).fit(X, sample_weight=weight)
    train = order[len(X) // 10 :]
    assert model.loss_ == pytest.approx(np.average(-model.score_samples(X[train]), weights=weight[train]), rel=1e-5)


def test_no_weight_among_the_rows_to_train_on():
    held_out = quick()._backend().permutation(0, 2**32 - 1, len(X))[0]
    with pytest.raises(ValueError, match="held out every row whose sample_weight is not 0"):
        quick(early_stopping=True).fit(X, sample_weight=np.arange(len(X)) == held_out)


def test_codes_of_any_form_decode_alike():
    pandas = pytest.importorskip("pandas")
    model = quick().fit(X)
    codes = model.transform(X)
    expected = model.inverse_transform(codes)
    np.testing.assert_array_equal(model.inverse_transform(scipy.sparse.csr_array(codes)), expected)
    np.testing.assert_array_equal(model.inverse_transform(np.asfortranarray(codes)), expected)
    model.set_output(transform="pandas")
    frame = model.transform(X)
    assert isinstance(frame, pandas.DataFrame)
    np.testing.assert_array_equal(model.inverse_transform(frame), expected)
    for bad, message in ((X, "X has 12 columns, codes .* n_components=4"), (codes[0], "Reshape your data"),
                         (codes * np.nan, "Input X contains NaN")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.inverse_transform(bad)
