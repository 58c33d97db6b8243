"""Device kernels of codes beside the compiled backend: the same bits, whatever the order of threads."""

import math

import numpy as np
import pytest
from conftest import SLOW, backend_named
from cuda_host import HostDriver
from test_codes import CODE, SCALARS, SIZES, case, entry_mask, needed, records, run
from test_encode import DATA, assert_same_codes, codes, outliers, real_numbers
from test_encode import run as encode

import fastae
from fastae.backends import get_backend
from fastae.backends.cuda import CudaBackend
from fastae.plan import schema

SOME_DATA = [f if f.__name__ in ("outliers", "tiny", "almost_duplicates") else SLOW(f) for f in DATA]


@pytest.fixture(scope="module")
def native():
    backend = get_backend("auto")
    if backend.name != "native":
        pytest.skip("no compiled kernels to compare with")
    return backend


def device(seed, **more):
    backend_named("cuda_host")  # skips where there is no compiler
    return CudaBackend(HostDriver(seed, **more))


def assert_same(got, want, arrays, what):
    """All that means something: what is only written holds anything elsewhere."""
    mask = entry_mask(arrays) if "count" in arrays and "idx" in arrays else None
    for name, expected in want.items():
        actual = got[name]
        if name == "entry":
            total = want["start"][0, -1]
            actual, expected = actual.reshape(-1)[:total], expected.reshape(-1)[:total]
        elif name == "list":
            actual, expected = (a[0, : want["n_dead"][0, 0]] for a in (actual, expected))
        elif name in CODE and mask is not None:
            actual, expected = actual[mask], expected[mask]
        np.testing.assert_array_equal(actual, expected, err_msg=f"{what}: {name}")


def known(backend, chain):
    return all(kind in backend.kernels for kind, _, _ in chain)


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, True), (np.float64, False)])
@pytest.mark.parametrize("sizes", [SLOW(s) if math.prod(s[:3]) > 50_000 else s for s in SIZES], ids=str)
def test_records(native, sizes, dtype, wide):
    every = case(sizes)
    backend = device(sum(sizes) + wide)
    for _, chain in records(sizes):
        if not known(backend, chain):
            continue
        arrays = needed(every, sizes, chain)
        want, values = run(native, dtype, sizes[0], chain, arrays, scalars=SCALARS, wide=wide)
        got, own = run(backend, dtype, sizes[0], chain, arrays, scalars=SCALARS, wide=wide)
        np.testing.assert_array_equal(own, values, err_msg=str(chain[-1]))
        assert_same(got, want, arrays, chain[-1])


# ---- encode ---------------------------------------------------------------------------------------------------------


def packed_for(n, p):
    return {"packed": np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)}


def encoded_by(backend, arrays, m, n, p, kind, k, path, packed, **more):
    given = arrays | codes(m, n if kind == 2 else k) | (packed_for(n, p) if packed else {})
    prepare = ("pack_encoder", "w", "packed") if packed else None
    return encode(backend, "encode", given, kind=kind, k=k, path=path, prepare=prepare, overflow=0, **more)


@pytest.mark.parametrize("make", SOME_DATA, ids=lambda f: f.__name__)
@pytest.mark.parametrize("products", ["exact", "cublas"])
@pytest.mark.parametrize("shape", [SLOW((9, 1201, 97, 7)), (5, 40, 3, 4), (3, 700, 70, 64)], ids=str)
def test_encode_has_the_same_bits_on_every_path(native, make, shape, products):
    m, n, p, k = shape
    arrays = make(m, n, p)
    arrays["x"][m // 2, 0] = np.nan
    z = np.nan_to_num(arrays["x"].astype(float) @ arrays["w"].T.astype(float) + arrays["b"], posinf=1e30, neginf=-1e30)
    limits = {"threshold": np.quantile(z, 1 - k / n, axis=0, keepdims=True).astype(np.float32)}
    for kind in range(3):
        given = arrays | (limits if kind == 2 else {})
        want, expected = encoded_by(native, given, m, n, p, kind, k, 1, False, margin=0.1)
        assert want["count"][m // 2, 0] == -1
        for path, packed in ((1, False), (2, False), (2, True), (0, True)):
            backend = device(m + n + path, products=products)
            got, value = encoded_by(backend, given, m, n, p, kind, k, path, packed, margin=0.1)
            assert_same_codes(got, want)
            np.testing.assert_array_equal(value, expected)
            certified = "certify_begin" in backend.driver.launched
            assert certified == (path == 2 or (path == 0 and products == "cublas" and p >= 64 and n >= 1024))


@pytest.mark.parametrize("kind", range(3))
def test_encode_of_rows_of_every_size(native, kind):
    """Scales of float16 as far apart as they can be; rows of zeros, and numbers that float16 has no room for."""
    m, n, p, k = 12, 1201, 68, 7
    arrays = real_numbers(m, n, p)
    for name in ("x", "w"):
        a = arrays[name]
        a *= np.exp2(np.resize([0, -140, -90, -60, -30, 30, 60, 75, 90, 120], len(a)).astype(np.float32))[:, None]
        a[3::7, 5] *= np.float32(1e-9)
        a[10] = 0
    want, _ = encoded_by(native, arrays, m, n, p, kind, k, 1, False)
    for packed, products in ((True, "exact"), (False, "cublas")):
        got, _ = encoded_by(device(kind, products=products), arrays, m, n, p, kind, k, 2, packed)
        assert_same_codes(got, want)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 256 latents."""
    from fastae.backends.cuda import encode as module

    monkeypatch.setattr(module, "PRODUCTS", 1)
    monkeypatch.setattr(module, "GATHERED", 1)


@pytest.mark.parametrize("make", SOME_DATA, ids=lambda f: f.__name__)
def test_encode_in_many_chunks(native, small_chunks, make):
    m, n, p, k = 5, 1500, 33, 5
    arrays = make(m, n, p)
    for kind in range(3):
        want, _ = encoded_by(native, arrays, m, n, p, kind, k, 1, False)
        for path, products in ((1, "exact"), (2, "exact"), (2, "cublas")):
            got, _ = encoded_by(device(kind, products=products), arrays, m, n, p, kind, k, path, path == 2)
            assert_same_codes(got, want)


@pytest.mark.parametrize("kind", range(3))
def test_encode_of_a_subset_in_many_chunks(native, small_chunks, kind):
    m, n, p, k = 7, 1300, 20, 9
    for count in (0, 5, 700, n):
        named = np.zeros((1, n), np.int32)
        named[0, :count] = np.sort(np.random.default_rng(count).choice(n, count, replace=False))
        given = outliers(m, n, p) | {"subset": named, "n_subset": np.array([[count]], np.int32)} | codes(m, n)
        want, _ = encode(native, "encode", given, kind=kind, k=k)
        assert_same_codes(encode(device(count), "encode", given, kind=kind, k=k)[0], want)


@pytest.mark.parametrize("make", SOME_DATA, ids=lambda f: f.__name__)
def test_batch_topk_has_the_same_bits(native, small_chunks, make):
    m, n, p, k = 21, 700, 40, 6
    arrays = make(m, n, p)
    arrays["x"][m // 2, 0] = np.inf
    for capacity in (n, 2 * k):
        state = {"threshold": np.full((1, 1), 0.7, np.float32), "guess": np.zeros((1, 1), np.float32)}
        given = arrays | codes(m, capacity, pre=False) | state
        for scalar in (k, k / 3, 0, 2 * n):
            args = {"k": n if scalar == 2 * n else k, "k_scalar": 0, "scalars": scalar, "overflow": 0, "decay": 0.9}
            want, expected = encode(native, "batch_topk", given, **args)
            got, value = encode(device(capacity), "batch_topk", given, **args)
            np.testing.assert_array_equal(value, expected)
            if not value.any():  # else entries are known as far as a list goes
                assert_same_codes(got, want)
                np.testing.assert_array_equal(got["threshold"], want["threshold"])
                np.testing.assert_array_equal(got["guess"], want["guess"])


@pytest.mark.parametrize("make", SOME_DATA, ids=lambda f: f.__name__)
def test_batch_topk_by_bfloat16_has_the_same_bits(native, small_chunks, make):
    m, n, p, k = 9, 1100, 66, 6
    arrays = make(m, n, p)
    arrays["x"][m // 2, 0] = np.inf
    for capacity, scalar in ((n, k), (2 * k, k), (n, k / 3), (n, 0)):
        state = {"threshold": np.full((1, 1), 0.7, np.float32), "guess": np.zeros((1, 1), np.float32)}
        given = arrays | codes(m, capacity, pre=False) | state
        args = {"k": k, "k_scalar": 0, "scalars": scalar, "overflow": 0, "decay": 0.9}
        want, expected = encode(native, "batch_topk", given, **args)
        backend = device(capacity, products="cublas")
        got, value = encode(backend, "batch_topk", given, **args)
        np.testing.assert_array_equal(value, expected)
        assert backend.driver.launched["certify_batch_filter"] == 5 and "batch_filter" not in backend.driver.launched
        if not value.any():  # else entries are known as far as a list goes
            assert_same_codes(got, want)
            np.testing.assert_array_equal(got["threshold"], want["threshold"])
            np.testing.assert_array_equal(got["guess"], want["guess"])


@pytest.mark.parametrize("zeros", [False, True])
def test_batch_topk_of_a_batch_with_fewer_positive_numbers_than_wanted(native, zeros):
    """Exact zeros, whose upper bound is positive, are no entries."""
    arrays = real_numbers(5, 1030, 64)
    few = np.arange(1030) % 97 == 0
    arrays["b"][0] = np.where(few, 100, -100)
    if zeros:
        arrays["w"][500:600] = arrays["b"][0, 500:600] = 0
    state = {"threshold": np.full((1, 1), -1, np.float32), "guess": np.zeros((1, 1), np.float32)}
    given = arrays | codes(5, 64, pre=False) | state
    want, _ = encode(native, "batch_topk", given, k=60, overflow=0)
    got, _ = encode(device(3, products="cublas"), "batch_topk", given, k=60, overflow=0)
    assert_same_codes(got, want)
    np.testing.assert_array_equal(got["threshold"], want["threshold"])


def test_rows_with_more_entries_than_a_list_holds(native, small_chunks):
    """A batch whose entries are nearly all in one row: its number may be too small, but says that it does not fit."""
    m, n, p, k = 6, 1500, 64, 30
    arrays = real_numbers(m, n, p)
    arrays["b"][...] = 0
    arrays["x"][4] *= 1e4
    given = arrays | codes(m, k, pre=False)
    for wanted, products in ((k, "exact"), (1, "exact"), (k, "cublas"), (1, "cublas")):
        want, expected = encode(native, "batch_topk", given, k=wanted, overflow=0)
        backend = device(1, products=products)
        got, value = encode(backend, "batch_topk", given, k=wanted, overflow=0)
        assert ("certify_batch_filter" in backend.driver.launched) == (products == "cublas")
        np.testing.assert_array_equal(value, expected)
        if wanted == 1:
            assert_same_codes(got, want)
        else:
            assert got["count"][4, 0] > k


@pytest.mark.parametrize("magnitude", [0, 1])
def test_narrow(native, magnitude):
    rng = np.random.default_rng(3)
    for m, width, k in ((5, 300, 7), (3, 2100, 100), (9, 4, 4)):
        val = rng.integers(-9, 9, (m, width)).astype(np.float32)
        val[1, ::3], val[2, ::5], val[0, ::2] = np.nan, -np.inf, np.inf
        idx = np.sort(rng.permutation(4 * width)[:width]).astype(np.int32)[None].repeat(m, 0)
        count = rng.integers(width // 2, width + 1, (m, 1)).astype(np.int32)
        count[-1] = -1
        given = {"val": val, "idx": idx, "count": count}
        given |= {f"{name}_out": a for name, a in codes(m, k, pre=False).items()}
        want, _ = encode(native, "narrow", given, k=k, magnitude=magnitude)
        got, _ = encode(device(k), "narrow", given, k=k, magnitude=magnitude)
        out = ("val", "idx", "count")
        assert_same_codes(*({name: a[f"{name}_out"] for name in out} for a in (got, want)))


def test_by_latent_of_indices_in_any_order(native):
    rng = np.random.default_rng(0)
    idx, coef, u = rng.integers(0, 50, (70, 40)), rng.normal(size=(70, 40)), rng.normal(size=(70, 30))
    want = fastae.ops.latent_grad(coef, idx, u, 60, backend=native)
    np.testing.assert_array_equal(fastae.ops.latent_grad(coef, idx, u, 60, backend=device(5)), want)


def test_threads_in_any_order_give_the_same_bits():
    m, n, p, k = 8, 600, 40, 6
    arrays = real_numbers(m, n, p) | codes(m, k)
    one, _ = encode(device(1), "encode", arrays, k=k, path=2)
    for seed in range(2, 8):
        again, _ = encode(device(1000 * seed), "encode", arrays, k=k, path=2)
        assert_same_codes(again, one)
