"""Products of whole dense models on a device: cuBLASLt's way, and small layers in bfloat16 by kernels of our own."""

import numpy as np
import pytest
from conftest import SLOW
from cuda_host import HostDriver, compiler
from test_cuda_fit import X, assert_same, dense

import fastae
from fastae import ops
from fastae.backends.cuda import CudaBackend, binder, tensor
from fastae.backends.cuda import dense as dense_ops

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler to build the device kernels for the host")


def test_products_by_cublaslt_are_close(native):
    device = CudaBackend(HostDriver(products="cublas"))
    for precision, within in (("float32", 1e-4), ("tf32", 1e-2), ("bfloat16", 0.05)):
        model = dense(device, precision=precision).fit(X)
        other = dense(native, precision="float32").fit(X)
        for (w, _), (v, _) in zip(model.weights_, other.weights_, strict=True):
            np.testing.assert_allclose(w, v, atol=within)


@pytest.mark.parametrize("m, parts", [(700, None), (1500, None), (1500, 2), (1500, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_over_segments_keep_their_order(cuda, native, monkeypatch, m, parts, dtype):
    n, k = 45, 70
    rng = np.random.default_rng(m)
    shapes = ((m, n), (m, n), (m, k), (n, k))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    if parts is not None:  # so many segments at a time
        monkeypatch.setattr(dense_ops, "PARTS_BYTES", parts * n * k * np.dtype(dtype).itemsize)
    got, want = (ops.dense_grad(*arrays, "tanh", backend=backend) for backend in (cuda, native))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options, launches",
    [
        ({"activation": "relu"}, 2),  # of eight layers, four at a time
        ({"activation": "tanh", "dropout": 0.2, "tied_weights": True}, None),
        SLOW({"activation": "elu", "normalization": "batch"}, None),
        ({"activation": "relu", "penalties": (fastae.L2(1e-3),), "solver": fastae.Adam(clip_norm=0.5)}, 2),
        SLOW({"hidden_layer_sizes": (24, 30)}, None),  # some layers in cuBLASLt's way
        # a gradient lies where another layer's output does, which blocks may still read
        ({"activation": "relu", "hidden_layer_sizes": (16, 128), "n_components": 32}, None),
        ({"activation": "elu", "hidden_layer_sizes": (24, 200), "n_components": 16, "dropout": 0.2}, None),
        ({"hidden_layer_sizes": (32,), "n_components": 16, "tied_weights": True}, None),
        SLOW({"hidden_layer_sizes": (32,), "n_components": 16, "normalization": "batch"}, None),
        SLOW({"penalties": (fastae.Orthogonality(0.1), fastae.Decorrelation(0.1))}, None),
        SLOW({"penalties": (fastae.SVDProjector(0.1, 4),)}, None),
    ],
    ids=str,
)
def test_small_layers_in_bfloat16_are_made_by_few_kernels(native, by_cublas, monkeypatch, options, launches):
    rows = np.random.default_rng(1).standard_normal((120, 64)).astype(np.float32)
    options = {"n_components": 8, "hidden_layer_sizes": (48, 32, 16), "batch_size": 60, "max_iter": 2} | options
    models, devices = [], [by_cublas(seed) for seed in (1, 5)]
    for device in devices:  # what may run beside others does, in another order each time
        models.append(dense(device, **options, precision="bfloat16").fit(rows))
    launched = getattr(devices[0].driver, "launched", None)
    if launched is not None:
        kinds = {name.removesuffix("_chain") for name in launched}
        assert {"dense_bf16", "input_grad_bf16", "weight_grad_bf16"} <= kinds
        assert launches is None or launched["weight_grad_bf16"] == launches * 4
    assert_same(models[0], models[1])
    codes = models[0].transform(rows)
    other = dense(native, **options, precision="bfloat16").fit(rows)
    monkeypatch.setattr(binder, "FEW_ROWS", 0)
    monkeypatch.setattr(tensor, "MOST_TILES", 0)
    device = by_cublas()
    apart = dense(device, **options, precision="bfloat16").fit(rows)
    assert not [name for name in getattr(device.driver, "launched", ()) if "_bf16" in name and name != "round_bf16"]
    for model in (apart, other):
        for (w, c), (v, d) in zip(models[0].weights_, model.weights_, strict=True):
            assert np.abs(w - v).mean() <= 1e-3 * np.abs(v).mean()
            np.testing.assert_allclose(w, v, atol=0.01)
            np.testing.assert_allclose(c, d, atol=0.01)
        wanted = model.transform(rows)
        np.testing.assert_allclose(codes, wanted, atol=0.05 * np.abs(wanted).max())


class Never(set):
    def __contains__(self, name):
        return False


@pytest.mark.parametrize(
    "options, times",
    [
        ({"activation": "relu"}, 4),  # theta, and what products with bias and relu wrote
        ({"activation": "sigmoid"}, 2),
        ({"activation": "sigmoid", "dropout": 0.3, "normalization": "batch"}, None),
        ({"activation": "relu", "tied_weights": True, "noise": fastae.GaussianNoise(0.2)}, None),
    ],
    ids=str,
)
def test_operands_are_rounded_once(monkeypatch, options, times):
    rows = np.random.default_rng(1).standard_normal((150, 300)).astype(np.float32)
    device = CudaBackend(HostDriver(products="cublas"))
    model = dense(device, **options, precision="bfloat16", batch_size=150).partial_fit(rows)
    if times is not None:
        assert device.driver.launched["round_bf16"] == times
    monkeypatch.setattr(binder.Binder, "copy", lambda self, slot: (0, 0, 0))
    monkeypatch.setattr(binder, "set", Never, raising=False)
    again = CudaBackend(HostDriver(products="cublas"))
    other = dense(again, **options, precision="bfloat16", batch_size=150).partial_fit(rows)
    assert again.driver.launched["round_bf16"] > (times or 3)
    for (w, c), (v, d) in zip(model.weights_, other.weights_, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize(
    "options, passes",
    [
        ({"activation": "relu"}, 0),  # products do all of it
        ({"activation": "relu", "code_activation": "gelu"}, 1),
        ({"activation": "relu", "dropout": 0.5}, 2),  # of hidden layers
        ({"activation": "sigmoid"}, 2),
        ({"activation": "relu", "precision": "float64"}, 4),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bias_and_relu_are_the_products_own(native, options, passes):
    device = CudaBackend(HostDriver(products="cublas"))
    model = dense(device, **options, batch_size=150).partial_fit(X)
    assert device.driver.launched.get("dense_finish", 0) == passes
    other = dense(native, **options, batch_size=150).partial_fit(X)
    for (w, c), (v, d) in zip(model.weights_, other.weights_, strict=True):
        np.testing.assert_allclose(w, v, atol=1e-5)
        np.testing.assert_allclose(c, d, atol=1e-5)
