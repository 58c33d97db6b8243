"""Every public op on every backend and instruction set against the float64 reference."""

import numpy as np
import pytest
from conftest import WITHOUT_GPU, assert_close

import fastae
from fastae import ops
from fastae.backends import available, get_backend
from fastae.catalog import ACTIVATIONS, LOSSES, PENALTIES, UPDATE_RULES
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, Source

DTYPES = [np.float32, np.float64]
ROWS = [row.name for row in ACTIVATIONS]
SHAPES = [(1, 1, 1), (7, 33, 17), (64, 96, 5), (257, 31, 70), (600, 3, 13), (13, 800, 129)]
SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 1e-7, -3e-4, 0.5, -0.5, 3.0, -3.0, 20.0, -20.0, 88.0, -88.0]


def case(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def same_numbers(a, b):
    """Equal, and zeros of the same sign."""
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a)[a == 0], np.signbit(b)[b == 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_dense(tested_backend, m, k, n, dtype):
    x, w, b = case(0, (m, k), (n, k), n, dtype=dtype)
    z = np.empty((m, n), dtype)
    y = ops.dense(x, w, b, "tanh", preact_out=z, backend=tested_backend)
    exact = ops.dense(x.astype(float), w, b, backend="reference")
    assert y.dtype == dtype
    assert_close(z, exact, length=k, scale=np.sqrt(k) + 1)
    assert_close(y, np.tanh(exact), length=k, scale=np.sqrt(k) + 1)
    packed = ops.dense(x, ops.pack(w, backend=tested_backend), b, "tanh")
    np.testing.assert_array_equal(packed, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n", [(1, 3, 1), (9, 5, 16), (14, 40, 30), (23, 7, 63), (40, 4, 130)])
def test_dense_with_relu(tested_backend, m, k, n, dtype):
    """Bias and ReLU within a product do what they do after it, signed zeros, NaN and infinities included."""
    x, w, b = case(31, (m, k), (n, k), n, dtype=dtype)
    w *= 0.05
    x[0], w[:, -1] = np.finfo(dtype).smallest_subnormal, -0.3  # products of the first row are -0
    x[-1, 0] = np.inf
    x[m // 2, 1] = np.nan
    b[::3], b[1::3] = -0.0, 0.0
    z = ops.dense(x, w, backend=tested_backend)
    if m > 1 and getattr(tested_backend, "isa", "baseline") != "baseline":  # which rounds products of their own
        assert np.signbit(z[0]).all() and not z[0].any()
    same_numbers(ops.dense(x, w, b, backend=tested_backend), z + b)
    y = ops.dense(x, w, b, "relu", backend=tested_backend)
    same_numbers(y, ops.activation("relu", z + b, backend=tested_backend))
    same_numbers(y, ops.dense(x, ops.pack(w, backend=tested_backend), b, "relu"))
    same_numbers(
        ops.dense(x, w, None, "relu", backend=tested_backend), ops.activation("relu", z, backend=tested_backend)
    )


@pytest.mark.parametrize("offset, width", [(0, 4003), (1, 4003), (4, 4003), (4, 4096), (15, 4082)])
def test_results_larger_than_caches(native_backend, offset, width):
    """What is written past the caches is what is written into them."""
    x = np.random.default_rng(3).normal(size=(1100, width)).astype(np.float32)
    out = np.empty(x.size + offset, np.float32)[offset:].reshape(x.shape)
    assert out.nbytes > 1 << 24
    for name in ("sigmoid", "relu"):
        ops.activation(name, x, out=out, backend=native_backend, n_threads=2)
        np.testing.assert_array_equal(out[:40], ops.activation(name, x[:40], backend=native_backend))
        np.testing.assert_array_equal(out[-1:], ops.activation(name, x[-1:], backend=native_backend))
    ops.dropout(x, 0.4, (1, 2, 3), out=out, backend=native_backend, n_threads=2)
    for rows in (np.arange(40), np.array([1099])):
        np.testing.assert_array_equal(
            out[rows], ops.dropout(x[rows], 0.4, (1, 2, 3), rows=rows, backend=native_backend)
        )


def test_large_results_off_alignment(native_backend):
    """An array whose numbers lie at odd addresses takes what is too large for caches as well."""
    x = np.random.default_rng(3).normal(size=(1100, 4003)).astype(np.float32)
    out = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not out.flags.aligned
    ops.activation("relu", x, out=out, backend=native_backend)
    np.testing.assert_array_equal(out, np.maximum(x, 0))
    ops.dropout(x, 0.4, (1, 2, 3), out=out, backend=native_backend)
    np.testing.assert_array_equal(out, ops.dropout(x, 0.4, (1, 2, 3), backend=native_backend))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k, n", SHAPES)
def test_dense_grad(tested_backend, m, k, n, dtype):
    dy, saved, x, w = case(1, (m, n), (m, n), (m, k), (n, k), dtype=dtype)
    got = ops.dense_grad(dy, saved, x, w, "sigmoid", backend=tested_backend)
    want = ops.dense_grad(dy.astype(float), saved, x, w, "sigmoid", backend="reference")
    for actual, expected, length in zip(got, want, (n, m, m), strict=True):
        assert_close(actual, expected, length=length * 4)
    assert ops.dense_grad(dy, saved, x, w, need_dx=False, backend=tested_backend)[0] is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_activations(tested_backend, name, dtype):
    x = np.concatenate([np.linspace(-12, 12, 1001), SPECIAL]).astype(dtype)
    if name == "exponential":
        x = np.minimum(x, 80)
    x, dy = x.reshape(-1, 5), np.ones((203, 5), dtype)
    y = ops.activation(name, x, backend=tested_backend)
    exact = ops.activation(name, x.astype(float), backend="reference")
    # rounding the formula's argument costs up to x² ulp where the tail falls like exp(-x²/2)
    condition = 8 + np.minimum(x.astype(float) ** 2, 200)
    floor = np.finfo(dtype).eps if name == "hard_sigmoid" else 4 * np.finfo(dtype).tiny  # x/6 + 1/2 cancels at -3
    assert (np.abs(y - exact) <= condition * np.finfo(dtype).eps * np.abs(exact) + floor).all()
    row = next(row for row in ACTIVATIONS if row.name == name)
    saved = x if row.needs == "x" else y
    slope = ops.activation_grad(name, saved, dy, backend=tested_backend)
    expected = ops.activation_grad(name, saved.astype(float), dy.astype(float), backend="reference")
    np.testing.assert_allclose(slope, expected, rtol=32 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_activations_let_nan_through(backend, name, dtype):
    x = np.full((3, 37), np.nan, dtype)
    assert np.isnan(ops.activation(name, x, backend=backend)).all()


@pytest.mark.parametrize("name", ROWS)
def test_activation_derivatives_by_finite_differences(name):
    row = next(row for row in ACTIVATIONS if row.name == name)
    x = np.random.default_rng(0).uniform(-4, 4, 200)
    x = x[(np.abs(x) > 1e-3) & (np.abs(np.abs(x) - 3) > 1e-3)]  # away from kinks
    e = 1e-6
    slope = (
        (ops.activation(name, x + e, backend="reference") - ops.activation(name, x - e, backend="reference")) / 2 / e
    )
    saved = x if row.needs == "x" else ops.activation(name, x, backend="reference")
    np.testing.assert_allclose(
        ops.activation_grad(name, saved, np.ones_like(x), backend="reference"), slope, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [row.name for row in LOSSES] + ["multinomial"])
@pytest.mark.parametrize("columns", [29, 2303])
def test_losses(tested_backend, name, columns, dtype):
    rng = np.random.default_rng(3)
    y, t = rng.normal(size=(37, columns)).astype(dtype) * 3, rng.uniform(size=(37, columns)).astype(dtype)
    value, dy = ops.loss(name, y, t, backend=tested_backend)
    expected, slope = ops.loss(name, y.astype(float), t.astype(float), backend="reference")
    assert value == pytest.approx(expected, rel=32 * float(np.finfo(dtype).eps))
    assert_close(dy, slope, length=columns)


@pytest.mark.parametrize("name", [row.name for row in LOSSES] + ["multinomial"])
def test_loss_gradients_by_finite_differences(name):
    rng = np.random.default_rng(4)
    y, t = rng.normal(size=(3, 5)) * 2, rng.uniform(size=(3, 5))
    _, dy = ops.loss(name, y, t, backend="reference")
    for i in np.ndindex(y.shape):
        up, down = y.copy(), y.copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        slope = (ops.loss(name, up, t, backend="reference")[0] - ops.loss(name, down, t, backend="reference")[0]) / 2e-6
        assert dy[i] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [row.name for row in PENALTIES])
def test_penalties(tested_backend, name, dtype):
    (z,) = case(5, (11, 37), dtype=dtype)
    value, dz = ops.penalty(name, z, 0.3, backend=tested_backend)
    expected, slope = ops.penalty(name, z.astype(float), 0.3, backend="reference")
    assert value == pytest.approx(expected, rel=64 * float(np.finfo(dtype).eps))
    assert_close(dz, slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [row.name for row in UPDATE_RULES])
def test_updates(tested_backend, rule, dtype):
    rng = np.random.default_rng(6)
    start = rng.normal(size=(7, 19))
    models = []
    for backend, real in ((tested_backend, dtype), ("reference", np.float64)):
        w = start.astype(dtype).astype(real)
        states = [np.zeros_like(w) for _ in ops.state_names(rule)]
        for step in range(1, 6):
            g = np.random.default_rng(step).normal(size=w.shape).astype(dtype)
            ops.update(rule, w, g, states, 0.01, step, backend=backend)
        models.append(w)
    assert_close(models[0], models[1], length=64, scale=4)


def test_adam_is_the_textbook_formula():
    w, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    ops.update("adam", w, np.array([0.5]), [m, v], 0.1, 1, backend="reference")
    assert w[0] == pytest.approx(1 - 0.1 * 0.5 / (0.5 + 1e-8), abs=1e-12)


@pytest.mark.parametrize("option", [fastae.SGD(clip_value=0.5), fastae.Adam(clip_norm=0.5)], ids=str)
def test_updates_clip_as_the_option_says(tested_backend, option):
    w, g = case(9, 12, 12)
    clipped = np.clip(g, -0.5, 0.5) if option.clip_value else g * (0.5 / np.linalg.norm(g))
    given, want = g.copy(), w.copy()
    for array, gradient, rule in ((w, given, option), (want, clipped, option.name)):
        states = [np.zeros_like(w) for _ in ops.state_names(option.name)]
        for step in (1, 2):
            ops.update(rule, array, gradient, states, 0.1, step, backend=tested_backend)
    np.testing.assert_allclose(w, want, rtol=1e-12)
    np.testing.assert_array_equal(given, g)


def test_softmax(tested_backend):
    (z,) = case(7, (9, 35), dtype=np.float32)
    z[0, 0] = 300
    y = ops.softmax(z, backend=tested_backend)
    assert_close(y, ops.softmax(z.astype(float), backend="reference"), length=35)


def test_dropout_masks_are_the_same_everywhere(tested_backend):
    x = np.ones((50, 67), np.float32)
    rows = np.arange(50)[::-1] + 2**33
    for key in ((1, 2, 3), (2**63 + 5, 2**31, 254)):
        y = ops.dropout(x, 0.3, key, rows=rows, backend=tested_backend)
        np.testing.assert_array_equal(y, ops.dropout(x, 0.3, key, rows=rows, backend="reference"))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.03


@pytest.mark.parametrize("noise", ["gaussian", "masking", "salt_and_pepper", "swap"])
def test_noise_is_the_same_everywhere(tested_backend, noise):
    (x,) = case(8, (40, 71))
    y = ops.noise(noise, x, (5, 6, 7), backend=tested_backend)
    np.testing.assert_allclose(y, ops.noise(noise, x, (5, 6, 7), backend="reference"), atol=1e-14)
    assert (y != x).any()


def test_gaussian_noise_is_gaussian():
    y = ops.noise(fastae.GaussianNoise(2.0), np.zeros((400, 100)), (1, 1, 1))
    assert abs(y.mean()) < 0.05
    assert abs(y.std() - 2) < 0.05
    assert abs((y**4).mean() / 16 - 3) < 0.2


def test_philox_known_answers():
    from fastae.backends.reference.random import philox

    high = 0xFFFFFFFF
    for counter, key, words in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((high,) * 4, (high, high), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        assert tuple(int(w) for w in philox(counter, key)) == words


@pytest.mark.parametrize("n", [0, 1, 2, 3, 511, 512, 513, 5000])
def test_permutations_are_the_same_everywhere(backend, n):
    order = ops.permutation(n, seed=2**40 + 3, epoch=5, backend=backend)
    np.testing.assert_array_equal(order, ops.permutation(n, seed=2**40 + 3, epoch=5, backend="reference"))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_no_bit(native_backend, threads):
    x, w, b = case(9, (530, 300), (170, 300), 170, dtype=np.float32)
    one = ops.dense(x, w, b, "gelu", 0.2, (1, 2, 3), backend=native_backend, n_threads=1)
    many = ops.dense(x, w, b, "gelu", 0.2, (1, 2, 3), backend=native_backend, n_threads=threads)
    np.testing.assert_array_equal(one, many)
    for a, c in zip(
        ops.dense_grad(one, one, x, w, "tanh", backend=native_backend, n_threads=1),
        ops.dense_grad(one, one, x, w, "tanh", backend=native_backend, n_threads=threads),
        strict=True,
    ):
        np.testing.assert_array_equal(a, c)


def test_a_row_is_the_same_alone_and_in_any_batch(native_backend):
    x, w, b = case(10, (67, 129), (75, 129), 75, dtype=np.float32)
    together = ops.dense(x, w, b, "silu", backend=native_backend)
    for row in (0, 5, 66):
        np.testing.assert_array_equal(
            ops.dense(x[row : row + 1], w, b, "silu", backend=native_backend)[0], together[row]
        )


def run_record(backend, dtype, arrays, kind, /, *, sources=(), order=None, **attributes):
    """Runs one record over external arrays, by batches of 4 rows if ``order`` is given; returns its value."""
    builder = PlanBuilder(dtype, 4)
    m = 1 if order is None else len(order)
    for name, array in arrays.items():
        builder.external(name, array.shape[0] if order is None else schema.BATCH_ROWS, array.shape[1])
    value = {"value": builder.value()} if "value" in schema.KIND[kind].ints else {}
    builder.scalars(1)
    builder.op(kind, **{name: name for name in arrays}, **attributes, **value)
    plan, steps = builder.build(), -(-m // 4)
    values = np.zeros((steps, max(plan.n_values, 1)))
    job = Job([*plan.allocate(), *arrays.values()], sources, m, order, n_steps=steps, phases=schema.GRADIENT,
              scalars=np.full((steps, 1), 0.1), values=values)  # fmt: skip
    assert backend.run(backend.compile(plan), job) == steps
    return values.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind, attributes",
    [("clip_gradient", {"mode": mode, "limit": 0.7}) for mode in range(len(schema.CLIP_MODES))]
    + [("weight_penalty", {"penalty": i, "p0": 0.3, "p1": 0.4}) for i in range(len(PENALTIES))]
    + [("project", {"kind": 0, "penalty": i, "p0": 0.5, "p1": 0.4}) for i in range(len(PENALTIES))]
    + [("project", {"kind": kind, "p0": 0.4, "p1": 0.9}) for kind in range(1, len(schema.PROJECT_KINDS))],
)
def test_records_on_weights(tested_backend, kind, attributes, dtype):
    names = schema.KIND[kind].slots
    got = dict(zip(names, case(11, *[(37, 19)] * len(names), dtype=dtype), strict=True))
    want = {name: array.astype(float) for name, array in got.items()}
    value = run_record(tested_backend, dtype, got, kind, **attributes)
    expected = run_record(get_backend("reference"), np.float64, want, kind, **attributes)
    assert value == pytest.approx(expected, rel=64 * float(np.finfo(dtype).eps))
    for name in names:
        assert_close(got[name], want[name])


@pytest.mark.parametrize("stored", ["f4", "f8", "f2", "bfloat16", "u1", "i1", "i4", "u8", "?", "csr f8", "csr u1"])
def test_rows_of_any_dtype_into_an_array_with_gaps(backend, stored):
    if stored == "bfloat16":
        stored = pytest.importorskip("ml_dtypes").bfloat16
    x = np.random.default_rng(12).integers(0, 2, (11, 10)) * 3
    data = x.astype(stored.split()[-1] if isinstance(stored, str) else stored)
    source = Source(data[:, :7], columns=7)
    if isinstance(stored, str) and "csr" in stored:
        row, column = np.nonzero(x[:, :7])
        ends = np.searchsorted(row, np.arange(12))
        source = Source(data[row, column], ends, column.astype(np.int32), 7)
    order, room = np.arange(11)[::-1].copy(), np.full((11, 9), -1, np.float32)
    run_record(backend, np.float32, {"x": room[:, 1:8]}, "gather", sources=(source,), order=order)
    np.testing.assert_array_equal(room[:, 1:8], data[::-1, :7].astype(np.float32))
    assert (room[:, [0, 8]] == -1).all()


def test_elementwise_ops_reach_an_array_with_gaps(backend):
    room, (x,) = np.zeros((5, 9), np.float32), case(13, (5, 7), dtype=np.float32)
    room[:, 1:8] = x
    y = room[:, 1:8]
    run_record(backend, np.float32, {"x": x, "y": y}, "activation", order=np.arange(5),
               activation=ROWS.index("relu"))  # fmt: skip
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert not room[:, [0, 8]].any()


def test_available_names_the_reason(monkeypatch):
    from fastae import backends

    monkeypatch.setenv("FASTAE_ISA", "none")
    monkeypatch.setattr(backends, "_load", backends._load.__wrapped__)
    reasons = available()
    assert reasons["reference"] is None
    assert reasons["native"] and "cuda" in reasons


X = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.dense(X, np.zeros((2, 5))), "w has shape"),
        (lambda: ops.dense(X[0], np.zeros((2, 3))), "x has 1 dimensions"),
        (lambda: ops.dense(X, np.zeros((2, 3)), np.zeros(3)), "b has 3 elements; wanted 2"),
        (lambda: ops.dense(X.astype(complex), np.zeros((2, 3))), "complex128; wanted real"),
        (lambda: ops.dense(X, np.zeros((2, 3)), activation="reul"), "did you mean 'relu'"),
        (lambda: ops.dense(X, np.zeros((2, 3)), dropout=0.5), "needs key"),
        (lambda: ops.dense(X, np.zeros((2, 3)), dropout=1.0, key=(0, 0, 0)), "dropout=1.0 must be in"),
        (lambda: ops.dense(X, np.eye(3), out=X), "shares memory"),
        (lambda: ops.dense(X, np.eye(3), out=np.empty((4, 3))), "dtype float64; wanted"),
        (lambda: ops.dense(X, np.eye(3), out=np.empty((8, 3), "f4")[::2]), "C-contiguous"),
        (lambda: ops.activation("tanh", X[:-1], out=X[1:]), "overlaps an input"),
        (lambda: ops.softmax(X[:-1], out=X[1:]), "overlaps an input"),
        (lambda: ops.dropout(X, 0.5, (0, 0, 300)), "stream"),
        (lambda: ops.dropout(X, 0.5, (0, 0)), r"must be \(seed, epoch, stream\)"),
        (lambda: ops.loss("squared", X, X), "did you mean 'squared_error'"),
        (lambda: ops.update("adam", X, X, [], 0.1, 1), "states"),
        (lambda: ops.update("adam", X, X, [X.copy(), X.copy()], -1, 1), "learning_rate"),
        (lambda: ops.update("adam", X, X.copy(), [np.zeros_like(X)] * 2, 1, 1), "shares memory with state"),
        pytest.param(lambda: ops.dense(X, np.eye(3), backend="cuda"), "device='cuda' is not", marks=WITHOUT_GPU),
        (lambda: ops.dense(X, np.eye(3), backend="navite"), "did you mean 'native'"),
        (lambda: ops.dense(X, np.eye(3), backend=None), "backend=None must be a name"),
        (
            lambda: ops.dense(X, ops.pack(np.eye(3), "numba"), backend="reference"),
            "packed for backend='numba', not for",
        ),
        (lambda: ops.dense(X, np.eye(3), n_threads=0), "n_threads=0 must be positive"),
        (lambda: ops.noise("swap", X, None), "a random mask needs key"),
        (
            lambda: ops.topk(X, ops.pack(np.eye(3)), None, 2),
            r"w \(PackedWeight\) has dtype object; wanted real numbers",
        ),
        (lambda: ops.update("sgd", X.copy(), np.ones((3, 4)), [], 0.1, 1), r"grad has shape \(3, 4\); wanted \(4, 3\)"),
        (lambda: ops.loss("huber", X, X * np.nan, mask=X == 0), "target has NaN where mask is True"),
        (lambda: ops.dense(np.ma.masked_array(X, X == 0), np.eye(3)), "x is a masked array"),
        (lambda: ops.latent_grad(X, np.full((4, 3), 7), X, 5), "indices hold 7; wanted 0 .. 4, as n=5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError, ImportError), match=message):
        call()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 5, 0), (0, 0)])
def test_empty_arrays_of_any_shape(shape):
    empty = np.empty(shape)
    assert ops.activation("gelu", empty).shape == ops.activation_grad("gelu", empty, empty).shape == shape


def test_empty_arrays():
    assert ops.dense(np.zeros((0, 3)), np.eye(3)).shape == (0, 3)
    assert ops.dense(np.zeros((2, 0)), np.zeros((3, 0)), np.ones(3)).tolist() == [[1, 1, 1]] * 2
    none = np.zeros((2, 0))
    dx, dw, db = ops.dense_grad(none, none, np.ones((2, 3)), np.zeros((0, 3)))
    assert dx.tolist() == [[0, 0, 0]] * 2 and dw.shape == (0, 3) and db.shape == (0,)


def test_a_single_row_or_column_may_have_any_stride(backend):
    """NumPy calls such an array contiguous, whatever its other stride is."""
    x, w = case(8, (5, 3), (4, 3))
    out = np.empty((5, 4))[::-1][:1]
    np.testing.assert_array_equal(
        ops.dense(x[::-1][:1], w[::-1], out=out, backend=backend), ops.dense(x[4:], w[::-1].copy(), backend=backend)
    )
    np.testing.assert_array_equal(
        ops.dense(x[:, ::-1][:, :1].copy()[::-1], w[::-1][:1, :1], backend=backend),
        ops.dense(x[::-1, 2:].copy(), w[3:, :1].copy(), backend=backend),
    )


def test_one_array_says_what_is_computed_in():
    """The one that the module's text names, whatever the others are."""
    x, w, dy, index = (np.ones(shape) for shape in ((3, 4), (5, 4), (3, 5), (3, 2)))
    index = index.astype(int)
    calls = {
        "dense": (lambda a, other: ops.dense(a, other(w)), x),
        "packed": (lambda a, other: ops.dense(other(x), ops.pack(a)), w),
        "dense_grad": (lambda a, other: ops.dense_grad(other(dy), other(dy), a, other(w))[1], x),
        "activation_grad": (lambda a, other: ops.activation_grad("tanh", other(dy), a), dy),
        "loss": (lambda a, other: ops.loss("squared_error", a, other(x))[1], x),
        "topk": (lambda a, other: ops.topk(a, other(w), None, 2)[0], x),
        "decode": (lambda a, other: ops.decode(a, index, other(w)), index * 1.0),
        "code_grad": (lambda a, other: ops.code_grad(a, index, other(w)), x),
        "latent_grad": (lambda a, other: ops.latent_grad(a, index, other(x), 5), index * 1.0),
    }
    for name, (call, a) in calls.items():
        for dtype, other in ((np.float32, np.float64), (np.float64, np.float32), (">f8", np.float32)):
            assert call(a.astype(dtype), lambda b, to=other: b.astype(to)).dtype.name == np.dtype(dtype).name, name


def test_zeros_in_codes_with_what_is_not_finite(backend):
    """As docstrings say: NaN or left out where the value is 0, NaN wherever it is not."""
    w, u = np.ones((5, 3)), np.ones((2, 3))
    w[2] = u[0] = np.nan
    index, val = np.array([[0, 2], [1, 4]]), np.array([[2.0, 0.0], [2.0, 1.0]])
    y = ops.decode(val, index, w, backend=backend)
    assert np.isnan(y[0]).all() or (y[0] == 2).all()
    assert (y[1] == 3).all() and np.isnan(ops.decode(val + 1, index, w, backend=backend)[0]).all()
    dw = ops.latent_grad(val, index, u, 5, backend=backend)
    assert np.isnan(dw[2]).all() or (dw[2] == 0).all()
    assert np.isnan(dw[0]).all() and (dw[4] == 1).all()


def test_the_namespace_is_the_ops_alone():
    assert dir(ops) == sorted(ops.__all__)
    assert all(getattr(ops, name).__module__.startswith("fastae.ops") for name in ops.__all__)
    public = {name for name, value in vars(ops).items() if getattr(value, "__module__", "") == ops.__name__}
    assert {name for name in public if not name.startswith("_")} <= set(ops.__all__)
