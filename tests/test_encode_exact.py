"""Codes of real and of hostile rows beside those of float64, whichever way the kernels take."""

import numpy as np
import pytest

from fastae import SparseAutoencoder
from fastae.models.sparse_memory import CompiledCode
from fastae.plan.plan import Source
from fastae.plan.sparse import SPARSE_BATCH, sparse_inference_plan

K = 32


def model(x, n, backend, seed=0):
    """A dictionary that was trained briefly."""
    m = SparseAutoencoder(n, k=K, max_iter=1, batch_size=1024, learning_rate=1e-3, random_state=seed, backend=backend)
    return m.fit(x[:8192])


def codes(m, x, path):
    plan = sparse_inference_plan(m.network_, np.dtype(np.float32), SPARSE_BATCH, path=path)
    compiled = CompiledCode(m._backend(), plan, m._theta)
    values, indices = np.empty((len(x), K), np.float32), np.empty((len(x), K), np.int32)
    compiled.run(Source(x, columns=x.shape[1]), [values, indices, np.empty((len(x), 1), np.int32)], 2)
    return values, indices


def check(m, x):
    """Every way has the same bits, and float64's latents wherever it tells them apart by more than float32's bound."""
    plain = codes(m, x, "float32")
    for path in ("auto", "bfloat16", "int8"):
        for a, b in zip(codes(m, x, path), plain, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=path)
    w, b, c = (m.arrays_[name].astype(np.float64) for name in ("encoder", "encoder_bias", "decoder_bias"))
    # what the encoder sees is rounded before the product
    inner = (x.astype(np.float32) - m.arrays_["decoder_bias"]).astype(np.float64)
    p, norms = x.shape[1], np.linalg.norm(w, axis=1)
    wrong = 0
    for s in range(0, len(x), 1024):
        z = inner[s : s + 1024] @ w.T + b
        bound = (p + 2) * 2.0**-24 / (1 - (p + 2) * 2.0**-24) * (
            np.linalg.norm(inner[s : s + 1024], axis=1)[:, None] * norms + np.abs(b)) + 1e-37  # fmt: skip
        values, indices = plain[0][s : s + 1024], plain[1][s : s + 1024].astype(np.int64)
        own = np.take_along_axis(z, indices, axis=1)
        assert (np.abs(np.maximum(own, 0) - values) <= np.take_along_axis(bound, indices, axis=1)).all()
        lowest = (own - np.take_along_axis(bound, indices, axis=1)).min(axis=1)
        np.put_along_axis(z, indices, -np.inf, axis=1)
        wrong += int((z - bound > lowest[:, None] + 2 * bound.max()).sum())
    assert wrong == 0
    assert c.shape == (p,)


def adversarial(p=256):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, p)).astype(np.float32)
    x[:, :3] *= 30.0
    x[100:200] = x[:100]
    x[200:300] *= 1e-40
    x[300:400] = 0.0
    x[400:500] *= 1e15
    return x


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "avx512_amx"])
def test_hostile_rows(isa):
    from conftest import backend_named

    backend, x = backend_named(isa), adversarial()
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4096, 256)).astype(np.float32)
    w[1000:1100] = w[:100]  # ties
    w[1100:1200] = w[100:200] * np.float32(1 + 2**-20)  # nearly
    w[1200:1300] *= 1e-30
    m = SparseAutoencoder.from_arrays(w, rng.normal(size=4096) * 0.1, w, rng.normal(size=256), k=K, backend=backend)
    check(m, x)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx512", "avx512_amx"])
def test_ten_thousand_rows_of_real_activations(isa, data_dir):
    from conftest import backend_named

    backend = backend_named(isa)
    x = np.load(data_dir / "minilm_layer4_activations_f16.npy").astype(np.float32)
    check(model(x, 12_288, backend), x[-10_000:])
