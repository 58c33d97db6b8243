"""model.encoder: the bits of transform, without its checks but with its errors."""

import copy
import pickle
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import backend_named

import fastae

ROWS = np.random.default_rng(0).uniform(size=(1000, 37)).astype(np.float32)


def fitted(backend="auto", X=ROWS, **parameters):
    settings = {"hidden_layer_sizes": (65, 17), "max_iter": 1, "batch_size": 300, "random_state": 5, "n_jobs": 1}
    return fastae.Autoencoder(6, backend=backend, **settings | parameters).fit(X)


@pytest.fixture(scope="module")
def model():
    return fitted()


@pytest.fixture(scope="module")
def encoder(model):
    return model.encoder()


def test_the_bits_of_transform(backend):
    model = fitted(backend)
    encoder = model.encoder()
    together = model.transform(ROWS)
    for m in (1, 2, 3, 5, 7, 13, 31, 33, 63, 65, 191, 192, 193, 1000):
        codes = encoder(ROWS[:m])
        assert codes.dtype == np.float32
        if backend.name == "native":
            np.testing.assert_array_equal(codes, together[:m])
        else:
            np.testing.assert_allclose(codes, together[:m], rtol=1e-5, atol=1e-6)
        out = np.empty((m, 6), np.float32)
        assert encoder(ROWS[:m], out) is out
        np.testing.assert_array_equal(out, codes)
    np.testing.assert_array_equal(model.encoder(n_threads=3)(ROWS), encoder(ROWS))


@pytest.mark.parametrize("dtype", "float64 float16 uint8 int8 uint16 int16 uint32 int32 uint64 int64 bool".split())
def test_stored_types(backend, dtype):
    X = (ROWS * 3).astype(dtype)
    model = fitted(backend, precision="float32")
    np.testing.assert_array_equal(model.encoder()(X), model.transform(X))
    wide = model.set_params(precision="float64")
    np.testing.assert_array_equal(wide.encoder()(X), wide.transform(X))
    assert wide.encoder()(X).dtype == np.float64


def test_bfloat16(backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    X = ROWS.astype(ml_dtypes.bfloat16)
    model = fitted(backend)
    np.testing.assert_array_equal(model.encoder()(X), model.transform(X))


def test_float64_rows_are_computed_as_the_encoder_says(model):
    wide = ROWS.astype(np.float64)
    np.testing.assert_array_equal(model.encoder()(wide), model.transform(ROWS))
    np.testing.assert_array_equal(model.encoder("float64")(wide), model.transform(wide))
    assert fitted(X=wide).encoder().dtype == np.float64


@pytest.mark.parametrize(
    "parameters",
    [
        {"normalization": "batch"},
        {"normalization": "layer", "activation": "gelu"},
        {"hidden_layer_sizes": (37, 37), "skip_connections": True},
        {"activation": fastae.Maxout(2), "code_activation": "tanh"},
        {"input_transform": "log1p", "tied_weights": True},
        {"missing": np.nan},
        {"missing": 0.5},
    ],
    ids=str,
)
def test_every_structure(parameters):
    X = ROWS.copy()
    if "missing" in parameters:
        X[::5, ::3] = parameters["missing"]
    model = fitted(X=X, **parameters)
    encoder = model.encoder()
    for copied in (encoder, pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_array_equal(copied(X), model.transform(X))


def test_classifiers_and_stacked_autoencoders():
    y = (ROWS[:, 0] > 0.5).astype(int)
    for model in (
        fastae.AutoencoderClassifier(max_iter=1).fit(ROWS, y),
        fastae.StackedAutoencoder(4, max_iter=1).fit(ROWS),
    ):
        np.testing.assert_array_equal(model.encoder()(ROWS), model.transform(ROWS))


def layouts():
    wide = np.zeros((1000, 50), np.float32)
    wide[:, 3:40] = ROWS
    raw = np.zeros(ROWS.nbytes + 1, np.uint8)[1:].view(np.uint8)
    unaligned = np.frombuffer(raw.data, np.float32, ROWS.size).reshape(ROWS.shape)
    unaligned[...] = ROWS
    swapped = ROWS.astype(ROWS.dtype.newbyteorder())
    doubled = np.repeat(np.repeat(ROWS, 2, axis=0), 2, axis=1)
    return {
        "rows apart": wide[:, 3:40], "fortran": np.asfortranarray(ROWS), "every other row": doubled[::2, ::2],
        "backwards": ROWS[::-1][::-1], "unaligned": unaligned, "byte order": swapped, "list": ROWS.tolist(),
        "reversed": np.ascontiguousarray(ROWS[::-1])[::-1], "subclass": ROWS.view(np.recarray),
        "read-only": np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape),
    }  # fmt: skip


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", ["native", "numba"])
def test_layouts(layout, name):
    if name == "native":
        pytest.importorskip("fastae._core")
    X, model = layouts()[layout], fitted(name)
    expected = model.transform(ROWS)
    np.testing.assert_array_equal(model.encoder()(X), expected)
    np.testing.assert_array_equal(model.set_params(precision="float32").transform(X), expected)


def test_frames_and_sparse_matrices(model, encoder):
    from scipy.sparse import csc_array, csr_array

    expected = model.transform(csr_array(ROWS))
    np.testing.assert_array_equal(encoder(csr_array(ROWS)), expected)
    np.testing.assert_array_equal(encoder(csc_array(ROWS)), expected)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, columns=[f"c{i}" for i in range(37)])
    named = fitted(X=frame)
    np.testing.assert_array_equal(named.encoder()(frame), named.transform(frame))
    np.testing.assert_array_equal(named.encoder()(ROWS), named.transform(frame))
    with pytest.raises(ValueError, match="feature names"):
        named.encoder()(frame[frame.columns[::-1]])


def broken(value):
    X = ROWS[:200].copy()
    X[199, 36] = value
    return X


BAD_ROWS = {
    "one dimension": ROWS[0], "three": ROWS[None], "no row": ROWS[:0], "too narrow": ROWS[:, :36],
    "no column": ROWS[:, :0],
    "strings": np.full((3, 37), "a"), "objects": np.full((3, 37), None), "complex": ROWS[:3].astype(complex),
    "nan": broken(np.nan), "infinity": broken(np.inf), "minus infinity": broken(-np.inf),
    "nan in float64": broken(np.nan).astype(np.float64), "infinity in float16": broken(np.inf).astype(np.float16),
    "nan in fortran order": np.asfortranarray(broken(np.nan)), "nothing": None, "number": 3.0,
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_rows_give_the_errors_of_transform(backend, what):
    model = fitted(backend)
    with pytest.raises((ValueError, TypeError)) as expected:
        model.transform(BAD_ROWS[what])
    with pytest.raises(type(expected.value)) as got:
        model.encoder()(BAD_ROWS[what])
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("precision", ["float32", "float64", "int8"])
def test_nan_and_infinity_are_seen_anywhere(native_backend, precision):
    """Also where weights are 0, by rectified units, and not where finite rows overflow."""
    weights = [(np.zeros((40, 37)), None), (np.ones((6, 40)), None)]
    weights[0][0][3:, 5] = -1.0
    model = fastae.Autoencoder.from_arrays(
        weights, [(np.ones((40, 6)), None), (np.ones((37, 40)), None)], activation="relu", code_activation="relu",
        backend=native_backend,
    )  # fmt: skip
    encoder = model.encoder(precision, sample=ROWS)
    for row in (0, 5, 191, 192, 193, 999):
        for column in (0, 5, 16, 36):
            for value in (np.nan, np.inf, -np.inf):
                X = ROWS.copy()
                X[row, column] = value
                with pytest.raises(ValueError, match=r"NaN|infinity"):
                    encoder(X)
                with pytest.raises(ValueError, match=r"NaN|infinity"):
                    encoder(X[row : row + 1])
    if precision == "float32":
        X = np.full((3, 37), 3e38, np.float32)
        large = fastae.Autoencoder.from_arrays([(np.full((2, 37), 10.0), None)], [(np.ones((37, 2)), None)],
                                               activation="identity", backend=native_backend)  # fmt: skip
        assert np.isinf(large.encoder("float32")(X)).all()
        np.testing.assert_array_equal(large.set_params(precision="float32").transform(X), np.inf)


def test_nan_where_it_is_allowed_and_infinity_where_it_is_not():
    model = fitted(X=broken(np.nan), missing=np.nan)
    np.testing.assert_array_equal(model.encoder()(broken(np.nan)), model.transform(broken(np.nan)))
    for X in (broken(np.inf), broken(-np.inf).astype(np.float16), broken(np.inf).astype(np.float64)):
        for call in (model.transform, model.encoder()):
            with pytest.raises(ValueError, match="infinity"):
                call(X)


def test_bad_out(backend):
    X = np.zeros((4, 37), np.float32)
    fixed = np.empty((4, 6), np.float32)
    fixed.setflags(write=False)
    inside = np.zeros((4, 43), np.float32)
    flat = np.zeros(4 * 37, np.float32)
    bad = [
        (X, np.empty((4, 5), np.float32), "shape"), (X, np.empty((3, 6), np.float32), "shape"),
        (X, np.empty(24, np.float32), "shape"), (X, np.empty((4, 6)), "dtype"),
        (X, np.empty((4, 6), ">f4"), "dtype"), (X, np.asfortranarray(np.empty((4, 6), np.float32)), "contiguous"),
        (X, np.empty((4, 12), np.float32)[:, ::2], "contiguous"), (X, fixed, "writeable"),
        (inside[:, :37], inside[:, 37:], "contiguous"), (flat.reshape(4, 37), flat[-24:].reshape(4, 6), "shares"),
    ]  # fmt: skip
    model = fitted(backend)
    for call in (model.transform, model.encoder()):
        for x, out, words in bad:
            with pytest.raises(ValueError, match=words):
                call(x, out)
    with pytest.raises(TypeError, match="NumPy array"):
        model.encoder()(X, [[0.0]])


def test_outputs(backend):
    model = fitted(backend)
    codes = model.encoder()(ROWS)
    half = model.encoder(output="float16")(ROWS)
    np.testing.assert_array_equal(half, codes.astype(np.float16))
    out = np.empty((1000, 6), np.float16)
    encoder = model.encoder(output="float16")
    assert encoder(ROWS, out) is out
    np.testing.assert_array_equal(out, half)

    encoder = model.encoder(output="int8", sample=ROWS)
    q, scale = encoder(ROWS)
    assert q.dtype == np.int8
    assert scale.shape == (1000,)
    np.testing.assert_array_equal(scale, np.abs(codes).max(axis=1) / np.float32(127))
    assert (np.abs(q * scale[:, None] - codes) <= scale[:, None] * 0.501).all()
    assert encoder.error.largest <= scale.max() * 0.501
    pair = np.empty((1000, 6), np.int8), np.empty(1000, np.float32)
    given = encoder(ROWS, pair)
    assert given[0] is pair[0]
    assert given[1] is pair[1]
    np.testing.assert_array_equal(pair[0], q)
    np.testing.assert_array_equal(pair[1], scale)
    for bad in (pair[0], (pair[0],), (pair[1], pair[0])):
        with pytest.raises((TypeError, ValueError), match="out"):
            encoder(ROWS, bad)
    shared = np.zeros(10_000, np.int8)
    with pytest.raises(ValueError, match="shares"):
        encoder(ROWS, (shared[:6000].reshape(1000, 6), shared[4000:8000].view(np.float32)))


def test_bad_options(model):
    with pytest.raises(ValueError, match="precision='half'"):
        model.encoder("half")
    with pytest.raises(ValueError, match="output="):
        model.encoder(output="float8")
    for precision, output in (
        ("float64", "float16"),
        ("float64", "float32"),
        ("float32", "float64"),
        ("float64", "int8"),
    ):
        with pytest.raises(ValueError, match="does not go with"):
            model.encoder(precision, output=output)
    with pytest.raises(ValueError, match="must be positive"):
        model.encoder(n_threads=0)
    with pytest.raises(fastae_not_fitted()):
        fastae.Autoencoder(2).encoder()


def fastae_not_fitted():
    from sklearn.exceptions import NotFittedError

    return NotFittedError


def test_an_encoder_stays_what_it_is():
    model = fitted()
    encoder = model.encoder(output="float16", sample=ROWS)
    before = encoder(ROWS)
    model.weights_[0][0][...] = 0
    model.fit(ROWS[::-1] * 2)
    np.testing.assert_array_equal(encoder(ROWS), before)
    for name in ("n_threads", "error", "something"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(encoder, name, 1)
    again = pickle.loads(pickle.dumps(encoder))
    assert repr(again) == repr(encoder)
    for other in (again, copy.deepcopy(encoder), copy.copy(encoder)):
        np.testing.assert_array_equal(other(ROWS), before)


@pytest.mark.parametrize("name", ["native", "numba"])
def test_many_threads_share_one_encoder(name):
    if name == "native":
        pytest.importorskip("fastae._core")
    model = fitted(name)
    encoder, expected = model.encoder(n_threads=2), model.encoder()(ROWS)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            first, count = rng.integers(900), rng.integers(1, 100)
            codes = encoder(ROWS[first : first + count])
            np.testing.assert_allclose(codes, expected[first : first + count], rtol=1e-5, atol=1e-6)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


def test_the_gil_is_released_while_much_is_encoded():
    pytest.importorskip("fastae._core")
    encoder = fitted(hidden_layer_sizes=(512,), max_iter=1).encoder()
    X = np.tile(ROWS, (30, 1))
    started, finished, counted = threading.Event(), threading.Event(), 0

    def work():
        started.set()
        encoder(X)
        finished.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the other thread gets the GIL only where it is given away
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        while not finished.wait(1e-4):
            counted += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counted > 20


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_does_not_grow_with_the_rows(encoder, order):
    X = np.asarray(np.tile(ROWS, (40, 1)), order=order)
    out = np.empty((len(X), 6), np.float32)
    encoder(X, out)
    tracemalloc.start()
    encoder(X, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20 < X.nbytes


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "avx512_amx"])
def test_products_in_bfloat16(isa):
    backend = backend_named(isa)
    model = fitted(backend, precision="bfloat16")
    encoder = model.encoder(sample=ROWS)
    assert encoder.precision == "bfloat16"
    np.testing.assert_array_equal(encoder(ROWS), model.transform(ROWS))
    np.testing.assert_array_equal(encoder(ROWS[3:4]), model.transform(ROWS)[3:4])
    assert 0 < encoder.error.relative_rms < 0.02
    bad = ROWS.copy()
    bad[5, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        encoder(bad)
