"""Ops that make codes: exact numbers on every backend, and the same bits as a dense product with a selection."""

import numpy as np
import pytest
from conftest import BF16_NATIVE, assert_close, backend_named

import fastae
from fastae.backends import get_backend
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder

M = schema.BATCH_ROWS
SIZES = [(1, 1, 1, 1), (7, 33, 17, 5), (64, 96, 5, 96), (257, 31, 70, 3), (3, 1030, 65, 40), (33, 500, 200, 32),
         (13, 129, 200, 1), (70, 300, 31, 130)]  # fmt: skip
CODES = {np.dtype(np.int32): schema.INT32, np.dtype(np.int8): schema.INT8, np.dtype(np.int64): schema.INT64}
BY_ROW = {"x", "y", "out", "statistics", "val", "pre", "idx", "count", "val_out", "idx_out", "count_out"}

PATHS = [1, 2, 3]


@pytest.fixture(params=BF16_NATIVE)
def any_native(request):
    """The native backend on every instruction set, those that multiply bfloat16 in their own way too."""
    return backend_named(request.param)


def run(
    backend, record, arrays, dtype=np.float32, threads=1, batch=None, scalars=None, doubles=(), prepare=None,
    prepared=None, **given,
):  # fmt: skip
    """Runs one record over copies of the arrays; returns them, and what the step reported."""
    arrays = {name: np.array(a) for name, a in arrays.items()}
    m = next(len(a) for name, a in arrays.items() if name in BY_ROW)
    builder = PlanBuilder(dtype, batch or m)
    for name, array in arrays.items():
        code = schema.FLOAT64 if name in doubles else CODES.get(array.dtype, schema.REAL)
        builder.external(name, M if name in BY_ROW else len(array), array.shape[1], code)
    if prepare:
        builder.op(prepare[0], schema.PREPARE, **{name: name for name in prepare[1:]}, **(prepared or {}))
    given = {"k_scalar": -1, "overflow": -1} | given
    known = {*schema.KIND[record].ints, *schema.KIND[record].floats}
    builder.op(record, **{name: name for name in arrays}, **{k: v for k, v in given.items() if k in known})
    builder.n_values = int(max(given["overflow"], given.get("value", -1)) >= 0)
    builder.n_scalars = int(scalars is not None)
    plan = builder.build()
    steps = -(-m // plan.batch)
    values = np.zeros((steps, 1))
    job = Job([*plan.allocate(), *arrays.values()], (), m, n_steps=steps, values=values, n_threads=threads,
              scalars=None if scalars is None else np.full((steps, 1), float(scalars)),
              phases=schema.PREPARE | schema.GRADIENT)  # fmt: skip
    backend.run(backend.compile(plan), job)
    return arrays, values


def codes(m, capacity, dtype=np.float32, pre=True):
    """Outputs, filled with what must not be left where entries are."""
    out = {"val": np.full((m, capacity), np.nan, dtype), "idx": np.full((m, capacity), -7, np.int32),
           "count": np.full((m, 1), -7, np.int32)}  # fmt: skip
    return out | ({"pre": np.full((m, capacity), np.nan, dtype)} if pre else {})


def whole_numbers(m, n, p, dtype=np.float32, most=2):
    """Operands whose products are exact everywhere, with many ties."""
    rng = np.random.default_rng(m + n + p)
    return {name: rng.integers(-most, most + 1, size=shape).astype(dtype)
            for name, shape in (("x", (m, p)), ("w", (n, p)), ("b", (1, n)))}  # fmt: skip


def assert_same_codes(got, want):
    np.testing.assert_array_equal(got["count"], want["count"])
    width = want["val"].shape[1]
    mask = np.arange(width)[None] < want["count"]
    mask &= want["count"] <= width  # rows that do not fit have only their number
    for name in ("idx", "val", "pre"):
        if name in want:
            np.testing.assert_array_equal(np.where(mask, got[name], 0), np.where(mask, want[name], 0), err_msg=name)


def encoded(z, kind, k, limit=None, threshold=0.0, latents=None):
    """Selection from z (m, n) as it is documented."""
    latents = np.arange(z.shape[1]) if latents is None else latents
    rows = []
    for row in z:
        if kind == "threshold":
            chosen = np.flatnonzero(row > limit)
            rows.append((latents[chosen], np.where(row > threshold, row, 0)[chosen], row[chosen]))
        else:
            score = np.abs(row) if kind == "abs_topk" else row
            chosen = np.sort(np.argsort(-score, kind="stable")[:k])
            val = row if kind == "abs_topk" else np.maximum(row, 0)
            rows.append((latents[chosen], val[chosen], row[chosen]))
    return rows


def assert_rows(got, rows):
    np.testing.assert_array_equal(got["count"][:, 0], [len(row[0]) for row in rows])
    for r, parts in enumerate(rows):
        for name, part in zip(("idx", "val", "pre"), parts, strict=True):
            np.testing.assert_array_equal(got[name][r, : len(part)], part, err_msg=f"{name} of row {r}")


# ---- every backend, exact numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_encode(tested_backend, sizes, kind, dtype):
    m, n, p, k = sizes
    arrays = whole_numbers(m, n, p, dtype)
    for threshold in [None, np.full((1, 1), 3.0, dtype), arrays["b"] + 1] if kind == 2 else [None]:
        given = arrays if threshold is None else arrays | {"threshold": threshold}
        for capacity in {k, n}:
            out = codes(m, capacity, dtype)
            args = {"kind": kind, "k": k, "margin": 2.0, "overflow": 0}
            got, value = run(tested_backend, "encode", given | out, dtype, **args)
            want, expected = run(get_backend("reference"), "encode", given | out, dtype, **args)
            assert_same_codes(got, want)
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_encode_of_a_subset(tested_backend, kind):
    m, n, p, k = 35, 700, 40, 24
    arrays = whole_numbers(m, n, p) | {"threshold": np.linspace(-3, 9, n, dtype=np.float32)[None]}
    del arrays["b"]
    for count in (0, 1, 23, 150, n):
        named = np.zeros((1, n), np.int32)
        named[0, :count] = np.sort(np.random.default_rng(count).choice(n, count, replace=False))
        given = arrays | {"subset": named, "n_subset": np.array([[count]], np.int32)} | codes(m, n)
        args = {"kind": kind, "k": k, "margin": 0.5}
        got, _ = run(tested_backend, "encode", given, **args)
        want, _ = run(get_backend("reference"), "encode", given, **args)
        assert_same_codes(got, want)


def test_k_may_be_a_scalar(tested_backend):
    arrays = whole_numbers(9, 50, 12) | codes(9, 8)
    for k in (0, 1, 5, 8, 100):
        got, _ = run(tested_backend, "encode", arrays, k=8, k_scalar=0, scalars=k)
        assert (got["count"] == min(k, 8)).all()
        want, _ = run(get_backend("reference"), "encode", arrays, k=8, k_scalar=0, scalars=k)
        assert_same_codes(got, want)


def test_rows_that_are_not_finite_have_no_code(tested_backend):
    for kind in range(3):
        arrays = whole_numbers(40, 90, 20) | codes(40, 90)
        arrays["x"][3, 7], arrays["x"][17, 0], arrays["x"][39, 19] = np.nan, np.inf, -np.inf
        got, _ = run(tested_backend, "encode", arrays, kind=kind, k=6)
        bad = got["count"][:, 0] < 0
        assert list(np.flatnonzero(bad)) == [3, 17, 39]
        arrays["x"][bad] = 0
        want, _ = run(get_backend("reference"), "encode", arrays, kind=kind, k=6)
        assert_same_codes({name: a[~bad] for name, a in got.items() if name in BY_ROW},
                          {name: a[~bad] for name, a in want.items() if name in BY_ROW})  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_batch_topk(tested_backend, sizes, most, dtype):
    m, n, p, k = sizes
    arrays = whole_numbers(m, n, p, dtype, most)
    for capacity in {n, min(n, 2 * k), k}:
        for guess in (0.0, 1e9, 0.5):
            old = -1.0 if guess else 7.0
            state = {"threshold": np.full((1, 1), old, dtype), "guess": np.full((1, 1), guess, dtype)}
            given = arrays | codes(m, capacity, dtype, pre=False) | state
            args = {"k": k, "overflow": 0, "decay": 0.9}
            got, value = run(tested_backend, "batch_topk", given, dtype, **args)
            want, expected = run(get_backend("reference"), "batch_topk", given, dtype, **args)
            assert_same_codes(got, want)
            np.testing.assert_array_equal(value, expected)
            np.testing.assert_allclose(got["threshold"], want["threshold"], rtol=1e-6)
    got, _ = run(tested_backend, "batch_topk", given, dtype, k=k, k_scalar=0, scalars=k / 2 + 0.25)
    want, _ = run(get_backend("reference"), "batch_topk", given, dtype, k=k, k_scalar=0, scalars=k / 2 + 0.25)
    assert_same_codes(got, want)


@pytest.mark.parametrize("magnitude", [0, 1])
def test_narrow(tested_backend, magnitude):
    rng = np.random.default_rng(0)
    for m, s, k in [(1, 1, 1), (9, 40, 7), (30, 17, 17), (5, 64, 100)]:
        count = rng.integers(-1, s + 3, size=(m, 1)).astype(np.int32)
        idx = np.sort(rng.permuted(np.tile(np.arange(2 * s, dtype=np.int32), (m, 1)), axis=1)[:, :s], axis=1)
        given = {"val": rng.integers(-4, 5, size=(m, s)).astype(np.float32), "idx": idx, "count": count}
        out = {f"{name}_out": a for name, a in codes(m, min(k, s), pre=False).items()}
        got, _ = run(tested_backend, "narrow", given | out, k=k, magnitude=magnitude)
        want, _ = run(get_backend("reference"), "narrow", given | out, k=k, magnitude=magnitude)
        assert_same_codes(*({name: a[f"{name}_out"] for name in ("val", "idx", "count")} for a in (got, want)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_comes_before_and_after(tested_backend, dtype):
    rng = np.random.default_rng(0)
    for m, p in [(1, 1), (7, 33), (300, 5), (33, 200)]:
        x, y = rng.normal(3, 2, size=(m, p)).astype(dtype), np.zeros((m, p), dtype)
        b, statistics = rng.normal(size=(1, p)).astype(dtype), rng.normal(3, 1, size=(m, 2))
        for kind, arrays, args in [
            ("centre", {"x": x, "b": b, "y": y}, {"scale": 1.0}),
            ("centre", {"x": x, "y": y}, {"scale": 0.3}),
            ("standardize", {"x": x, "y": y, "statistics": statistics}, {"epsilon": 1e-5}),
            ("standardize", {"x": x, "y": y}, {"epsilon": 1e-2}),
            ("restore", {"y": x, "statistics": statistics, "out": y}, {}),
        ]:
            got, _ = run(tested_backend, kind, arrays, dtype, doubles=("statistics",), **args)
            want, _ = run(get_backend("reference"), kind, arrays, dtype, doubles=("statistics",), **args)
            for name in arrays:
                assert_close(got[name], want[name], length=4 * p, scale=10.0)


def test_code_statistics(tested_backend):
    rng = np.random.default_rng(0)
    for m, s, segments in [(1, 1, 1), (33, 7, 3), (200, 5, 1)]:
        given = {"val": rng.integers(0, 2, size=(m, s * segments)).astype(np.float32),
                 "count": rng.integers(-1, s + 2, size=(m, segments)).astype(np.int32)}  # fmt: skip
        _, value = run(tested_backend, "code_statistics", given, value=0)
        _, want = run(get_backend("reference"), "code_statistics", given, value=0)
        assert value[0, 0] == pytest.approx(want[0, 0], rel=1e-14)


# ---- bits -----------------------------------------------------------------------------------------------------------


def real_numbers(m, n, p, dtype=np.float32):
    rng = np.random.default_rng(m + n + p)
    return {"x": rng.normal(size=(m, p)).astype(dtype), "w": (rng.normal(size=(n, p)) / p**0.5).astype(dtype),
            "b": (rng.normal(size=(1, n)) / 4).astype(dtype)}  # fmt: skip


def outliers(m, n, p):
    a = real_numbers(m, n, p)
    a["x"][:, :: max(p // 4, 1)] *= 30
    return a


def duplicates(m, n, p):
    a = real_numbers(m, n, p)
    a["w"][n // 3 :] = a["w"][np.random.default_rng(0).integers(0, n // 3 + 1, n - n // 3)]
    a["b"][...] = 0.25
    return a


def almost_duplicates(m, n, p):
    """Latents that bfloat16 cannot tell apart."""
    a = real_numbers(m, n, p)
    near = 1 + np.random.default_rng(0).normal(size=(n, p)).astype(np.float32) * np.float32(1e-6)
    a["w"][...] = a["w"][:1] * near
    return a


def zero_rows(m, n, p):
    a = real_numbers(m, n, p)
    a["x"][::3] = 0
    a["w"][::2] = 0
    return a


def tiny(m, n, p):
    a = real_numbers(m, n, p)
    a["x"] *= np.float32(1e-38)
    a["x"][::2] *= np.float32(1e-4)
    a["w"][::5] *= np.float32(1e-30)
    a["b"] *= 0
    return a


def huge(m, n, p):
    a = real_numbers(m, n, p)
    a["x"][::4] *= np.float32(1e30)
    a["w"][::7] *= np.float32(1e6)
    return a


def mixed(m, n, p):
    """Scales over fifteen orders of magnitude, in rows, columns and latents."""
    a, rng = real_numbers(m, n, p), np.random.default_rng(1)
    a["x"] *= (10.0 ** rng.uniform(-7, 7, size=(m, 1)) * 10.0 ** rng.uniform(-1, 1, size=(1, p))).astype(np.float32)
    a["w"] *= (10.0 ** rng.uniform(-2, 2, size=(n, 1))).astype(np.float32)
    return a


DATA = [real_numbers, outliers, duplicates, almost_duplicates, zero_rows, tiny, huge, mixed]
SHAPES = [
    (1, 1500, 64, 32),
    (33, 1201, 97, 7),
    pytest.param((70, 2100, 130, 100), marks=pytest.mark.slow),
    (5, 40, 3, 4),
]


def dense(backend, arrays):
    b = arrays["b"][0] if "b" in arrays else None
    return fastae.ops.dense(arrays["x"], arrays["w"], b, backend=backend)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", DATA, ids=lambda f: f.__name__)
def test_every_path_has_the_bits_of_a_dense_product(any_native, make, shape):
    m, n, p, k = shape
    arrays = make(m, n, p)
    z = dense(any_native, arrays)
    threshold = np.quantile(z, 1 - k / n, axis=0, keepdims=True).astype(np.float32)
    margin = np.float32(np.abs(z).astype(float).mean() / 8)
    for kind in schema.CODE_KINDS:
        rows = encoded(z, kind, k, (threshold - margin)[0], threshold[0])
        given = arrays | codes(m, k if kind != "threshold" else n)
        if kind == "threshold":
            given["threshold"] = threshold
        for path, packed in ((1, False), (2, False), (2, True), (3, True), (0, True)):
            more, prepare = {}, None
            if packed:
                more = {"packed": np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)}
                prepare = ("pack_encoder", "w", "packed")
            got, _ = run(any_native, "encode", given | more, kind=schema.CODE_KINDS.index(kind), k=k, path=path,
                         margin=float(margin), prepare=prepare)  # fmt: skip
            assert_rows(got, rows)


@pytest.mark.parametrize("make", DATA, ids=lambda f: f.__name__)
def test_a_few_rows_on_packed_weights(any_native, make):
    """Enough latents that 8-bit candidates may be chosen, and given up again."""
    n, p, k = 5000, 100, 24
    for m in (1, 2, 3, 4, 6, 16, 21):
        arrays = make(m, n, p)
        z = dense(any_native, arrays)
        packed = np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)
        for kind in (0, 1):
            rows = encoded(z, schema.CODE_KINDS[kind], k)
            for path in (0, 3):
                got, _ = run(any_native, "encode", arrays | codes(m, k) | {"packed": packed}, kind=kind, k=k, path=path,
                             prepare=("pack_encoder", "w", "packed"))  # fmt: skip
                assert_rows(got, rows)


@pytest.mark.parametrize("path", (0, 3))
def test_weights_that_overflow_bounds(any_native, path):
    """Huge weights and biases among ordinary ones, with rows that are not finite."""
    m, n, p, k = 9, 4500, 70, 16
    arrays = real_numbers(m, n, p)
    arrays["w"][1500] *= np.float32(1e34)
    arrays["b"][0, 3000] = 1e33
    z = dense(any_native, arrays)
    rows = encoded(z, "topk", k)
    arrays["x"] = np.concatenate([arrays["x"], np.full((1, p), np.nan, np.float32)])
    packed = np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)
    got, _ = run(any_native, "encode", arrays | codes(m + 1, k) | {"packed": packed}, k=k, path=path,
                 prepare=("pack_encoder", "w", "packed"))  # fmt: skip
    assert got["count"][m, 0] == -1
    assert_rows({name: a[:m] for name, a in got.items()}, rows)


def test_automatic_path_and_no_bias(any_native):
    m, n, p, k = 40, 3000, 80, 16
    arrays = real_numbers(m, n, p)
    del arrays["b"]
    rows = encoded(dense(any_native, arrays), "topk", k)
    for path in (0, *PATHS):
        got, _ = run(any_native, "encode", arrays | codes(m, k), k=k, path=path)
        assert_rows(got, rows)


def test_float64_has_the_bits_of_a_dense_product(native_backend):
    m, n, p, k = 37, 700, 90, 20
    arrays = real_numbers(m, n, p, np.float64)
    for kind in ("topk", "abs_topk"):
        rows = encoded(dense(native_backend, arrays), kind, k)
        got, _ = run(native_backend, "encode", arrays | codes(m, k, np.float64), np.float64, k=k, path=2,
                     kind=schema.CODE_KINDS.index(kind))  # fmt: skip
        assert_rows(got, rows)


@pytest.mark.parametrize("path", PATHS)
def test_threads_and_batches_change_no_bit(any_native, path):
    m, n, p, k = 131, 2000, 70, 9
    arrays = outliers(m, n, p)
    named = np.arange(0, n, 2, dtype=np.int32)[None]
    subset = {"subset": np.pad(named, ((0, 0), (0, n // 2))), "n_subset": np.array([[n // 2]], np.int32)}
    cases = [("encode", {"kind": kind, "path": path, "margin": -4.0}, extra)
             for kind in range(3) for extra in ({}, subset)]  # fmt: skip
    packed = {"packed": np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)}
    cases += [("encode", {"kind": kind, "path": path, "margin": -4.0}, packed) for kind in range(3)]
    cases.append(("batch_topk", {"decay": 0.5}, {"guess": np.ones((1, 1), np.float32)}))
    for kind, args, extra in cases:
        given = arrays | codes(m, 60, pre=kind == "encode") | extra
        if "packed" in extra:
            args = args | {"prepare": ("pack_encoder", "w", "packed")}
        one, _ = run(any_native, kind, given, k=k, **args)
        for threads in (2, 3, 7):
            many, _ = run(any_native, kind, given, k=k, threads=threads, **args)
            for name in one:
                np.testing.assert_array_equal(one[name], many[name], err_msg=f"{kind}: {name}")
        if kind == "encode":
            for batch in (1, 17, 64):
                many, _ = run(any_native, kind, given, k=k, threads=2, batch=batch, **args)
                for name in one:
                    np.testing.assert_array_equal(one[name], many[name], err_msg=f"{kind}: {name}")


def test_the_guess_changes_no_bit(any_native):
    m, n, p, k = 50, 900, 40, 12
    arrays = real_numbers(m, n, p) | codes(m, 90, pre=False)
    z = np.maximum(dense(any_native, arrays), 0)
    kept = np.zeros(z.size, bool)
    kept[np.argsort(-z.ravel(), kind="stable")[: k * m]] = True
    for guess in (0.0, 0.3, 1.0, 1.5, 20.0, 3e38, 1e-30):
        state = {"guess": np.full((1, 1), guess, np.float32), "threshold": np.full((1, 1), -1.0, np.float32)}
        got, _ = run(any_native, "batch_topk", arrays | state, k=k)
        assert got["guess"] == got["threshold"] == z[kept.reshape(z.shape)].min()
        for r, row in enumerate(kept.reshape(z.shape)):
            np.testing.assert_array_equal(got["idx"][r, : got["count"][r, 0]], np.flatnonzero(row))
            np.testing.assert_array_equal(got["val"][r, : got["count"][r, 0]], z[r, row])


@pytest.mark.parametrize("path", (0, *PATHS))
def test_real_activations(any_native, data_dir, path):
    """Activations with a few large dimensions; latents are rows of the data, so that codes are sharp."""
    data = np.load(data_dir / "minilm_layer4_activations_f16.npy", mmap_mode="r")
    x = np.asarray(data[:96], np.float32)
    w = np.asarray(data[1000:41000:10], np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    arrays = {"x": x, "w": w, "b": np.zeros((1, len(w)), np.float32)}
    rows = encoded(dense(any_native, arrays), "topk", 32)
    packed = {"packed": np.zeros((-(-len(w) // 64) * 64, schema.pack_columns(x.shape[1])), np.int8)}
    for extra, prepare in ((packed, ("pack_encoder", "w", "packed")), ({}, None)):
        for some in (slice(0, 1), slice(3, 8), slice(0, 96)):
            given = arrays | {"x": x[some]} | codes(len(x[some]), 32) | extra
            got, _ = run(any_native, "encode", given, k=32, path=path, prepare=prepare)
            assert_rows(got, rows[some])


# ---- the public op --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [False, True])
def test_topk(backend, magnitude):
    for dtype in (np.float32, np.float64):
        a = whole_numbers(29, 140, 13, dtype)
        rows = encoded(a["x"] @ a["w"].T + a["b"], "abs_topk" if magnitude else "topk", 10)
        values, indices = fastae.ops.topk(a["x"], a["w"], a["b"][0], 10, magnitude=magnitude, backend=backend)
        assert values.dtype == dtype and indices.dtype == np.int32
        np.testing.assert_array_equal(indices, [row[0] for row in rows])
        np.testing.assert_array_equal(values, [row[1] for row in rows])
        out = np.empty_like(values), np.empty_like(indices)
        got = fastae.ops.topk(a["x"], a["w"], a["b"][0], 10, magnitude=magnitude, backend=backend, out=out)
        assert got[0] is out[0] and got[1] is out[1]
        np.testing.assert_array_equal(out[1], indices)
    none, empty = fastae.ops.topk(np.empty((0, 13), np.float32), a["w"], None, 3, backend=backend)
    assert none.shape == empty.shape == (0, 3)


def test_topk_says_what_is_wrong():
    x, w = np.ones((5, 3), np.float32), np.ones((8, 3), np.float32)
    for k, message in [(0, "k=0 must be"), (9, "k=9 must be <= the 8 rows of w; lower k"), (2.5, "k=2.5")]:
        with pytest.raises((ValueError, TypeError), match=message):
            fastae.ops.topk(x, w, None, k)
    with pytest.raises(ValueError, match=r"w has shape \(8, 3\); wanted \(8, 4\)"):
        fastae.ops.topk(np.ones((5, 4)), w, None, 2)
    with pytest.raises(ValueError, match="b has 7 elements; wanted 8"):
        fastae.ops.topk(x, w, np.ones(7), 2)
    with pytest.raises(TypeError, match=r"out is a ndarray; wanted \(values, indices\)"):
        fastae.ops.topk(x, w, None, 2, out=np.empty((5, 2), np.float32))
    with pytest.raises(ValueError, match=r"out\[1\] \(indices\) has shape"):
        fastae.ops.topk(x, w, None, 2, out=(np.empty((5, 2), np.float32), np.empty((5, 3), np.int32)))
    x[3, 1] = np.nan
    x[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"x has NaN or infinity in row 3.*2 in all"):
        fastae.ops.topk(x, w, None, 2)


def test_topk_writes_every_entry_or_says_why(backend):
    """Latents whose z is NaN or -infinity come last; where there are too few others the row has no code."""
    x, w, b = np.ones((5, 3), np.float32), np.ones((8, 3), np.float32), np.zeros(8, np.float32)
    w[:6], b[6] = np.nan, -np.inf
    out = np.full((5, 1), 7, np.float32), np.zeros((5, 1), np.int32)
    values, indices = fastae.ops.topk(x, w, b, 1, backend=backend, out=out)
    assert values.tolist() == [[3]] * 5 and indices.tolist() == [[7]] * 5
    with pytest.raises(ValueError, match=r"row 0 has fewer than k=3 pre-activations that are numbers"):
        fastae.ops.topk(x, w, b, 3, backend=backend)
