"""The whole gradient of random networks: against finite differences, and every backend against the reference."""

import numpy as np
import pytest
from conftest import backend_named

import fastae
from fastae.initializers import initial_weights
from fastae.plan import schema
from fastae.plan.build import training_plan
from fastae.plan.plan import Job, Source
from fastae.spec.network import dense_network

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
}  # fmt: skip


def gradient(name, backend, dtype, m=300, threads=2, theta=None):
    """(loss + penalties, gradient, theta, spaces' step function) of one batch."""
    network = dense_network(7, n_components=4, hidden_layer_sizes=(19,), decoder_layer_sizes=(5, 33), **NETWORKS[name])
    plan = training_plan(network, dtype, m, weighted=True)
    spaces = plan.allocate()
    for i, (w, b) in enumerate(initial_weights("xavier_normal", network, seed=3)):
        plan.view(spaces, f"w{i}")[...] = w
        plan.view(spaces, f"b{i}")[...] = b + 0.1
    if theta is not None:
        spaces[schema.THETA].view(dtype)[:] = theta
    rng = np.random.default_rng(0)
    X = rng.uniform(0.05, 0.95, (m, 7))
    X /= X.sum(axis=1, keepdims=True) if "categorical" in name else 1
    source = Source(X.astype(dtype), columns=7, weight=rng.uniform(0.5, 1.5, m))
    handle = backend.compile(plan)

    def value(changed=None):
        if changed is not None:
            spaces[schema.THETA].view(dtype)[:] = changed
        values = np.zeros((1, plan.n_values))
        job = Job(spaces, (source,), m, backend.permutation(1, 0, m), phases=schema.GRADIENT, values=values, seed=5,
                  scalars=np.ones((1, plan.n_scalars)), n_threads=threads)  # fmt: skip
        assert backend.run(handle, job) in (0, 1)
        return values.sum()

    loss = value()
    return loss, spaces[schema.GRAD].view(dtype).copy(), spaces[schema.THETA].view(dtype).copy(), value


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_by_finite_differences(name):
    backend = backend_named("reference")
    loss, grad, theta, value = gradient(name, backend, np.float64)
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
    expected_loss, expected, theta, _ = gradient(name, backend_named("reference"), np.float64)
    loss, grad, _, _ = gradient(name, tested_backend, dtype, theta=theta.astype(dtype)[: len(theta)] if
                                dtype == np.float64 else None)  # fmt: skip
    tolerance = 1e-12 if dtype == np.float64 else 3e-5
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    # float32 pads parameters differently: compare what isn't padding, in order
    a, b = grad[grad != 0], expected[expected != 0]
    assert len(a) == len(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_arena_is_shared_by_buffers_that_do_not_live_together():
    network = dense_network(50, n_components=5, hidden_layer_sizes=(40,) * 8)
    plan = training_plan(network, np.float32, 64)
    total = sum(b.columns * (64 if b.rows < 0 else b.rows) * 4 for b in plan.buffers
                if b.space == schema.ARENA)  # fmt: skip
    assert plan.sizes[schema.ARENA] < total
    text = repr(plan)
    assert "dense_grad" in text and "FLOP" in text and "theta" in text
