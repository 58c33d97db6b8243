"""Codes by products in bfloat16: against float64 products of rounded operands, and whole models, on every backend."""

import pickle

import numpy as np
import pytest
from conftest import BF16_BACKENDS, BF16_NATIVE, SLOW, assert_close, backend_named
from sklearn.datasets import load_digits
from test_bf16 import rounded
from test_cuda_codes import device, packed_for
from test_encode import (
    BY_ROW,
    DATA,
    assert_rows,
    assert_same_codes,
    codes,
    encoded,
    outliers,
    real_numbers,
    run,
    whole_numbers,
)
from test_sparse_autoencoder import KINDS, X
from test_sparse_gradients import CASES, Problem, network_of

import fastae
from fastae.backends import get_backend
from fastae.plan import schema
from fastae.plan.sparse import sparse_inference_plan, sparse_training_plan

CUBLAS = "cuda_host, cublas"
EVERYDAY = (real_numbers, outliers)
SIZES = [(1, 1, 1, 1), (7, 33, 17, 5), (64, 96, 5, 60), (257, 31, 70, 3), (3, 1030, 65, 40), (33, 500, 200, 32),
         (70, 300, 31, 130)]  # fmt: skip


@pytest.fixture(params=[*BF16_BACKENDS[1:], CUBLAS])
def by_bf16(request):
    """Every backend and instruction set but the reference, and the device's with cuBLASLt's products."""
    return device(1, products="cublas") if request.param == CUBLAS else backend_named(request.param)


@pytest.fixture(params=BF16_NATIVE)
def bf16_native(request):
    return backend_named(request.param)


def odd_numbers(m, n, p):
    """Operands that bfloat16 rounds, up, down and to even, whose products then are exact everywhere, with many ties."""
    rng = np.random.default_rng(m + n + p)
    odd, small = np.array([0, 1, -1, 257, -259, 261, 0, 0], np.float32), np.arange(-2, 3, dtype=np.float32)
    of_x = np.arange(p) % 2 == 0
    return {"x": np.where(of_x, rng.choice(odd, (m, p)), rng.choice(small, (m, p))),
            "w": np.where(of_x, rng.choice(small, (n, p)), rng.choice(odd, (n, p))),
            "b": rng.choice(small, (1, n))}  # fmt: skip


def z_of(arrays):
    return rounded(arrays["x"]) @ rounded(arrays["w"]).T + arrays["b"]


# ---- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encode(by_bf16, sizes, kind):
    m, n, p, k = sizes
    arrays = odd_numbers(m, n, p)
    threshold = arrays["b"] + 9
    want = encoded(z_of(arrays), schema.CODE_KINDS[kind], k, threshold[0] - 1, threshold[0])
    given = arrays | ({"threshold": threshold} if kind == 2 else {}) | codes(m, n if kind == 2 else k)
    for path in range(4):  # all the same here
        got, _ = run(by_bf16, "encode", given, kind=kind, k=k, margin=1.0, bf16=1, path=path)
        assert_rows(got, want)
        got, _ = run(by_bf16, "encode", given | packed_for(n, p), kind=kind, k=k, margin=1.0, bf16=1, path=path,
                     prepare=("pack_encoder", "w", "packed"), prepared={"bf16": 1})  # fmt: skip
        assert_rows(got, want)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_encode_of_a_subset(by_bf16, kind):
    m, n, p, k = 35, 700, 40, 24
    arrays = odd_numbers(m, n, p)
    for count in (0, 1, 23, 150, n):
        named = np.zeros((1, n), np.int32)
        named[0, :count] = np.sort(np.random.default_rng(count).choice(n, count, replace=False))
        given = arrays | {"subset": named, "n_subset": np.array([[count]], np.int32)} | codes(m, n)
        latents = named[0, :count]
        want = encoded(z_of(arrays)[:, latents], schema.CODE_KINDS[kind], k, 0, 0, latents)
        assert_rows(run(by_bf16, "encode", given, kind=kind, k=k, bf16=1)[0], want)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_batch_topk(by_bf16, sizes):
    m, n, p, k = sizes
    arrays = odd_numbers(m, n, p)
    for capacity in {n, k}:
        state = {"threshold": np.full((1, 1), 7, np.float32), "guess": np.zeros((1, 1), np.float32)}
        given = arrays | codes(m, capacity, pre=False) | state
        args = {"k": k, "overflow": 0, "decay": 0.9, "bf16": 1}
        got, value = run(by_bf16, "batch_topk", given, **args)
        want, expected = run(get_backend("reference"), "batch_topk", given, **args)
        np.testing.assert_array_equal(value, expected)
        if not value.any():
            assert_same_codes(got, want)
            np.testing.assert_allclose(got["threshold"], want["threshold"], rtol=1e-6)


def test_rows_that_are_not_finite_have_no_code(by_bf16):
    for kind in range(3):
        arrays = odd_numbers(40, 90, 20) | codes(40, 90)
        arrays["x"][3, 7], arrays["x"][17, 0], arrays["x"][39, 19] = np.nan, np.inf, -np.inf
        got, _ = run(by_bf16, "encode", arrays, kind=kind, k=6, bf16=1)
        bad = got["count"][:, 0] < 0
        assert list(np.flatnonzero(bad)) == [3, 17, 39]
        arrays["x"][bad] = 0
        want, _ = run(get_backend("reference"), "encode", arrays, kind=kind, k=6, bf16=1)
        assert_same_codes({name: a[~bad] for name, a in got.items() if name in BY_ROW},
                          {name: a[~bad] for name, a in want.items() if name in BY_ROW})  # fmt: skip


def test_weights_that_are_not_finite(by_bf16):
    """A z that is NaN is none of the largest; an infinite one is found by whoever reads it."""
    arrays = odd_numbers(20, 90, 20) | codes(20, 6)
    arrays["x"][:, 3] = 1
    arrays["w"][11, 3], arrays["w"][12, 3] = np.nan, np.inf
    got, _ = run(by_bf16, "encode", arrays, k=6, bf16=1)
    assert (got["idx"] != 11).all() and (got["idx"] == 12).sum(axis=1).tolist() == [1] * 20
    assert np.isinf(got["val"][got["idx"] == 12]).all()


@pytest.mark.parametrize("make", EVERYDAY, ids=lambda f: f.__name__)
def test_real_numbers(by_bf16, make):
    """In float32 sums: entries have the numbers that their operands give, and none that is much larger is left out."""
    m, n, p, k = 40, 1201, 203, 16
    arrays = make(m, n, p)
    z = z_of(arrays)
    got, _ = run(by_bf16, "encode", arrays | codes(m, k), kind=1, k=k, bf16=1)
    chosen = np.take_along_axis(z, got["idx"], axis=1)
    assert_close(got["val"], chosen, length=p, scale=np.abs(z).max() / np.abs(chosen).max())
    left = np.abs(z)
    np.put_along_axis(left, got["idx"], 0, axis=1)
    assert (left.max(axis=1) <= np.abs(chosen).min(axis=1) * (1 + 1e-4)).all()


@pytest.mark.parametrize("make", [f if f in EVERYDAY else SLOW(f) for f in DATA], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_bits_depend_on_nothing_but_the_row(bf16_native, kind, make):
    """However many rows come together, and however their candidates are found."""
    m, n, p, k = 70, 1201, 603, 16
    if make.__name__ == "tiny":  # denormal numbers are slow
        m, n = 35, 601
    arrays = make(m, n, p)
    width = 400 if kind == 2 else k
    given = arrays | codes(m, width)
    args = {"kind": kind, "k": k, "bf16": 1}
    want, _ = run(bf16_native, "encode", given, **args)
    for more in ({"threads": 3}, {"batch": 17}, {"batch": 1}, {"batch": 33, "threads": 2}):
        assert_same_codes(run(bf16_native, "encode", given, **args, **more)[0], want)
        for path in (0, 3):
            packed, _ = run(bf16_native, "encode", given | packed_for(n, p), **args, **more, path=path,
                            prepare=("pack_encoder", "w", "packed"), prepared={"bf16": 1})  # fmt: skip
            assert_same_codes(packed, want)
    a, _ = run(bf16_native, "batch_topk", arrays | codes(m, 400, pre=False), k=k, bf16=1)
    b, _ = run(bf16_native, "batch_topk", arrays | codes(m, 400, pre=False), k=k, bf16=1, threads=4)
    assert_same_codes(b, a)


@pytest.mark.parametrize("chunk, chunks", [(256, 12), (1024, 3)])
@pytest.mark.parametrize("products", ["exact", "cublas"])
def test_lists_on_the_device_are_cut(products, chunk, chunks, monkeypatch):
    """Later latents are larger, so that every list fills up again and again; ties go to the first."""
    from fastae.backends.cuda import encode

    m, n, p, k = 11, 3003, 6, 5
    monkeypatch.setattr(encode, "PRODUCTS", m * chunk)
    arrays = whole_numbers(m, n, p)
    arrays["b"] = np.repeat(np.arange(n // 3, dtype=np.float32), 3)[None]
    for kind in (0, 1):
        backend = device(kind, products=products)
        got, _ = run(backend, "encode", arrays | codes(m, k), kind=kind, k=k, bf16=1)
        assert_rows(got, encoded(z_of(arrays), schema.CODE_KINDS[kind], k))
        assert backend.driver.launched["stream_filter"] == chunks
        # x once, the weights chunk by chunk
        assert backend.driver.launched.get("round_bf16", 0) == (chunks + 1 if products == "cublas" else 0)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(by_bf16, case):
    got, want = (Problem(network_of(case), b, np.float32, bf16=1) for b in (by_bf16, get_backend("reference")))
    values, expected = got.run(), want.run()
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    for name, _, _ in want.network.parameters:
        assert_close(got.view(f"d{name}"), want.view(f"d{name}"), length=1000, scale=10.0)


def test_only_the_encoder_is_in_bfloat16():
    network = network_of("transcoder, skip")
    for plan in (sparse_training_plan(network, np.float32, 8, bf16=1),
                 sparse_inference_plan(network, np.float32, 8, part="reconstruct", bf16=1)):  # fmt: skip
        of = {kind: {op.ints["bf16"] for op in plan.ops if op.kind == kind} for kind in ("encode", "dense")}
        assert of == {"encode": {1}, "dense": {0}}
    aux = sparse_training_plan(network_of("aux"), np.float32, 8, bf16=1)
    assert [op.ints["bf16"] for op in aux.ops if op.kind == "encode"] == [1, 1]


DIGITS = (load_digits().data / 16).astype(np.float32)
SETTINGS = {"k": 4, "random_state": 0, "max_iter": 6, "learning_rate": 0.01, "batch_size": 64, "precision": "bfloat16"}


def model(**changes):
    return fastae.SparseAutoencoder(64, **{**SETTINGS, **changes})


def bits(fitted):
    return b"".join(a.tobytes() for a in fitted.arrays_.values())


@pytest.mark.parametrize("kind", KINDS)
def test_fits_as_float32_does(kind):
    """The loss of the last epoch, of three seeds: a code that changes once leads to another fit."""
    losses = {
        precision: [model(sparsity=KINDS[kind], precision=precision, random_state=seed).fit(DIGITS).loss_curve_[-1]
                    for seed in range(3)] for precision in ("float32", "bfloat16")
    }  # fmt: skip
    assert losses["float32"] != losses["bfloat16"]
    assert np.mean(losses["bfloat16"]) == pytest.approx(np.mean(losses["float32"]), rel=0.02)


@pytest.mark.parametrize("name", [name for name in BF16_BACKENDS if name != "reference"])
def test_a_fit_and_its_codes(name):
    fitted = model(backend=backend_named(name), max_iter=1).fit(X)
    assert {a.dtype for a in fitted.arrays_.values()} == {np.dtype(np.float32)}
    val, idx = fitted.encode(X)
    centred = (X - fitted.arrays_["decoder_bias"]).astype(np.float32)
    z = rounded(centred) @ rounded(fitted.arrays_["encoder"]).T + fitted.arrays_["encoder_bias"]
    np.testing.assert_allclose(val, np.maximum(np.take_along_axis(z, idx, axis=1), 0), rtol=2e-3, atol=2e-3)
    # float64 input is computed in float32, with the same products
    np.testing.assert_array_equal(fitted.encode(X.astype(np.float64))[0], val)
    again = model(backend=backend_named(name), max_iter=1).fit(X)
    assert bits(again) == bits(fitted)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "relu"])
def test_threads_of_a_fit(bf16_native, kind):
    one, many = (model(sparsity=KINDS[kind], backend=bf16_native, n_jobs=n, max_iter=2).fit(X) for n in (1, 3))
    assert bits(one) == bits(many)
    whole = one.transform(X)
    for start, stop in ((0, 1), (5, 6), (3, 40), (590, 600)):
        assert (one.transform(X[start:stop]) != whole[start:stop]).nnz == 0


def test_copies_and_files(tmp_path):
    first = model(max_iter=1).fit(X)
    val, _ = first.encode(X)
    first.save(tmp_path / "m.safetensors")
    loaded = fastae.load(tmp_path / "m.safetensors")
    assert loaded.precision == "bfloat16"
    for other in (loaded, pickle.loads(pickle.dumps(first))):
        np.testing.assert_array_equal(other.encode(X)[0], val)
        np.testing.assert_array_equal(other.encode(X[:3])[0], val[:3])  # the short way of a few rows
    assert bits(loaded.partial_fit(X)) == bits(first.partial_fit(X))


def test_precision_may_change():
    fitted = model(max_iter=1).fit(X)
    val, _ = fitted.encode(X)
    fitted.set_params(precision="float32")
    exact, _ = fitted.encode(X)
    assert 0 < np.abs(np.sort(val) - np.sort(exact)).max() < 0.05 * np.abs(exact).max()
    before = bits(fitted)
    fitted.partial_fit(X)
    assert {op.ints["bf16"] for op in fitted.plan_.ops if op.kind == "encode"} == {0}
    fitted.set_params(precision="bfloat16").partial_fit(X)
    assert {op.ints["bf16"] for op in fitted.plan_.ops if op.kind == "encode"} == {1}
    assert bits(fitted) != before


def test_dead_latents_begin_anew():
    fitted = model(resample=fastae.Resample(every=10), dead_after=100).fit(X)
    assert np.isfinite(fitted.loss_curve_).all()


def test_codes_in_files_know_their_precision(tmp_path):
    fitted = model(max_iter=1).fit(X)
    one = fitted.encode_to(tmp_path / "a", X)
    other = fitted.set_params(precision="float32").encode_to(tmp_path / "b", X)
    assert one["model"] != other["model"]


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"precision='tf32'.*bfloat16"):
        model(precision="tf32", backend=device(0)).fit(X)
    with pytest.raises(ValueError, match=r"precision='tf32'.*bfloat16"):
        model(backend=device(0), max_iter=1).fit(X).set_params(precision="tf32").encode(X)
    double = model(precision="float64", max_iter=1).fit(X)
    with pytest.raises(ValueError, match=r"precision='bfloat16'.*float64.*call fit"):
        double.set_params(precision="bfloat16").partial_fit(X)
    plan = sparse_training_plan(network_of("topk"), np.float64, 8, bf16=1)
    for backend in (backend_named("baseline"), device(0)):
        with pytest.raises(ValueError, match="float64 plan cannot have products in bfloat16"):
            backend.compile(plan)
