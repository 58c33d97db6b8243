"""The whole gradient of random networks: against finite differences, and every backend against the reference."""

import numpy as np
import pytest
from conftest import backend_named

import fastae
from fastae.initializers import initial_weights
from fastae.models import weights
from fastae.models.graph import neighbour_graph
from fastae.plan import schema
from fastae.plan.build import training_plan
from fastae.plan.plan import Job, Source
from fastae.spec.classifier import classifier_network
from fastae.spec.network import dense_network
from fastae.tasks.labels import one_hot
from fastae.validation import seen_source

NETWORKS = {
    "gelu, dropout": {"activation": "gelu", "dropout": 0.2},
    "sigmoid, KL sparsity, Gaussian noise": {
        "activation": "sigmoid",
        "code_activation": "sigmoid",
        "loss": "binary_cross_entropy",
        "noise": "gaussian",
        "penalties": [fastae.KLSparsity(0.1, 0.5)],
    },
    "silu, Huber, salt and pepper, L2": {"activation": "silu", "loss": "huber", "noise": "salt_and_pepper",
                                         "penalties": ["l2"]},
    "elu, Poisson, swap noise": {"activation": fastae.ELU(0.7), "loss": "poisson", "noise": "swap"},
    "softplus, multinomial, masking": {"activation": "softplus", "loss": "multinomial", "noise": "masking"},
    "selu, softmax output, squared error": {"activation": "selu", "output_activation": "softmax"},
    "tanh, activity L1, dropout": {"activation": "tanh", "dropout": 0.3, "penalties": ["activity_l1"],
                                   "code_activation": "tanh"},
    "gelu_tanh, sum": {"activation": "gelu_tanh", "output_activation": "sigmoid", "reduction": "sum"},
    "exponential, categorical": {"activation": "exponential", "loss": "categorical_cross_entropy"},
    "tied, tanh, dropout": {"decoder_layer_sizes": None, "tied_weights": True, "activation": "tanh", "dropout": 0.2,
                            "penalties": ["l2"]},
    "maxout, dropout": {"activation": fastae.Maxout(3), "code_activation": fastae.Maxout(2), "dropout": 0.2},
    "batch norm, gelu, dropout": {"activation": "gelu", "normalization": "batch", "dropout": 0.2},
    "batch norm, tied": {"decoder_layer_sizes": None, "tied_weights": True, "normalization": "batch",
                         "activation": "tanh"},
    "layer norm, maxout": {"activation": fastae.Maxout(2), "normalization": "layer", "dropout": 0.1},
    "layer norm, sigmoid": {"activation": "sigmoid", "normalization": ["layer", None, "batch"]},
    "skip connections": {"hidden_layer_sizes": (7, 19, 19), "decoder_layer_sizes": (4, 33, 33), "dropout": 0.2,
                         "activation": ["tanh", "silu", "identity", "tanh", "elu", "silu"], "skip_connections": True},
    "skip connections, norms, maxout": {
        "hidden_layer_sizes": (7, 19, 19), "decoder_layer_sizes": (5, 33, 33), "skip_connections": True,
        "normalization": ["layer", None, "batch", None, "batch", "layer"], "dropout": 0.1,
        "activation": [fastae.Maxout(2), "identity", "identity", "tanh", fastae.Maxout(3), "silu"]},
    "contractive, exact, sigmoid": {"hidden_layer_sizes": (), "code_activation": "sigmoid",
                                    "penalties": [fastae.Contractive(0.3), fastae.KLSparsity(0.1, 0.2)]},
    "contractive, exact, gelu, tied": {"hidden_layer_sizes": (), "decoder_layer_sizes": None, "tied_weights": True,
                                       "code_activation": "gelu", "penalties": [fastae.Contractive(0.3)]},
    "contractive, sampled, noise": {"penalties": [fastae.Contractive(0.3, std=0.1)], "activation": "tanh",
                                    "noise": "masking", "dropout": 0.2, "code_activation": "sigmoid"},
    "contractive, sampled, batch norm, tied": {
        "decoder_layer_sizes": None, "penalties": [fastae.Contractive(0.3, std=0.1)], "activation": "tanh",
        "normalization": "batch", "tied_weights": True},
    "Laplacian, two branches": {"penalties": [fastae.Laplacian(3, 0.2), fastae.Contractive(0.1, "sampled", 0.1)],
                                "activation": "softplus", "noise": "gaussian"},
    "decorrelation, orthogonality, projector": {
        "activation": "tanh",
        "penalties": [fastae.Decorrelation(0.4), fastae.Orthogonality(0.3), fastae.SVDProjector(0.2, 3)]},
    "per layer": {"activation": ["tanh", "sigmoid", "softplus"], "normalization": [None, "batch", None],
                  "penalties": [fastae.OnLayers(fastae.KLSparsity(0.2, 0.3), 2), fastae.OnLayers("decorrelation", 0),
                                fastae.OnLayers("orthogonality", [0, -1]), fastae.OnLayers("activity_l1", "hidden")]},
    "cosine": {"activation": "tanh", "loss": "cosine", "output_activation": "softplus"},
    "counts, negative binomial": {"activation": "tanh", "loss": "negative_binomial", "input_transform": "log1p"},
    "counts, zero-inflated, no size factor, sum, batch norm": {
        "loss": fastae.ZeroInflatedNegativeBinomial(size_factor=False), "reduction": "sum", "activation": "silu",
        "normalization": "batch"},
    "counts, heads": {
        "activation": "tanh", "noise": "masking", "input_transform": "log1p",
        "loss": fastae.Heads((2, "zero_inflated_negative_binomial", 0.5), (slice(4, 7), "multinomial"),
                             (range(2, 4), fastae.Huber(0.3), 3.0))},
    "heads": {"activation": "silu", "loss": fastae.Heads((2, "squared_error"), (1, "binary_cross_entropy", 0.3),
                                                         (4, "cosine", 2.0)), "reduction": "sum"},
    "missing, Huber": {"activation": "tanh", "loss": "huber", "missing": np.nan, "dropout": 0.1},
    "missing, sum, softmax output, Laplacian": {
        "activation": "tanh", "missing": np.nan, "reduction": "sum", "output_activation": "softmax",
        "penalties": [fastae.Laplacian(3, 0.2)]},
    "missing, number, cosine": {"activation": "tanh", "missing": -1.0, "loss": "cosine"},
    "missing, multinomial, counts": {"activation": "tanh", "missing": np.nan, "loss": "multinomial"},
    "missing, counts, heads": {
        "activation": "tanh", "input_transform": "log1p", "missing": -1.0,
        "loss": fastae.Heads((3, "negative_binomial", 0.5), (1, "poisson"), (3, "multinomial"))},
    "classifier, dropout, KL sparsity, Laplacian": {
        "n_classes": 5, "hidden_layer_sizes": (19, 33), "activation": ["silu", "sigmoid"], "dropout": 0.2,
        "penalties": [fastae.KLSparsity(0.1, 0.2), fastae.Laplacian(3, 0.2)], "noise": "masking"},
    "classifier, batch norm, skip connections": {"n_classes": 2, "hidden_layer_sizes": (19, 19), "activation": "tanh",
                                                 "normalization": ["batch", "layer"], "skip_connections": True},
}  # fmt: skip


def gradient(name, backend, dtype, m=300, threads=2, theta=None, bf16=False):
    """(loss + penalties, gradient, theta, loss as a function of theta, gradient without padding) of one batch."""
    sizes = {"n_components": 4, "hidden_layer_sizes": (19,), "decoder_layer_sizes": (5, 33)}
    classifier = "n_classes" in NETWORKS[name]
    network = classifier_network(7, **NETWORKS[name]) if classifier else dense_network(7, **sizes | NETWORKS[name])
    plan = training_plan(network, dtype, m, weighted=True, bf16=bf16)
    spaces = plan.allocate()
    pairs = [(w, b + 0.1) for w, b in initial_weights("xavier_normal", network, seed=3)]
    weights.write(plan, spaces, network, pairs, weights.initial_norms(network))
    if network.n_directions:
        plan.view(spaces, "basis")[...] = np.eye(network.n_directions, 7)
    if theta is not None:
        spaces[schema.THETA].view(dtype)[: len(theta)] = theta
    rng = np.random.default_rng(0)
    X = rng.uniform(0.05, 0.95, (m, 7))
    X /= X.sum(axis=1, keepdims=True) if "categorical" in name else 1
    if "counts" in name:
        X = rng.poisson(2.0, X.shape) * (np.arange(m) != 5)[:, None] * 1.0  # a row of zeros
    if "missing" in name:
        X[rng.random(X.shape) < 0.3] = network.missing
        X[7] = network.missing
    source = Source(X.astype(dtype), columns=7, weight=rng.uniform(0.5, 1.5, m))
    sources: tuple = (source,)
    if classifier:
        sources = (source, one_hot(rng.integers(network.n_targets, size=m, dtype=np.int32), network.n_targets))
    if network.penalty(fastae.Laplacian):
        graph = neighbour_graph(network.penalty(fastae.Laplacian), seen_source(source, network))
        sources = (*sources, graph)
    handle = backend.compile(plan)
    n_theta = plan.sizes[schema.GRAD] // np.dtype(dtype).itemsize  # without running statistics

    def value(changed=None):
        if changed is not None:
            spaces[schema.THETA].view(dtype)[:n_theta] = changed
        values = np.zeros((1, plan.n_values))
        job = Job(spaces, sources, m, backend.permutation(1, 0, m), phases=schema.GRADIENT, values=values, seed=5,
                  scalars=np.ones((1, plan.n_scalars)), n_threads=threads)  # fmt: skip
        assert backend.run(handle, job) in (0, 1)
        return values.sum()

    loss = value()
    compact = [plan.view(spaces, f"d{name}{i}").ravel() for i, layer in enumerate(network.layers)
               for name, _, _ in layer.parameters]  # fmt: skip
    grad, theta = spaces[schema.GRAD].view(dtype).copy(), spaces[schema.THETA].view(dtype)[:n_theta].copy()
    return loss, grad, theta, value, np.concatenate(compact)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_by_finite_differences(name):
    backend = backend_named("reference")
    loss, grad, theta, value, _ = gradient(name, backend, np.float64)
    rng = np.random.default_rng(1)
    for i in rng.choice(np.flatnonzero(grad), 25, replace=False):
        e = 1e-6
        up, down = theta.copy(), theta.copy()
        up[i] += e
        down[i] -= e
        slope = (value(up) - value(down)) / (2 * e)
        rounding = 4 * np.finfo(np.float64).eps * abs(loss) / e
        assert grad[i] == pytest.approx(slope, rel=2e-5, abs=1e-7 + rounding)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_on_every_backend(tested_backend, name, dtype):
    expected_loss, _, theta, _, expected = gradient(name, backend_named("reference"), np.float64)
    loss, _, _, _, grad = gradient(name, tested_backend, dtype, theta=theta.astype(dtype)[: len(theta)] if
                                dtype == np.float64 else None)  # fmt: skip
    tolerance = 1e-12 if dtype == np.float64 else 3e-5
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    np.testing.assert_allclose(grad, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_arena_is_shared_by_buffers_that_do_not_live_together():
    network = dense_network(50, n_components=5, hidden_layer_sizes=(40,) * 8)
    plan = training_plan(network, np.float32, 64)
    total = sum(b.columns * (64 if b.rows < 0 else b.rows) * 4 for b in plan.buffers
                if b.space == schema.ARENA)  # fmt: skip
    assert plan.sizes[schema.ARENA] < total
    text = repr(plan)
    assert "dense_grad" in text and "FLOP" in text and "theta" in text
