"""Products in bfloat16: against float64 products of rounded operands, and whole models, on every backend."""

import itertools
import pickle

import numpy as np
import pytest
from conftest import BACKENDS, BF16_BACKENDS, BF16_NATIVE, SLOW, assert_close, backend_named
from sklearn.base import clone
from test_gradients import NETWORKS, gradient

import fastae
from fastae.catalog import INDEX
from fastae.plan import schema
from fastae.plan.dense import PACK_ROUND, packed_depth
from fastae.plan.plan import Job, PlanBuilder

M = schema.BATCH_ROWS
SIZES = (1, 2, 3, 5, 7, 13, 31, 33, 63, 65)
# every size in every place, and a few beyond a block of rows, a segment, a pass over the depth
SHAPES = [
    *zip(SIZES, SIZES[3:] + SIZES[:3], SIZES[7:] + SIZES[:7], strict=True),
    *itertools.product((1, 7, 33), (2, 31, 65), (1, 13, 63)),
    (391, 70, 67), (1030, 3, 34), (5, 13, 1061), (600, 130, 31),
]  # fmt: skip


@pytest.fixture(params=BF16_BACKENDS)
def bf16_backend(request):
    return backend_named(request.param)


@pytest.fixture(params=BF16_NATIVE)
def bf16_native(request):
    return backend_named(request.param)


def rounded(a):
    """To bfloat16, in float64; another implementation than the library's."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float64)


def run(backend, records, arrays, m, threads=1):
    builder = PlanBuilder(np.float32, m, bf16=True)
    for name, array in arrays.items():
        builder.external(name, M if name in ("x", "y", "dz", "dx") else len(array), array.shape[1])
    for kind, phase, attributes in records:
        builder.op(kind, phase, **attributes)
    plan = builder.build()
    job = Job([*plan.allocate(), *arrays.values()], (), m, n_threads=threads)
    assert backend.run(backend.compile(plan), job) == 1
    return arrays


def operands(m, n, k, transposed=False):
    rng = np.random.default_rng(m + n + k)
    w = rng.normal(size=(k, n) if transposed else (n, k))
    return {"x": rng.normal(size=(m, k)), "dz": rng.normal(size=(m, n)), "w": w, "b": rng.normal(size=(1, n)),
            "y": np.full((m, n), np.nan), "dx": np.full((m, k), np.nan), "dw": rng.normal(size=w.shape),
            "db": rng.normal(size=(1, n))}  # fmt: skip


def products(backend, m, n, k, *, transposed=0, packed=False, add=0, threads=1):
    """The arrays before, and after a forward product (with bias and tanh) and both gradients."""
    before = {name: a.astype(np.float32) for name, a in operands(m, n, k, transposed).items()}
    arrays = {name: a.copy() for name, a in before.items()}
    forward = {"x": "x", "w": "w", "b": "b", "y": "y", "activation": INDEX["activation"]["tanh"]}
    records = [("dense", schema.GRADIENT, forward | {"transposed": transposed})]
    if packed:
        arrays["packed"] = np.full((-(-n // PACK_ROUND) * PACK_ROUND, packed_depth(k)), np.nan, np.float32)
        records[0][2]["packed"] = "packed"
        records.insert(0, ("pack", schema.PREPARE, {"w": "w", "packed": "packed", "transposed": transposed}))
    backward = {"dz": "dz", "x": "x", "w": "w", "dx": "dx", "dw": "dw", "db": "db", "transposed": transposed,
                "add": add, "add_bias": add}  # fmt: skip
    return before, run(backend, [*records, ("dense_grad", schema.GRADIENT, backward)], arrays, m, threads)


@pytest.mark.parametrize("transposed, packed, add", [(0, False, 0), (1, False, 1), (0, True, 1), (1, True, 0)])
def test_products(bf16_backend, transposed, packed, add):
    for m, n, k in SHAPES:
        before, after = products(bf16_backend, m, n, k, transposed=transposed, packed=packed, add=add)
        x, dz, w = (rounded(before[name]) for name in ("x", "dz", "w"))
        w = w.T if transposed else w
        z = x @ w.T + before["b"]
        assert_close(after["y"], np.tanh(z), length=k, scale=max(1.0, np.abs(z).max()))
        assert_close(after["dx"], dz @ w, length=n)
        dw = dz.T @ x
        assert_close(after["dw"], (dw.T if transposed else dw) + add * before["dw"], length=4 * m)
        assert_close(after["db"], before["dz"].astype(float).sum(axis=0, keepdims=True) + add * before["db"], length=m)


def test_rounding_to_even_and_what_is_not_finite(bf16_backend):
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.0e38, 3.4e38, 0.0, -0.0], np.float32)
    wanted = np.array([1, 1 + 2**-6, 1 + 2**-7, -1, 3.0e38, np.inf, 0.0, 0.0])
    wanted[4] = rounded(values[4:5])[0]
    arrays = {"x": np.concatenate([values, [np.nan, np.inf, -np.inf]]).astype(np.float32)[:, None],
              "w": np.ones((1, 1), np.float32), "y": np.zeros((11, 1), np.float32)}  # fmt: skip
    got = run(bf16_backend, [("dense", schema.GRADIENT, {"x": "x", "w": "w", "y": "y"})], arrays, 11)["y"][:, 0]
    np.testing.assert_array_equal(got[:8], wanted)
    assert np.isnan(got[8]) and got[9] == np.inf and got[10] == -np.inf


@pytest.mark.parametrize("m, n, k", [(300, 70, 200), (1100, 130, 31), (33, 65, 1061), (7, 13, 5)])
def test_threads_and_packing_change_no_bit(bf16_native, m, n, k):
    _, one = products(bf16_native, m, n, k)
    for threads, packed in ((1, True), (2, False), (3, True), (4, False), (7, False)):
        _, other = products(bf16_native, m, n, k, packed=packed, threads=threads)
        for name in ("y", "dx", "dw", "db"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name}, {threads} threads")


def test_a_row_does_not_know_its_batch(bf16_native):
    for n, k in ((33, 65), (65, 600), (1, 1)):
        arrays = {name: a.astype(np.float32) for name, a in operands(400, n, k).items() if name in "xwy"}
        record = [("dense", schema.GRADIENT, {"x": "x", "w": "w", "y": "y"})]
        whole = run(bf16_native, record, {name: a.copy() for name, a in arrays.items()}, 400)["y"]
        for start, stop in ((0, 1), (5, 6), (17, 50), (391, 400)):
            part = {"x": arrays["x"][start:stop], "w": arrays["w"], "y": np.zeros((stop - start, n), np.float32)}
            np.testing.assert_array_equal(run(bf16_native, record, part, stop - start)["y"], whole[start:stop])


@pytest.mark.parametrize("name", [SLOW(name) if i % 6 else name for i, name in enumerate(NETWORKS)])
def test_gradients_of_networks(name):
    """Near those in float32: 2^-9 for each rounding of an operand, a few of them in a row."""
    exact_loss, _, _, _, exact = gradient(name, backend_named("reference"), np.float64)
    expected_loss, _, _, _, expected = gradient(name, backend_named("reference"), np.float64, bf16=True)
    grown = 4 if "exponential" in name else 1  # an exponential of what was rounded, twice
    assert expected_loss == pytest.approx(exact_loss, rel=3e-3 * grown**3)
    difference = np.linalg.norm(expected - exact) / np.linalg.norm(exact)
    assert 1e-5 < difference < 0.03 * grown
    for other in BF16_BACKENDS[1:]:
        try:
            backend = backend_named(other)
        except pytest.skip.Exception:
            continue
        # an operand on the edge between two bfloat16 numbers may go one way here and the other there
        loss, _, _, _, grad = gradient(name, backend, np.float32, bf16=True)
        assert loss == pytest.approx(expected_loss, rel=3e-5), other
        assert np.linalg.norm(grad - expected) < 2e-3 * np.linalg.norm(expected), other


X = np.random.default_rng(0).uniform(size=(700, 37)).astype(np.float32)
X[:, 10:] = X[:, :10] @ np.random.default_rng(1).uniform(size=(10, 27)).astype(np.float32) / 10
SETTINGS = {"hidden_layer_sizes": (65, 17), "dropout": 0.1, "noise": "masking", "max_iter": 3, "batch_size": 300,
            "penalties": [fastae.L1(1e-4), fastae.ActivityL1(1e-3)], "random_state": 5}  # fmt: skip


def model(backend, **parameters):
    return fastae.Autoencoder(6, backend=backend, **{"precision": "bfloat16"} | SETTINGS | parameters)


def bits(fitted):
    return b"".join(w.tobytes() + b.tobytes() for w, b in fitted.weights_)


def test_fits_as_float32_does(bf16_backend):
    fitted = model(bf16_backend, max_iter=10).fit(X)
    plain = model(bf16_backend, max_iter=10, precision="float32").fit(X)
    assert fitted.weights_[0][0].dtype == fitted.transform(X).dtype == fitted.reconstruct(X).dtype == np.float32
    assert fitted.loss_ == pytest.approx(plain.loss_, rel=0.01)
    assert bits(fitted) != bits(plain)
    # float64 input is computed in float32 with bfloat16 products, too
    np.testing.assert_array_equal(fitted.transform(X.astype(float)), fitted.transform(X))
    # encoding in float32 of what was trained in bfloat16
    exact = clone(fitted).set_params(precision="float32")
    exact.__dict__ |= {"weights_": fitted.weights_, "network_": fitted.network_, "norms_": fitted.norms_,
                       "n_features_in_": 37}  # fmt: skip
    difference = np.abs(exact.transform(X) - fitted.transform(X)).max()
    assert 0 < difference < 0.03 * np.abs(fitted.transform(X)).max()


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
def test_threads_of_a_fit(bf16_native, threads):
    one, many = model(bf16_native, n_jobs=1).fit(X), model(bf16_native, n_jobs=threads).fit(X)
    assert bits(one) == bits(many)
    np.testing.assert_array_equal(one.transform(X), many.transform(X))
    np.testing.assert_array_equal(one.score_samples(X), many.score_samples(X))
    together = one.transform(X)
    for start, stop in ((0, 1), (5, 6), (3, 40), (690, 700)):
        np.testing.assert_array_equal(one.transform(X[start:stop]), together[start:stop])


def test_copies_and_files(bf16_backend, tmp_path):
    first = model(bf16_backend, max_iter=1).fit(X)
    codes = first.transform(X)
    assert bits(first) == bits(clone(first).fit(X))
    first.save(tmp_path / "m.safetensors")
    loaded = fastae.load(tmp_path / "m.safetensors")
    assert loaded.precision == "bfloat16"
    loaded.set_params(backend=bf16_backend)
    continued = model(bf16_backend, max_iter=1).fit(X).partial_fit(X)
    np.testing.assert_array_equal(loaded.transform(X), codes)
    assert bits(loaded.partial_fit(X)) == bits(continued)


def test_pickles():
    first = model("auto", max_iter=1).fit(X)
    copy = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(copy.transform(X), first.transform(X))
    assert bits(copy.partial_fit(X)) == bits(first.partial_fit(X))


def test_a_change_of_precision_goes_on_with_the_same_optimiser():
    a, b = model("auto", max_iter=1).fit(X), model("auto", max_iter=1).fit(X)
    a.partial_fit(X)
    steps = a.t_
    a.set_params(precision="float32").partial_fit(X)
    b.partial_fit(X).partial_fit(X)
    assert a.t_ > steps and bits(a) != bits(b)
    np.testing.assert_allclose(a.weights_[0][0], b.weights_[0][0], atol=0.01)


def test_every_estimator():
    y = (X[:, 0] > 0.5).astype(int)
    common = {"precision": "bfloat16", "max_iter": 3, "random_state": 0}
    stacked = fastae.StackedAutoencoder(4, hidden_layer_sizes=(20,), **common).fit(X)
    assert np.isfinite(stacked.transform(X)).all()
    classifier = fastae.AutoencoderClassifier(hidden_layer_sizes=(20,), early_stopping=True, **common).fit(X, y)
    assert np.isfinite(classifier.predict_proba(X)).all()
    detector = fastae.AutoencoderDetector(**common).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    for fitted in (stacked, classifier, detector.autoencoder_):
        assert {op.ints["bf16"] for op in fitted.plan_.ops if "bf16" in op.ints} == {1}


@pytest.mark.parametrize("parameters", [
    {"tied_weights": True, "hidden_layer_sizes": (20,)},
    {"normalization": "batch", "activation": fastae.Maxout(2), "skip_connections": True,
     "hidden_layer_sizes": (20, 20)},
    {"penalties": [fastae.Orthogonality(0.1), fastae.Decorrelation(0.1)], "early_stopping": True},
    {"loss": "multinomial", "missing": -1.0, "noise": None},
], ids=str)  # fmt: skip
def test_with_other_structure(bf16_backend, parameters):
    fitted = model(bf16_backend, **parameters).fit(X)
    assert np.isfinite(fitted.loss_) and np.isfinite(fitted.reconstruct(X)).all()


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"precision='bfloat16' cannot go with solver='lbfgs'.*precision='auto'"):
        model("auto", solver="lbfgs").fit(X)
    with pytest.raises(ValueError, match=r"precision='float16'.*bfloat16"):
        model("auto").set_params(precision="float16").fit(X)
    builder = PlanBuilder(np.float64, 4, bf16=True)
    for name, rows, columns in (("x", M, 3), ("w", 2, 3), ("y", M, 2)):
        builder.external(name, rows, columns)
    builder.op("dense", x="x", w="w", y="y")
    with pytest.raises(ValueError, match="float64 plan cannot have products in bfloat16"):
        backend_named("baseline").compile(builder.build())


@pytest.mark.parametrize("name", sorted({*BF16_BACKENDS} - {*BACKENDS}))
def test_sets_for_bfloat16_have_the_bits_of_avx512_in_float32(name):
    a, b = (model(backend_named(isa), precision="float32", max_iter=1).fit(X) for isa in ("avx512", name))
    assert bits(a) == bits(b)
    assert backend_named(name).peak_gflops("bfloat16", 0.01) > 0
