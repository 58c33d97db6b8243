"""AVX2 and AVX-512 give the same bits: a chain of fused multiply-adds runs over the same elements in the same order,
and sums have 16 virtual lanes whatever a register holds."""

import numpy as np
import pytest
from conftest import backend_named
from test_records import RECORDS, SIZES, arrays_of, run

import fastae
from fastae import ops
from fastae.catalog import ACTIVATIONS, LOSSES, UPDATE_RULES

SETS = ("avx2", "avx512")


@pytest.fixture
def both():
    return [backend_named(isa) for isa in SETS]


def same(results):
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_records(both, sizes, dtype):
    for kind, attributes, slots in RECORDS:
        arrays = arrays_of(slots, sizes, dtype)
        (one, value), (other, second) = (run(b, dtype, sizes[0], kind, attributes, slots, arrays) for b in both)
        assert value == second, kind
        for name in slots:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{kind}: {name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_formulas(both, dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=4000) * scale for scale in (1e-30, 1e-3, 1.0, 10.0, 200.0)])
    x = np.concatenate([x, [0.0, -0.0, 1e-40, -1e-40]]).astype(dtype).reshape(4, -1)
    for row in ACTIVATIONS:
        outputs = [ops.activation(row.name, x, backend=b) for b in both]
        same([[y] for y in outputs])
        same([[ops.activation_grad(row.name, x if row.needs == "x" else outputs[0], x, backend=b)] for b in both])
    target = rng.uniform(size=x.shape).astype(dtype)
    for row in LOSSES:
        same([ops.loss(row.name, np.clip(x, -80, 80), target, backend=b) for b in both])
    for row in UPDATE_RULES:
        results = []
        for backend in both:
            w, state = x.copy(), [np.abs(target) for _ in row.states]
            ops.update(row.name, w, target - dtype(0.5), state, learning_rate=1e-2, step=3, backend=backend)
            results.append([w, *state])
        same(results)
    same([[ops.dropout(x, 0.3, (1, 2, 3), backend=b)] for b in both])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (2, 700, 65), (7, 31, 130), (33, 1600, 17), (300, 64, 96)])
def test_products(both, m, k, n, dtype):
    rng = np.random.default_rng(m)
    x, w, b, dy = (rng.normal(size=s).astype(dtype) for s in ((m, k), (n, k), (n,), (m, n)))
    y = [ops.dense(x, w, b, "gelu", backend=backend) for backend in both]
    same([[a] for a in y])
    same([ops.dense_grad(dy, y[0], x, w, "tanh", backend=backend) for backend in both])


@pytest.mark.parametrize("parameters", [
    {"dropout": 0.2, "noise": "masking", "loss": "binary_cross_entropy", "reduction": "sum"},
    {"normalization": "batch", "activation": "gelu", "penalties": [fastae.L2(1e-4), fastae.KLSparsity(0.1, 1.0)],
     "code_activation": "sigmoid"},
    {"tied_weights": True, "activation": "tanh", "noise": "gaussian", "solver": fastae.Lion(clip_norm=1.0)},
    {"activation": fastae.Maxout(2), "loss": "huber", "skip_connections": True, "hidden_layer_sizes": (40, 40)},
], ids=lambda p: next(iter(p)))  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fits(both, parameters, dtype):
    X = np.random.default_rng(0).uniform(size=(300, 37)).astype(dtype)
    settings = {"hidden_layer_sizes": (65, 17), "max_iter": 2, "batch_size": 64, "random_state": 5} | parameters
    fitted = [fastae.Autoencoder(6, backend=b, **settings).fit(X) for b in both]
    same([[a for pair in model.weights_ for a in pair] for model in fitted])
    same([[model.transform(X), model.reconstruct(X), model.score_samples(X)] for model in fitted])
