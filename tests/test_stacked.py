"""Greedy pretraining: each layer as the autoencoder of one hidden layer that it is, then the whole."""

import inspect
import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone

import fastae
from fastae import training
from fastae.initializers import initial_weights
from fastae.models.pretraining import layer_seed
from fastae.plan.plan import Source

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(83, 13)) ** 2
SEED = 3


def stacked(**parameters):
    settings = {"n_components": 4, "hidden_layer_sizes": (11, 7), "activation": "sigmoid", "max_iter": 2,
                "random_state": SEED, "batch_size": 32}  # fmt: skip
    pretraining = {"noise": "masking", "max_iter": 3, "batch_size": 32} | parameters.pop("pretraining", {})
    return fastae.StackedAutoencoder(**settings | parameters, pretraining=fastae.DenoisingPretraining(**pretraining))


def bits(model):
    return b"".join(w.tobytes() + b.tobytes() for w, b in model.weights_)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_layers_are_separately_trained_autoencoders(tested_backend, dtype, tied):
    noises = (fastae.MaskingNoise(0.3), fastae.GaussianNoise(0.1), None)
    model = stacked(
        max_iter=0,
        backend=tested_backend,
        pretraining={"noise": noises, "max_iter": (2, 3, 1), "tied_weights": tied, "learning_rate": 0.01},
    ).fit(X.astype(dtype))
    initial = initial_weights("auto", model.network_, SEED)
    # reconstruction of X, then of codes of sigmoids by sigmoids
    losses, outputs = ("squared_error", *["binary_cross_entropy"] * 2), ("identity", "sigmoid", "sigmoid")
    codes = X.astype(dtype)
    for i, width in enumerate((11, 7, 4)):
        (w, b), (v, c) = initial[i], initial[-1 - i]
        layer = fastae.Autoencoder(
            width, code_activation="sigmoid" if i < 2 else "identity", output_activation=outputs[i], loss=losses[i],
            noise=noises[i], tied_weights=tied, learning_rate=0.01, batch_size=32, max_iter=(2, 3, 1)[i], tol=0,
            initializer=[(w, b), (w.T if tied else v, c)], random_state=layer_seed(SEED, i), backend=tested_backend,
        ).fit(codes)  # fmt: skip
        for got, wanted in ((model.weights_[i], layer.weights_[0]), (model.weights_[-1 - i], layer.weights_[1])):
            np.testing.assert_array_equal(got[0], wanted[0])
            np.testing.assert_array_equal(got[1], wanted[1])
        assert model.pretraining_losses_[i] == layer.loss_curve_
        codes = layer.transform(codes)
    assert codes.dtype == dtype
    np.testing.assert_array_equal(model.transform(X.astype(dtype)), codes)
    if tied:
        np.testing.assert_array_equal(model.weights_[-1][0], model.weights_[0][0].T)


def test_the_whole_goes_on_where_pretraining_ends():
    start = stacked(max_iter=0).fit(X)
    assert start.n_iter_ == 0 and start.loss_curve_ == [] and np.isnan(start.loss_)
    whole = stacked(max_iter=4).fit(X)
    same = fastae.Autoencoder(4, hidden_layer_sizes=(11, 7), activation="sigmoid", max_iter=4, random_state=SEED,
                              batch_size=32, initializer=start.weights_).fit(X)  # fmt: skip
    assert bits(whole) == bits(same) and whole.loss_curve_ == same.loss_curve_
    assert whole.pretraining_losses_ == start.pretraining_losses_


def test_none_is_an_autoencoder():
    model = fastae.StackedAutoencoder(4, hidden_layer_sizes=(7,), pretraining=None, max_iter=2, random_state=0).fit(X)
    plain = fastae.Autoencoder(4, hidden_layer_sizes=(7,), max_iter=2, random_state=0).fit(X)
    assert bits(model) == bits(plain) and model.pretraining_losses_ is None
    ours, theirs = (inspect.signature(cls).parameters for cls in (fastae.StackedAutoencoder, fastae.Autoencoder))
    assert {name: p.default for name, p in ours.items() if name != "pretraining"} == {
        name: p.default for name, p in theirs.items()
    }


def test_pretraining_helps_a_deep_network():
    from sklearn.datasets import load_digits

    digits = (load_digits().data / 16).astype(np.float32)
    parameters = {"hidden_layer_sizes": (60, 40, 30), "activation": "sigmoid", "loss": "binary_cross_entropy",
                  "max_iter": 3, "random_state": 0, "batch_size": 64, "learning_rate": 0.01}  # fmt: skip
    layers = fastae.DenoisingPretraining("masking", learning_rate=0.01, batch_size=64)
    deep = fastae.StackedAutoencoder(10, pretraining=layers, **parameters).fit(digits)
    flat = fastae.Autoencoder(10, **parameters).fit(digits)
    assert deep.score(digits) > 0.4 * flat.score(digits)  # sigmoids all the way down hardly move without it
    for losses in deep.pretraining_losses_:
        assert len(losses) == 15 and losses[-1] < losses[0]


@pytest.mark.parametrize("threads", [2, 5])
def test_threads(native_backend, threads):
    one, many = (stacked(backend=native_backend, n_jobs=n, dropout=0.2, noise="gaussian").fit(X.astype(np.float32))
                 for n in (1, threads))  # fmt: skip
    assert bits(one) == bits(many) and one.pretraining_losses_ == many.pretraining_losses_


def test_copies_and_files(tmp_path):
    model = stacked(pretraining={"noise": ("masking", fastae.SwapNoise(0.1), None), "penalties": ["l2"],
                                 "learning_rate": fastae.Cosine(1e-2)}).fit(X)  # fmt: skip
    assert bits(clone(model).fit(X)) == bits(model)
    model.save(tmp_path / "m.safetensors")
    for copy in (pickle.loads(pickle.dumps(model)), fastae.load(tmp_path / "m.safetensors")):
        assert type(copy) is fastae.StackedAutoencoder and bits(copy) == bits(model)
        assert copy.pretraining == model.pretraining and copy.pretraining_losses_ == model.pretraining_losses_
        np.testing.assert_array_equal(copy.reconstruct(X), model.reconstruct(X))


def test_sparse_input_is_the_same():
    dense = np.where(X > 0.3, X, 0).astype(np.float32)
    assert bits(stacked().fit(scipy.sparse.csr_array(dense))) == bits(stacked().fit(dense))


def test_warm_starts_and_partial_fits_do_not_pretrain():
    model = stacked(warm_start=True).fit(X)
    losses, steps = model.pretraining_losses_, model.t_
    model.fit(X)
    assert model.pretraining_losses_ is losses and model.t_ == 2 * steps
    partial = stacked().partial_fit(X)
    plain = fastae.Autoencoder(4, hidden_layer_sizes=(11, 7), activation="sigmoid", random_state=SEED, batch_size=32)
    assert bits(partial) == bits(plain.partial_fit(X))
    assert partial.pretraining_losses_ is None


def test_held_out_rows_take_no_part():
    model = stacked(early_stopping=True, validation_fraction=0.2).fit(X)
    settings = training.Settings(None, None, 1, SEED, 1)
    _, held_out = model._split((Source(X, columns=13),), settings)
    assert len(held_out) == 17
    other = X.copy()
    other[held_out] = RNG.uniform(size=(17, 13))
    assert stacked(early_stopping=True, validation_fraction=0.2).fit(other).pretraining_losses_ == (
        model.pretraining_losses_
    )
    other[np.setdiff1d(np.arange(len(X)), held_out)[0]] = 0
    assert stacked(early_stopping=True, validation_fraction=0.2).fit(other).pretraining_losses_ != (
        model.pretraining_losses_
    )


def test_weights_of_rows_and_constraints_hold_in_pretraining():
    weight = np.ones(len(X))
    weight[:40] = 0
    other = X.copy()
    other[:40] = 0.5
    first, second = (stacked(max_iter=0).fit(rows, sample_weight=weight) for rows in (X, other))
    assert bits(first) == bits(second)
    model = stacked(max_iter=0, constraints=["non_negative"]).fit(X)
    assert all((w >= 0).all() for w, _ in model.weights_)


def test_structure_of_encoders():
    model = stacked(activation=[fastae.Maxout(2), "tanh", "tanh", "sigmoid"], skip_connections=False,
                    normalization=["layer", "batch", None, None]).fit(X)  # fmt: skip
    assert np.isfinite(model.transform(X)).all() and not np.allclose(model.norms_[0]["gamma"], 1)
    assert stacked(tied_weights=True).fit(X).weights_[-1][0].base is not None  # the whole is tied, so are the stages
    sparse = stacked(max_iter=0, pretraining={"noise": None, "penalties": [fastae.OnLayers("l1", 0)], "max_iter": 20,
                                              "solver": "sgd", "learning_rate": 0.5}).fit(X)  # fmt: skip
    assert np.isfinite(sparse.score(X))


REFUSED = [
    ({"decoder_layer_sizes": (5,)}, "mirrored decoder"),
    ({"decoder_layer_sizes": (7, 12)}, "mirrored decoder"),
    ({"normalization": "batch"}, "has a normalization"),
    ({"hidden_layer_sizes": (7, 7), "skip_connections": True}, "has a skip connection"),
    ({"activation": fastae.Maxout(2)}, "has a maxout activation"),
    ({"activation": [fastae.Maxout(2), "relu", "relu", "relu"], "pretraining": {"tied_weights": True}}, "transpose"),
    ({"pretraining": {"noise": ("masking", None)}}, "2 items for 3 encoder layers"),
    ({"pretraining": {"max_iter": (1, 2, 3, 4)}}, "4 items for 3 encoder layers"),
    ({"pretraining": {"loss": "binary_cross_entropy"}}, "goes with an output of"),
    ({"activation": "hard_sigmoid", "pretraining": {"loss": "binary_cross_entropy"}}, "goes with an output of"),
    ({"pretraining": {"penalties": [fastae.KLSparsity()]}}, "KLSparsity needs"),
    ({"constraints": fastae.OnLayers("non_negative", "decoder"), "pretraining": {"tied_weights": True}},
     "acts on decoder layer 5 and not on encoder layer 0"),
]  # fmt: skip


@pytest.mark.parametrize("change, message", REFUSED)
def test_refused(change, message):
    model = stacked(**change)
    with pytest.raises(ValueError, match=message):
        model.fit(X)
    assert not [name for name in vars(model) if name.endswith("_")]


@pytest.mark.parametrize("field, value, error", [
    ("noise", "maskin", ValueError), ("noise", 0.3, TypeError), ("noise", ("masking", 3), TypeError),
    ("max_iter", 0, ValueError), ("max_iter", (2, 0.5), TypeError), ("loss", "squared", ValueError),
    ("loss", "multinomial", ValueError), ("reduction", "max", ValueError), ("solver", "adm", ValueError),
    ("learning_rate", -1, ValueError), ("batch_size", 0, ValueError),
])  # fmt: skip
def test_options_are_checked(field, value, error):
    with pytest.raises(error, match=field):
        fastae.DenoisingPretraining(**{field: value})


def test_a_loss_that_is_not_finite_names_the_layer():
    model = stacked(pretraining={"solver": "sgd", "learning_rate": 1e30}, activation="relu")
    with pytest.raises(fastae.NonFiniteLossError, match="pretraining of encoder layer 0"):
        model.fit(X * 1e3)
    assert not hasattr(model, "weights_")
    with pytest.raises((TypeError, ValueError), match="pretraining"):
        fastae.StackedAutoencoder(pretraining="denoise").fit(X)


def test_full_batch_solvers_and_missing_entries():
    start = stacked(solver="lbfgs", max_iter=0).fit(X)
    assert start.loss_curve_ == [] and stacked(solver="lbfgs", max_iter=60, tol=1e-2).fit(X).score(X) > start.score(X)
    observed = RNG.random(X.shape) > 0.2
    holes = np.where(observed, X, np.nan)
    assert bits(stacked(missing=np.nan).fit(holes)) == bits(stacked().fit(X, mask=observed))
    counts = RNG.poisson(3.0, size=X.shape)
    model = stacked(loss="negative_binomial", input_transform="log1p").fit(counts)
    assert np.isfinite(model.pretraining_losses_[0]).all()
    with pytest.raises(ValueError, match="does not go with the outputs"):
        stacked(loss="negative_binomial", pretraining={"loss": "squared_error"}).fit(counts)
