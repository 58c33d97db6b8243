"""8-bit products and codes in fewer bits: the same integers on every backend and instruction set."""

import numpy as np
import pytest
from conftest import BACKENDS, assert_close, backend_named

import fastae
from fastae.catalog import INDEX
from fastae.plan import schema
from fastae.plan.build import inference_plan
from fastae.plan.plan import Job, PlanBuilder, Source, aligned_bytes
from fastae.spec.network import dense_network

M = schema.BATCH_ROWS
SIZES = [(1, 1, 1), (2, 3, 5), (3, 2, 4), (5, 63, 7), (7, 65, 13), (13, 7, 31), (31, 33, 63), (33, 5, 65),
         (64, 200, 128), (6, 129, 770), (300, 17, 3), (1000, 70, 11)]  # fmt: skip


@pytest.fixture(params=[*BACKENDS, "avx512 without VNNI"])
def integers(request):
    """Every backend and instruction set, and AVX-512 by pairs of 16 bits."""
    if request.param == "avx512 without VNNI":
        return type(backend_named("avx512"))("avx512", vnni=False)
    return backend_named(request.param)


def quantized(x):
    """The definition, row by row."""
    q, scale = np.zeros(x.shape, np.int64), np.zeros(len(x), np.float32)
    for r, row in enumerate(x):
        most = np.abs(row).max()
        if most >= 2.0**-100:
            q[r], scale[r] = np.rint(row * (np.float32(127) / most)), most / np.float32(127)
    return q, scale


def product(backend, x, w, b=None, activation="identity", threads=1, y=None):
    (m, k), n = x.shape, len(w)
    builder = PlanBuilder(np.float32, m)
    rows = -(-n // 64) * 64
    for name, rows_, columns in (("x", M, k), ("w", n, k), ("b", 1, n), ("y", M, n)):
        if name != "b" or b is not None:
            builder.external(name, rows_, columns)
    builder.buffer("packed", rows, 1 + -(-k // 2))
    builder.buffer("w_scale", 1, n)
    builder.buffer("q", M, -(-k // 2))
    builder.buffer("x_scale", M, 1)
    builder.op("pack_int8", schema.PREPARE, w="w", packed="packed", scale="w_scale")
    builder.op("quantize", x="x", q="q", scale="x_scale")
    builder.op("dense_int8", q="q", x_scale="x_scale", packed="packed", w_scale="w_scale", y="y", depth=k,
               b=None if b is None else "b", activation=INDEX["activation"][activation])  # fmt: skip
    plan, y = builder.build(), np.full((m, n), 7, np.float32) if y is None else y
    arrays = [x, w, *([] if b is None else [b[None]]), y]
    job = Job([*plan.allocate(), *arrays], (), m, n_threads=threads)
    assert backend.run(backend.compile(plan), job) == 1
    return y


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sums_are_exact(integers, sizes):
    m, n, k = sizes
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    (qx, sx), (qw, sw) = quantized(x), quantized(w)
    scale = sx[:, None] * sw
    expected = (qx @ qw.T).astype(np.float32) * scale
    got = product(integers, x, w)
    if integers.name == "reference":  # in float64
        assert_close(got, expected)
    else:
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(product(integers, x, w, threads=3), expected)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    assert np.abs(got - exact).max() <= scale.max() * 127 * k * 1.01  # half a step of either operand


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_bias_and_activation(integers, activation):
    rng = np.random.default_rng(1)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((9, 50), (70, 50), (70,)))
    reference = product(backend_named("reference"), x, w, b, activation)
    assert_close(product(integers, x, w, b, activation), reference, length=8)


@pytest.mark.parametrize("n, offset", [(1024, 0), (1040, 0), (1024, 4), (1050, 0)])
def test_results_larger_than_caches(n, offset, native_backend):
    """What is written past the caches, where vectors lie on its lines, is what is written into them."""
    m = 4100
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(m, 9)).astype(np.float32), rng.normal(size=(n, 9)).astype(np.float32)
    out = aligned_bytes(4 * (m * n + offset)).view(np.float32)[offset:].reshape(m, n)
    assert out.nbytes > 1 << 24
    product(native_backend, x, w, threads=2, y=out)
    for rows in (slice(0, 800), slice(m - 7, m)):
        np.testing.assert_array_equal(out[rows], product(native_backend, x[rows], w))


def test_longest_sums_do_not_overflow(integers):
    k = schema.INT8_DEPTH
    x, w = np.ones((2, k), np.float32), np.ones((3, k), np.float32)
    w[1], w[2, ::2] = -1, -1
    expected = np.array([k, -k, k % 2], np.float32)
    assert_close(product(integers, x, w), np.stack([expected, expected]), scale=k)


def test_rows_of_nothing_and_of_nan(integers):
    x = np.ones((7, 5), np.float32)
    x[1], x[2], x[3, 1], x[4, 2], x[5, 4] = 0, 1e-35, np.nan, np.inf, -np.inf
    y = product(integers, x, np.eye(5, dtype=np.float32))
    np.testing.assert_array_equal(y[1:3], 0)
    assert np.isnan(y[3:6]).all()
    assert_close(y[[0, 6]], np.ones((2, 5)), scale=1)


def encoded(backend, w, X, output, batch=5):
    """Through a layer of weights w, stored as ``output``."""
    network = dense_network(X.shape[1], n_components=len(w), code_activation="identity").encoding
    plan = inference_plan(network, np.float32, batch, output=output)
    spaces = plan.allocate()
    plan.view(spaces, "w0")[...] = w
    out = np.zeros((len(X), len(w)), plan.buffer_dtype(plan.buffers[plan.index["out"]]))
    scale = np.zeros((len(X), 1), np.float32)
    external = [out] if output == "float16" else [out, scale]
    job = Job([*spaces, *external], (Source(X, columns=X.shape[1]),), len(X), n_steps=-(-len(X) // batch))
    backend.run(backend.compile(plan), job)
    return out, scale[:, 0]


def test_float16_is_rounded_to_nearest_even(integers):
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # every finite one
    between = (halves[:-1] + halves[1:]) / 2  # and every tie
    near = np.concatenate([np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(1e9))])
    special = np.array([65519.996, 65520, 1e30, np.inf, np.nan, 2**-24, 2**-25, 1e-30, 1e-44], np.float32)
    values = np.concatenate([halves, between, near, special])
    values = np.concatenate([values, -values])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    out, _ = encoded(integers, np.ones((1, 1)), values[:, None], "float16", 9973)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(out[~nan, 0].view(np.uint16) & 0x7FFF, expected[~nan].view(np.uint16) & 0x7FFF)
    np.testing.assert_array_equal(out[~nan, 0], expected[~nan])
    assert np.isnan(out[nan]).all()


@pytest.mark.parametrize("n", [1, 2, 5, 16, 31, 33, 65])
def test_codes_as_int8(integers, n):
    X = np.random.default_rng(n).normal(size=(13, n)).astype(np.float32)
    X[2], X[3, 0], X[4, 0] = 0, np.nan, np.inf
    out, scale = encoded(integers, np.eye(n), X[[0, 1, 2, *range(5, 13)]], "int8")
    q, expected = quantized(X[[0, 1, 2, *range(5, 13)]])
    np.testing.assert_array_equal(out, q)
    np.testing.assert_array_equal(scale, expected)
    out, scale = encoded(integers, np.eye(n), X[3:5], "int8")
    assert np.isnan(scale).all()
    assert (out == 0).all()


STRUCTURES = [
    {"hidden_layer_sizes": (33, 17)},
    {"hidden_layer_sizes": (40,), "normalization": "batch"},
    {"hidden_layer_sizes": (40,), "normalization": "layer", "activation": "gelu"},
    {"hidden_layer_sizes": (31, 31), "skip_connections": True, "activation": "sigmoid"},
    {"hidden_layer_sizes": (20,), "activation": fastae.Maxout(3), "code_activation": "tanh"},
    {"hidden_layer_sizes": (20,), "tied_weights": True, "input_transform": "log1p"},
    {"hidden_layer_sizes": (20,), "missing": np.nan},
]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_encoders_of_every_structure(integers, structure):
    X = np.random.default_rng(0).uniform(size=(431, 31)).astype(np.float32)
    if "missing" in structure:
        X[::7, 3] = np.nan
    model = fastae.Autoencoder(5, max_iter=2, random_state=0, backend=integers, **structure).fit(X)
    encoder = model.encoder("int8", sample=X)
    exact = model.transform(X).astype(np.float64)
    codes = encoder(X)
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes[17:18], encoder(X[17:18]))
    difference = codes - exact
    relative = (np.sum(difference**2) / np.sum(exact**2)) ** 0.5
    assert encoder.error.relative_rms == pytest.approx(relative, rel=1e-3)
    assert encoder.error.largest == pytest.approx(np.abs(difference).max(), rel=1e-3)
    assert relative < 0.05
    reference = model.set_params(backend="reference").encoder("int8", sample=X)
    assert np.abs(codes - reference(X)).max() <= 4 * encoder.error.largest


def test_int8_needs_a_sample_and_depth():
    X = np.random.default_rng(0).uniform(size=(50, 6)).astype(np.float32)
    model = fastae.Autoencoder(3, max_iter=1).fit(X)
    with pytest.raises(ValueError, match=r"needs sample.*float32"):
        model.encoder("int8")
    with pytest.raises(ValueError, match="exact up to"):
        wide = dense_network(schema.INT8_DEPTH + 1, n_components=1).encoding
        inference_plan(wide, np.float32, int8=True)
    encoder = model.encoder("int8", sample=X)
    assert f"relative RMS {encoder.error.relative_rms:.2g}" in repr(encoder)
