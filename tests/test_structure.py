"""Estimators with tied weights, maxout, normalisation, skip connections and the regularisers on codes and weights."""

import hashlib
import pickle

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.neighbors import kneighbors_graph

import fastae

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 12))).astype(np.float32)
SHAPES = {
    "tied": {"tied_weights": True, "hidden_layer_sizes": (9,)},
    "tied, batch norm": {"tied_weights": True, "hidden_layer_sizes": (9,), "normalization": "batch"},
    "maxout": {"activation": fastae.Maxout(3), "hidden_layer_sizes": (9,), "dropout": 0.1},
    "maxout code": {"activation": fastae.Maxout(2)},
    "batch norm": {"normalization": fastae.BatchNorm(0.3), "hidden_layer_sizes": (9, 7), "activation": "gelu"},
    "layer norm": {"normalization": ["layer", "batch"], "hidden_layer_sizes": (9,), "activation": "tanh"},
    "skip": {"skip_connections": True, "hidden_layer_sizes": (12, 9, 9), "activation": "silu"},
    "skip, norm": {"skip_connections": True, "hidden_layer_sizes": (9, 9), "normalization": "layer"},
}
PENALTIES = {
    "contractive": {"code_activation": "sigmoid", "penalties": fastae.Contractive(0.1)},
    "contractive, deep": {"hidden_layer_sizes": (9,), "penalties": fastae.Contractive(0.1)},
    "Laplacian": {"hidden_layer_sizes": (9,), "penalties": fastae.Laplacian(5, 0.1)},
    "projector": {"penalties": fastae.SVDProjector(0.1, 3)},
    "orthogonality, decorrelation": {"penalties": ["orthogonality", "decorrelation"]},
}


def quick(**parameters):
    return fastae.Autoencoder(**{"n_components": 4, "max_iter": 3, "random_state": 0} | parameters)


def bits(model):
    digest = hashlib.sha256()
    for pair, norm in zip(model.weights_, model.norms_, strict=True):
        for array in (*pair, *(norm or {}).values()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", SHAPES | PENALTIES)
def test_it_learns_and_every_road_gives_the_same_bits(name, tmp_path):
    parameters = (SHAPES | PENALTIES)[name]
    model = quick(max_iter=40, learning_rate=5e-3, **parameters).fit(X)
    assert model.loss_ < 0.8 * model.loss_curve_[0]
    for threads in (1, 2, 3):
        assert bits(quick(**parameters, n_jobs=threads).fit(X)) == bits(quick(**parameters).fit(X))
    code, shown = model.transform(X), model.reconstruct(X)
    alone = np.testing.assert_array_equal if model.backend_ == "native" else np.testing.assert_allclose  # BLAS
    alone(
        model.transform(X[17:18]), code[17:18], **({} if model.backend_ == "native" else {"rtol": 1e-4, "atol": 1e-4})
    )
    np.testing.assert_allclose(model.inverse_transform(code), shown, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "model.safetensors")
    for same in (pickle.loads(pickle.dumps(model)), fastae.load(tmp_path / "model.safetensors")):
        np.testing.assert_array_equal(same.transform(X), code)
        np.testing.assert_array_equal(same.reconstruct(X), shown)
        assert bits(same.partial_fit(X)) == bits(pickle.loads(pickle.dumps(model)).partial_fit(X))


@pytest.mark.parametrize("name", ["tied, batch norm", "maxout", "batch norm", "skip, norm", "Laplacian"])
def test_partial_fits_make_the_same_as_fit(name):
    parameters = (SHAPES | PENALTIES)[name]
    whole, parts = quick(**parameters).fit(X), quick(**parameters)
    for _ in range(3):
        parts.partial_fit(X)
    assert bits(whole) == bits(parts)


def test_tied_weights_are_one_buffer():
    model = quick(tied_weights=True, hidden_layer_sizes=(9,)).fit(X)
    encoder, decoder = model.weights_[:2], model.weights_[2:]
    for (w, _), (v, _) in zip(encoder, reversed(decoder), strict=True):
        assert np.shares_memory(w, v)
        np.testing.assert_array_equal(w, v.T)
    assert model.n_parameters_ == 12 * 9 + 9 * 4 + (9 + 4 + 9 + 12)


def test_batch_norm_is_folded_into_the_weights():
    model = quick(normalization=fastae.BatchNorm(0.3), hidden_layer_sizes=(9,), activation="tanh", max_iter=20)
    model.fit(X.astype(float))
    (w, b), (v, c) = model.weights_[:2]
    norm = model.norms_[0]
    z = (X @ w.T + b - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["gamma"] + norm["beta"]
    np.testing.assert_allclose(model.transform(X.astype(float)), np.tanh(z) @ v.T + c, rtol=1e-10, atol=1e-12)
    z = X @ w.T + b
    np.testing.assert_allclose(norm["mean"], z.mean(axis=0), atol=0.3 * z.std())


def test_maxout_takes_the_largest_of_its_pieces():
    model = quick(activation=fastae.Maxout(2)).fit(X.astype(float))
    w, b = model.weights_[0]
    assert w.shape == (8, 12)
    z = (X @ w.T + b).reshape(-1, 2, 4)
    np.testing.assert_allclose(model.transform(X.astype(float)), z.max(axis=1), atol=1e-12)


def test_skip_connections_add_the_input():
    model = quick(skip_connections=True, hidden_layer_sizes=(12,), activation="tanh").fit(X.astype(float))
    (w, b), (v, c) = model.weights_[:2]
    h = np.tanh(X @ w.T + b) + X
    np.testing.assert_allclose(model.transform(X.astype(float)), h @ v.T + c, atol=1e-12)


def jacobian_norm(model, rows):
    """Mean over rows of the encoder Jacobian's squared Frobenius norm, by differences."""
    rows, e = rows.astype(float), 1e-5
    slopes = [(model.transform(rows + e * d) - model.transform(rows - e * d)) / (2 * e) for d in np.eye(rows.shape[1])]
    return float(np.sum(np.square(slopes)) / len(rows))


def test_the_contractive_penalties_contract():
    common = {"code_activation": "sigmoid", "max_iter": 200, "learning_rate": 5e-3, "batch_size": 64}
    plain = quick(**common).fit(X.astype(float))
    exact = quick(**common, penalties=fastae.Contractive(1.0, "exact")).fit(X.astype(float))
    sampled = quick(**common, penalties=fastae.Contractive(1.0, "sampled")).fit(X.astype(float))
    norms = [jacobian_norm(model, X[:50]) for model in (plain, exact, sampled)]
    assert norms[1] < 0.5 * norms[0]
    assert norms[2] == pytest.approx(norms[1], rel=0.2)


def test_the_exact_contraction_is_the_jacobian():
    model = quick(code_activation="tanh", penalties=fastae.Contractive(2.0), learning_rate=1e-12, max_iter=1,
                  shuffle=False, batch_size=300).fit(X.astype(float))  # fmt: skip
    plain = quick(code_activation="tanh", learning_rate=1e-12, max_iter=1, shuffle=False, batch_size=300)
    difference = model.loss_ - plain.fit(X.astype(float)).loss_
    assert difference == pytest.approx(2 * jacobian_norm(model, X), rel=1e-6)


def test_the_laplacian_of_a_matrix_brings_neighbours_together():
    def spread(model, graph):
        h = model.transform(X.astype(float))
        row, column = graph.nonzero()
        return np.mean((h[row] - h[column]) ** 2) / h.var()

    graph = csr_array(kneighbors_graph(X, 5))
    graph = graph.maximum(graph.T)
    common = {"hidden_layer_sizes": (16,), "max_iter": 60, "learning_rate": 5e-3}
    plain = quick(**common).fit(X.astype(float))
    near = quick(**common, penalties=fastae.Laplacian(graph, 1.0)).fit(X.astype(float))
    assert spread(near, graph) < 0.85 * spread(plain, graph)
    made = quick(**common, penalties=fastae.Laplacian(5, 1.0)).fit(X.astype(float))
    assert bits(made) == bits(near)  # the graph that fit makes is this one


def test_the_laplacian_estimate_is_the_trace():
    graph = csr_array(kneighbors_graph(X, 3))
    graph = graph.maximum(graph.T)
    common = {"batch_size": 300, "max_iter": 400, "learning_rate": 1e-30, "shuffle": False, "n_iter_no_change": 10**6}
    model = quick(**common, penalties=fastae.Laplacian(graph, 0.5)).fit(X.astype(float))
    plain = quick(**common | {"max_iter": 1}).fit(X.astype(float))
    h = model.transform(X.astype(float))
    degree = np.asarray(graph.sum(axis=1)).ravel()
    trace = np.sum(h * (degree[:, None] * h - graph @ h)) / len(X)
    assert np.mean(model.loss_curve_) - plain.loss_ == pytest.approx(0.5 * trace, rel=0.02)


def test_held_out_rows_are_no_ones_neighbours():
    from fastae.models.graph import neighbour_graph
    from fastae.plan.plan import Source

    graph = neighbour_graph(fastae.Laplacian(4), Source(X, columns=12), held_out=np.arange(50))
    assert graph.indices.min() >= 50


def test_projector_orthogonality_and_decorrelation_do_what_they_say():
    data = X.astype(float)
    common = {"n_components": 3, "activation": "identity", "max_iter": 200, "learning_rate": 5e-3,
              "batch_size": 64}  # fmt: skip
    projected = quick(**common, penalties=fastae.SVDProjector(300.0, 2)).fit(data)
    _, _, v = np.linalg.svd(data - data.mean(axis=0), full_matrices=False)
    w = projected.weights_[0][0]
    assert np.linalg.norm(w - w @ v[:2].T @ v[:2]) < 0.05 * np.linalg.norm(w)
    w = quick(**common, penalties=fastae.Orthogonality(10.0)).fit(data).weights_[0][0]
    np.testing.assert_allclose(w @ w.T, np.eye(3), atol=0.05)
    w = quick(**common | {"n_components": 20}, penalties=fastae.Orthogonality(10.0)).fit(data).weights_[0][0]
    np.testing.assert_allclose(w.T @ w, np.eye(12), atol=0.1)
    plain, apart = (quick(**common, penalties=p).fit(data).transform(data) for p in ((), fastae.Decorrelation(1.0)))
    off = [np.abs(np.corrcoef(h.T)[np.triu_indices(3, 1)]).mean() for h in (plain, apart)]
    assert off[1] < 0.5 * off[0]


def test_per_layer_settings():
    model = quick(hidden_layer_sizes=(9, 7), activation=["tanh", "relu", "selu", "sigmoid"], dropout=[0.1, 0, 0, 0.2],
                  normalization=[None, "batch", None, "layer"], initializer=["orthogonal"] + ["he_normal"] * 5,
                  penalties=[fastae.OnLayers("l1", "decoder"), fastae.OnLayers(fastae.KLSparsity(0.1), [4])],
                  constraints=fastae.OnLayers(fastae.MaxNorm(0.5), 0), max_iter=2).fit(X)  # fmt: skip
    norms = [np.linalg.norm(w, axis=1).max() for w, _ in model.weights_]
    assert norms[0] <= 0.5 * (1 + 1e-6) and max(norms[1:]) > 0.5
    assert [norm is not None for norm in model.norms_] == [False, True, False, False, True, False]


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"tied_weights": True, "hidden_layer_sizes": (5,), "decoder_layer_sizes": (6,)}, "needs a mirrored decoder"),
        ({"tied_weights": True, "activation": fastae.Maxout()}, "cannot go with maxout"),
        ({"skip_connections": True, "hidden_layer_sizes": (5,)}, "repeat a width"),
        ({"normalization": "bach"}, "did you mean 'batch'"),
        ({"hidden_layer_sizes": (5,), "activation": ["relu"]}, "one for each of the 2 hidden layers"),
        ({"hidden_layer_sizes": (5,), "penalties": fastae.Contractive(method="exact")}, "use method='sampled'"),
        ({"penalties": fastae.OnLayers("contractive", 0)}, "without OnLayers"),
        ({"penalties": fastae.OnLayers("l2", 7)}, "must be in"),
        ({"penalties": fastae.OnLayers("l2", "ecoder")}, "did you mean 'decoder'|did you mean 'encoder'"),
        ({"penalties": fastae.OnLayers("kl_sparsity", -1)}, "needs activities in"),
        ({"penalties": fastae.OnLayers("activity_l1", -1)}, "not on the output layer"),
        ({"penalties": [fastae.Laplacian(3), fastae.Laplacian(4)]}, "more than one Laplacian"),
        ({"penalties": fastae.Laplacian(np.eye(3))}, "shape"),
        ({"penalties": fastae.Laplacian(csr_array(np.eye(3)))}, "shape"),
        ({"penalties": fastae.Laplacian(csr_array(-np.ones((300, 300))))}, "finite weights >= 0"),
        ({"penalties": fastae.Laplacian(csr_array(np.triu(np.ones((300, 300)))))}, "not symmetric"),
        ({"penalties": fastae.Laplacian(300)}, "must be in"),
        ({"initializer": ["zeros"] * 3}, "3 items for 2 layers"),
    ],
)
def test_bad_structure_is_named(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quick(**parameters).fit(X)


def test_a_graph_is_not_stored_and_asked_for_again(tmp_path):
    graph = csr_array(kneighbors_graph(X, 3))
    model = quick(penalties=fastae.Laplacian(graph.maximum(graph.T))).fit(X)
    model.save(tmp_path / "model.safetensors")
    same = fastae.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(same.transform(X), model.transform(X))
    with pytest.raises(ValueError, match="give it the graph again"):
        same.fit(X)


@pytest.mark.parametrize("solver", ["lion", "adagrad", "rmsprop", "adam"])
def test_rounding_moves_no_bias_that_batch_normalisation_takes_out(solver):
    """Its gradient is 0: rules that divide by the gradient's size made whole steps of what rounding left of it."""
    parameters = {"hidden_layer_sizes": (9, 7), "normalization": "batch", "activation": "tanh", "max_iter": 8,
                  "solver": solver, "batch_size": 16, "tied_weights": True}  # fmt: skip
    rows = X.astype(float)
    models = [quick(**parameters, backend=backend).fit(rows) for backend in ("auto", "reference")]
    for model in models:  # the code is linear: what its bias adds, the decoder's normalisation takes out
        assert [bool(b.any()) for _, b in model.weights_] == 5 * [False] + [True]
    np.testing.assert_allclose(models[0].reconstruct(rows), models[1].reconstruct(rows), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("change", [{"code_activation": "tanh"}, {"penalties": fastae.ActivityL1(0.1)},
                                    {"hidden_layer_sizes": (4, 4), "skip_connections": True,
                                     "normalization": [None, None, "batch", "batch"]},
                                    {"normalization": [None, "layer"]}, {"normalization": [None, None]}])  # fmt: skip
def test_biases_that_matter_are_trained(change):
    given = {"hidden_layer_sizes": (9,), "normalization": [None, "batch"], "activation": "tanh"}
    model = quick(**(given | change)).fit(X)
    assert all(b.any() for (_, b), norm in zip(model.weights_, model.norms_, strict=True)
               if "mean" not in (norm or ()))  # fmt: skip
