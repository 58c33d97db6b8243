"""pytest-benchmark of ops and training: ``pytest benchmarks -m ""`` or ``make bench OP=dense``."""

import numpy as np
import pytest

import fastae
from fastae import ops
from fastae.catalog import ACTIVATIONS

RNG = np.random.default_rng(0)
LARGE = RNG.normal(size=(4096, 1024)).astype(np.float32)


@pytest.mark.parametrize("m, k, n", [(1, 784, 512), (128, 784, 512), (8192, 784, 512)])
def test_dense(benchmark, m, k, n):
    x, w = (RNG.normal(size=shape).astype(np.float32) for shape in ((m, k), (n, k)))
    packed, out = ops.pack(w), np.empty((m, n), np.float32)
    benchmark.extra_info["flops"] = 2 * m * k * n
    benchmark(ops.dense, x, packed, out=out, n_threads=1)


@pytest.mark.parametrize("name", [row.name for row in ACTIVATIONS])
def test_activation(benchmark, name):
    out = np.empty_like(LARGE)
    benchmark.extra_info["bytes"] = 2 * LARGE.nbytes
    benchmark(ops.activation, name, LARGE, out=out, n_threads=1)


def test_dropout(benchmark):
    out = np.empty_like(LARGE)
    benchmark.extra_info["bytes"] = 2 * LARGE.nbytes
    benchmark(ops.dropout, LARGE, 0.5, (1, 2, 3), out=out, n_threads=1)


@pytest.mark.parametrize("rule", ["sgd", "adam", "lion"])
def test_update(benchmark, rule):
    w, g = np.zeros(1 << 22, np.float32), np.ones(1 << 22, np.float32)
    states = [np.zeros_like(w) for _ in ops.state_names(rule)]
    benchmark.extra_info["bytes"] = w.nbytes * (3 + 2 * len(states))
    benchmark(ops.update, rule, w, g, states, 1e-3, 1, n_threads=1)


@pytest.mark.parametrize("batch", [32, 256])
def test_training_epoch(benchmark, batch):
    X = RNG.normal(size=(20_000, 30)).astype(np.float32)
    model = fastae.Autoencoder(32, hidden_layer_sizes=(64,), code_activation="relu", batch_size=batch, max_iter=1,
                               tol=0.0, random_state=0, n_jobs=1)  # fmt: skip
    benchmark.extra_info["rows"] = len(X)
    benchmark(model.fit, X)
