"""Combinations that a review found broken, and keeps whole."""

import pickle

import numpy as np
import pytest

import fastae

RNG = np.random.default_rng(0)
X = RNG.random((120, 6))


def model(**parameters):
    return fastae.Autoencoder(**{"n_components": 3, "max_iter": 3, "random_state": 0, "batch_size": 16} | parameters)


def test_a_mark_that_the_stored_type_cannot_hold_is_refused():
    marked = np.where(X < 0.2, -999.9, X).astype(np.float32)
    assert model(missing=-999.9).fit(marked).loss_ < 10
    for parameters in ({"precision": "float64"}, {"solver": "lbfgs"}):
        with pytest.raises(ValueError, match=r"missing=-999.9 is no float32 number"):
            model(missing=-999.9, **parameters).fit(marked)


@pytest.mark.parametrize("backend", ["reference", "numba", "native"])
def test_a_lone_last_row_leaves_running_statistics_alone(backend):
    if backend == "native":
        pytest.importorskip("fastae._core")
    options = {"normalization": "batch", "hidden_layer_sizes": (5,), "activation": "tanh", "backend": backend,
               "batch_size": 60, "shuffle": False, "learning_rate": 1e-12}  # fmt: skip
    even, odd = model(**options).fit(X), model(**options).fit(np.vstack([X, X[:1]]))
    np.testing.assert_allclose(odd.norms_[0]["var"], even.norms_[0]["var"], rtol=1e-6)
    with pytest.raises(ValueError, match="batch_size=1 cannot go with batch normalisation"):
        model(**options | {"batch_size": 1}).fit(X)


@pytest.mark.parametrize("option", [fastae.NonNegative(), fastae.MaxNorm(0.1)])
def test_constraints_on_weights_that_are_another_layers(option):
    with pytest.raises(ValueError, match="acts on the weights of layer 1, which are those of layer 0"):
        model(tied_weights=True, constraints=[fastae.OnLayers(option, "decoder")]).fit(X)
    with pytest.raises(ValueError, match="names no layer"):
        model(penalties=[fastae.OnLayers("l2", "hidden")]).fit(X)


@pytest.mark.parametrize("change", [{"output_activation": "sigmoid"}, {"hidden_layer_sizes": (9,)},
                                    {"input_transform": "log1p"}, {"reduction": "sum"}])  # fmt: skip
def test_parameters_changed_after_fit_are_not_saved(change, tmp_path):
    fitted = model().fit(X).set_params(**change)
    with pytest.raises(ValueError, match="parameters were changed after fit"):
        fitted.save(tmp_path / "m")


def test_nothing_to_hold_out():
    classifier = fastae.AutoencoderClassifier((4,), early_stopping=True, max_iter=2, pretraining=None)
    with pytest.raises(ValueError, match="early_stopping needs rows to hold out"):
        classifier.fit(X[:20], np.arange(20))


def test_more_directions_in_a_warm_start():
    fitted = model(penalties=[fastae.SVDProjector(0.1)], warm_start=True).fit(X)
    fitted.set_params(penalties=[fastae.SVDProjector(0.1, n_components=5)]).fit(X)
    assert fitted.basis_.shape == (5, 6)


def test_neighbours_as_numpy_integers(tmp_path):
    assert fastae.Laplacian(np.int64(5)) == fastae.Laplacian(5)
    fitted = model(penalties=[fastae.Laplacian(np.int64(5))]).fit(X)
    fitted.save(tmp_path / "m")
    fastae.load(tmp_path / "m").fit(X)


def test_tied_weights_are_views_after_pickling():
    copy = pickle.loads(pickle.dumps(model(tied_weights=True).fit(X)))
    assert np.shares_memory(copy.weights_[0][0], copy.weights_[1][0])


def test_nan_of_any_float_type_marks_missing_entries():
    holes = X.copy()
    holes[3, 2] = np.nan
    assert np.isfinite(model(missing=np.float32("nan")).fit(holes).loss_)


def test_a_mask_is_remembered():
    mask = RNG.random(X.shape) < 0.8
    fitted = model().fit(X, mask=mask)
    holes = np.where(mask, X, np.nan)
    fitted.partial_fit(holes)
    assert np.isfinite(fitted.transform(holes)).all()


@pytest.mark.parametrize("make", [model, lambda **p: fastae.SparseAutoencoder(8, k=2, max_iter=1, **p)])
def test_another_way_of_making_products_is_another_backend(make, monkeypatch):
    """FASTAE_CUDA_PRODUCTS is looked at by every call, also of a model that has compiled its plans."""
    from fastae import backends

    class Spy:
        def __init__(self):
            self.inner, self.runs = backends.get_backend("reference"), 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def run(self, handle, job):
            self.runs += 1
            return self.inner.run(handle, job)

    spies = {"cublas": Spy(), "exact": Spy()}
    monkeypatch.setattr(backends, "cuda_backend", lambda number, products: spies[products])
    monkeypatch.delenv("FASTAE_CUDA_PRODUCTS", raising=False)
    fitted = make(device="cuda").fit(X)
    for products in ("cublas", "exact", "cublas"):
        monkeypatch.setenv("FASTAE_CUDA_PRODUCTS", products)
        for spy in spies.values():
            spy.runs = 0
        fitted.transform(X)
        assert {name for name, spy in spies.items() if spy.runs} == {products}
