"""What only a GPU can show; every other test with a backend also runs on one where it is (cuda_gpu, cuda_cublas)."""

import numpy as np
import pytest

import fastae
from fastae import ops
from fastae.backends.cuda.driver import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no GPU: {why_not()}")


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def test_arrays_on_the_gpu_give_arrays_on_the_gpu(cupy):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((70, 33)).astype(np.float32), rng.standard_normal((20, 33)).astype(np.float32)
    y = ops.dense(cupy.asarray(x), w, activation="gelu")
    assert isinstance(y, cupy.ndarray)
    np.testing.assert_allclose(y.get(), ops.dense(x, w, activation="gelu"), atol=1e-4)


def test_a_model_goes_to_the_gpu_and_back(cupy, tmp_path):
    X = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    model = fastae.Autoencoder(5, max_iter=3, device="cuda", random_state=0).fit(X)
    assert (model.backend_, model.device_) == ("cuda", "cuda:0")
    there = model.transform(cupy.asarray(X))
    assert isinstance(there, cupy.ndarray)
    model.save(tmp_path / "model.safetensors")
    here = fastae.load(tmp_path / "model.safetensors").to("cpu")
    assert here.device_ == "cpu"
    np.testing.assert_allclose(there.get(), here.transform(X), atol=1e-5)
    np.testing.assert_allclose(model.to("cpu").transform(X), here.transform(X), atol=1e-6)


def test_rows_larger_than_a_block_stream_through(cupy, monkeypatch):
    from fastae.backends.cuda import blocks

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 16)
    X = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)
    model = fastae.Autoencoder(8, max_iter=2, device="cuda", random_state=0).fit(X)
    whole = model.transform(cupy.asarray(X)).get()
    np.testing.assert_array_equal(model.transform(X), whole)


def test_rows_on_the_gpu_and_a_model_on_the_cpu_is_an_error(cupy):
    with pytest.raises(TypeError, match="device='cuda'"):
        fastae.Autoencoder(2, device="cpu").fit(cupy.ones((4, 3)))
