"""Nearly full codes: dense products give the bits of sums entry by entry, on every instruction set.

The compiled backend chooses by the mean number of entries, so the same rows go the other way in a batch with many empty
rows behind them; sums over rows are the same then, too. Encoding is held against the float32 path that may not choose.
"""

import numpy as np
import pytest
from conftest import BF16_BACKENDS, assert_close, backend_named

from fastae.backends import get_backend
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, Source
from fastae.plan.sparse import L0, sparse_training_plan
from fastae.spec.sparse import Gated, JumpReLU, ReLUCode, sparse_network

M = schema.BATCH_ROWS
DTYPES = {np.dtype(np.int32): schema.INT32, np.dtype(np.int64): schema.INT64}
BATCHED = {"val", "idx", "count", "y", "dy", "dval", "coef", "u"}
SIZES = [(37, 700, 97), (5, 521, 130), (50, 2100, 33), (1, 1031, 64), (100, 264, 300), (13, 4099, 16)]
EMPTY = 15  # empty rows for each row that has entries


def entries(rng, m, n, share, capacity):
    """idx (m, capacity) ascending, count: about share n of the latents, and now and then none or as many as fit."""
    idx, count = np.full((m, capacity), 2**30, np.int32), np.zeros((m, 1), np.int32)
    for r in range(m):
        k = min(capacity, rng.binomial(n, share))
        k = 0 if m > 4 and r == 1 else min(n, capacity) if m > 4 and r == 2 else k
        idx[r, :k], count[r] = np.sort(rng.choice(n, k, False)), k
    return idx, count


def case(sizes, dtype, share=0.5, segments=1):
    m, n, p = sizes
    rng = np.random.default_rng(m + n + p)
    codes = [entries(rng, m, n, share, n - 3) for _ in range(segments)]
    idx, count = (np.hstack(parts) for parts in zip(*codes, strict=True))
    real = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    val = real(*idx.shape)
    val[rng.random(val.shape) < 0.1] = 0
    val[idx == 2**30] = np.nan
    return {"val": val, "idx": idx, "count": count, "w": real(n, p), "b": real(1, p), "y": real(m, p),
            "dy": real(m, p), "dval": np.zeros_like(val)}  # fmt: skip


def with_empty_rows(arrays):
    return {name: np.concatenate([a, *[np.zeros_like(a)] * EMPTY]) if name in BATCHED else a
            for name, a in arrays.items()}  # fmt: skip


def run(backend, arrays, records, threads=1, own=()):
    """Runs records (kind, attributes, slots) over copies; own: arrays of the plan, by name, rows, columns, dtype."""
    memory = {name: a.copy() for name, a in arrays.items()}
    m = len(arrays["idx"])
    builder = PlanBuilder(next(iter(arrays.values())).dtype, m)
    for name, a in memory.items():
        builder.external(name, M if name in BATCHED else len(a), a.shape[1], DTYPES.get(a.dtype, schema.REAL))
    for name, rows, columns, kind in own:
        builder.buffer(name, rows, columns, schema.ARENA, kind)
    for kind, attributes, slots in records:
        builder.op(kind, **{slot: slot for slot in slots.split()}, **attributes)
    builder.n_values = 1
    plan = builder.build()
    job = Job([*plan.allocate(), *memory.values()], (), m, phases=schema.GRADIENT, values=np.zeros((1, 1)),
              n_threads=threads)  # fmt: skip
    assert backend.run(backend.compile(plan), job) == 1
    return memory


def both_ways(backend, arrays, records, names, own=(), threads=(1, 3)):
    """What records make in the batch itself, after it has been found the same with empty rows behind it."""
    sparse = run(backend, with_empty_rows(arrays), records, own=own)
    for t in threads:
        full = run(backend, arrays, records, t, own)
        for name in names:
            want = sparse[name][: len(arrays[name])]
            mask = np.ones(want.shape, bool)
            if name == "dval":
                mask = arrays["idx"] < 2**30
            size = f"V{want.dtype.itemsize}"  # bits, so that -0 is not +0
            got, want = (np.where(mask & ~np.isnan(a), a, 7) for a in (full[name], want))
            np.testing.assert_array_equal(np.isnan(full[name]), np.isnan(sparse[name][: len(arrays[name])]))
            np.testing.assert_array_equal(got.view(size), want.view(size), err_msg=f"{name}, {t} threads")
    return full


DECODE = ("decode", {}, "val idx count w b y")
CODE_GRAD = ("code_grad", {}, "dy idx count w dval")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_rows(native_backend, sizes, dtype):
    arrays = case(sizes, dtype)
    got = both_ways(native_backend, arrays, [DECODE, CODE_GRAD], ("y", "dval"))
    want = run(get_backend("reference"), {k: a.astype(float) if a.dtype.kind == "f" else a for k, a in arrays.items()},
               [DECODE, CODE_GRAD])  # fmt: skip
    assert_close(got["y"], want["y"].astype(dtype), length=sizes[1], scale=np.abs(want["y"]).max() + 4)
    mask = arrays["idx"] < 2**30
    assert_close(got["dval"][mask], want["dval"][mask].astype(dtype), length=sizes[2], scale=np.sqrt(sizes[2]) * 4)


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_row_by_row(native_backend, sizes):
    """decode, squared_error and code_grad over one code, which otherwise go row by row."""
    arrays = case(sizes, np.float32)
    arrays = {k: a for k, a in arrays.items() if k != "dy"} | {"target": arrays["dy"], "dy": arrays["y"]}
    m = len(arrays["y"])
    got = []
    for empty in (False, True):
        a = with_empty_rows(arrays) if empty else arrays
        a["target"] = np.resize(arrays["target"], a["y"].shape)
        builder = PlanBuilder(np.float32, len(a["y"]))
        memory = {name: x.copy() for name, x in a.items() if name != "dy"}
        for name, x in memory.items():
            batched = name in BATCHED or name == "target"
            builder.external(name, M if batched else len(x), x.shape[1], DTYPES.get(x.dtype, schema.REAL))
        code = {"val": "val", "idx": "idx", "count": "count", "w": "w"}
        builder.op("decode", **code, b="b", y="y")
        builder.op("squared_error", y="y", target="target", dy="y", value=builder.value(), variance=-1,
                   scale=float(len(a["y"])))  # fmt: skip
        builder.op("code_grad", dy="y", idx="idx", count="count", w="w", dval="dval")
        plan = builder.build()
        job = Job([*plan.allocate(), *memory.values()], (), len(a["y"]), phases=schema.GRADIENT,
                  values=np.zeros((1, 1)), n_threads=2)  # fmt: skip
        native_backend.run(native_backend.compile(plan), job)
        got.append({name: memory[name][:m] for name in ("y", "dval")})
    np.testing.assert_array_equal(got[0]["y"], got[1]["y"])
    np.testing.assert_array_equal(got[0]["dval"], got[1]["dval"])


def test_awkward_numbers(native_backend):
    """Zeros with signs, numbers that underflow, infinities and NaN in what the code leaves out."""
    arrays = case(SIZES[0], np.float32)
    _, n, _ = SIZES[0]
    arrays["b"][0, :9] = -0.0
    arrays["w"][:, 3:7] = 0
    arrays["w"][:, 7] *= 1e-30
    arrays["w"][:, 8] *= -1e-38
    arrays["val"][3] *= 1e-20
    left_out = [j for j in range(n) if j not in set(arrays["idx"][4])]
    both_ways(native_backend, arrays, [DECODE, CODE_GRAD], ("y", "dval"))
    arrays["w"][left_out[0], 11], arrays["w"][left_out[-1], 12] = np.inf, np.nan
    arrays["val"][5, 0], arrays["val"][6, 0] = np.inf, np.nan
    got = both_ways(native_backend, arrays, [DECODE, CODE_GRAD], ("y", "dval"))
    assert np.isfinite(got["y"][4]).all() and not np.isfinite(got["y"]).all()


@pytest.mark.parametrize("order", ["backwards", "twice"])
def test_entries_that_do_not_ascend(native_backend, order):
    arrays = case(SIZES[0], np.float32)
    for r in range(3, len(arrays["idx"])):
        k = arrays["count"][r, 0]
        if order == "backwards":
            arrays["idx"][r, :k] = arrays["idx"][r, :k][::-1]
        else:
            arrays["idx"][r, 1:k] = arrays["idx"][r, : k - 1]
    arrays |= {"coef": arrays["val"], "u": arrays["y"], "dw": arrays["w"]}
    n = len(arrays["w"])
    own = [("start", 1, n + 1, schema.INT64), ("entry", M, arrays["idx"].shape[1], schema.INT64)]
    records = [DECODE, CODE_GRAD, ("by_latent", {}, "idx count start entry"),
               ("latent_grad", {"capacity": arrays["idx"].shape[1]}, "coef start entry u w dw")]  # fmt: skip
    both_ways(native_backend, arrays, records, ("y", "dval", "dw"), own)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes, segments, share",
    [((37, 700, 97), 1, 0.5), ((300, 530, 130), 1, 0.85), ((700, 1009, 65), 1, 0.37), ((300, 333, 200), 2, 0.5),
     ((513, 200, 336), 1, 0.5), ((1, 1031, 64), 1, 0.5)],
)  # fmt: skip
def test_latents(native_backend, sizes, segments, share, dtype):
    """Gradients and sums by latent: with fewer entries than one chain has, and with more, in the same tile."""
    m, n, p = sizes
    arrays = case(sizes, dtype, share, segments)
    rng = np.random.default_rng(1)
    arrays |= {"coef": arrays["val"], "u": rng.normal(size=(m, p * segments)).astype(dtype), "dw": arrays["w"] * 0 + 9,
               "sum": np.full((1, n), 9, dtype)}  # fmt: skip
    for r in range(0, m, 3):  # latents of different frequencies
        for q in range(segments):
            cut = slice(q * (n - 3), (q + 1) * (n - 3))
            idx, keep = arrays["idx"][r, cut], arrays["idx"][r, cut] < n // 2
            count = keep.sum()
            idx[count:], arrays["count"][r, q] = 2**30, count
    capacity = arrays["idx"].shape[1] // segments
    own = [("start", 1, n + 1, schema.INT64), ("entry", M, arrays["idx"].shape[1], schema.INT64),
           ("factor", 1, n, schema.FLOAT64)]  # fmt: skip
    lists = [("by_latent", {}, "idx count start entry"), ("latent_sum", {}, "coef start entry sum")]
    plain = ("latent_grad", {"capacity": capacity}, "coef start entry u w dw")
    got = both_ways(native_backend, arrays, [*lists, plain], ("dw", "sum"), own)
    wide = {k: a.astype(float) if a.dtype.kind == "f" else a for k, a in arrays.items()}
    want = run(get_backend("reference"), wide, [*lists, plain], own=own)
    for name in ("dw", "sum"):
        assert_close(got[name], want[name].astype(dtype), length=2 * m, scale=np.abs(want[name]).max())
    counted = np.bincount(arrays["idx"][arrays["idx"] < 2**30], minlength=n)
    if m >= 300:
        assert counted.min() <= 256 < counted.max()
    # strength of a factor is over the batch, so that many empty rows need the more of it
    unit = ("latent_grad", {"capacity": capacity, "unit": 1}, "coef start entry u w dw")
    both_ways(native_backend, arrays, [*lists, unit], ("dw", "sum"), own)
    arrays["u"][m - 1, 0] = np.inf
    both_ways(native_backend, arrays, [*lists, plain], ("dw", "sum"), own)


NATIVE = BF16_BACKENDS[2:]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("m, n, p", [(40, 1500, 70), (17, 800, 130), (71, 2003, 33)])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_encode(name, m, n, p, share):
    backend = backend_named(name)
    rng = np.random.default_rng(n)
    for dtype in (np.float32, np.float64):
        arrays = {"x": rng.normal(size=(m, p)), "w": rng.normal(size=(n, p)) / np.sqrt(p), "b": rng.normal(size=(1, n)),
                  "threshold": np.abs(rng.normal(size=(1, n)))}  # fmt: skip
        z = arrays["x"] @ arrays["w"].T + arrays["b"] - arrays["threshold"]
        arrays["b"] -= np.quantile(z, 1 - share)
        arrays = {k: a.astype(dtype) for k, a in arrays.items()}
        arrays["x"][m // 2, p // 2] = np.nan
        for slots, capacity, margin in (("threshold pre", n, 0.1), ("", n, 0.0), ("threshold", n // 3, 0.0)):
            got = []
            for path, threads in ((schema.ENCODE_PATHS.index("float32"), 1), (0, 1), (0, 3)):
                memory = {k: a.copy() for k, a in arrays.items() if k != "threshold" or "threshold" in slots}
                memory |= {"val": np.zeros((m, capacity), dtype), "idx": np.zeros((m, capacity), np.int32),
                           "count": np.zeros((m, 1), np.int32)}  # fmt: skip
                if "pre" in slots:
                    memory["pre"] = np.zeros((m, capacity), dtype)
                builder = PlanBuilder(dtype, m)
                for key, a in memory.items():
                    batched = key in ("x", "val", "idx", "count", "pre")
                    builder.external(key, M if batched else len(a), a.shape[1], DTYPES.get(a.dtype, schema.REAL))
                builder.op("encode", **{key: key for key in memory}, kind=schema.CODE_KINDS.index("threshold"), k=1,
                           k_scalar=-1, overflow=-1, margin=margin, path=path)  # fmt: skip
                plan = builder.build()
                job = Job([*plan.allocate(), *memory.values()], (), m, values=np.zeros((1, 1)), n_threads=threads)
                backend.run(backend.compile(plan), job)
                keep = (np.arange(capacity) < memory["count"]) & (memory["count"] <= capacity)
                got.append([memory["count"], *(np.where(keep, memory[key], 0) for key in ("val", "idx", "pre")
                                               if key in memory)])  # fmt: skip
            for other in got[1:]:
                for a, b in zip(got[0], other, strict=True):
                    np.testing.assert_array_equal(a, b)
            assert got[0][0][m // 2] == -1


@pytest.mark.parametrize("sparsity", [ReLUCode(0.01), JumpReLU(), Gated(), Gated(detached=False)],
                         ids=["relu", "jumprelu", "gated", "own gate"])  # fmt: skip
def test_steps(native_backend, sparsity):
    """Steps of training: the same bits for any number of threads, and close to the reference."""
    n, p, m = 530, 130, 300
    network = sparse_network(p, n_components=n, sparsity=sparsity)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(m, p)).astype(np.float32)
    theta = {}
    for name, rows, columns in network.parameters:
        theta[name] = rng.normal(size=(rows, columns)) * (0.1 if rows == 1 else 1 / np.sqrt(p))
    if "threshold" in theta:
        theta["threshold"] -= 3  # its logarithm
    grads, level = [], []
    for backend, threads in ((native_backend, 1), (native_backend, 3), (get_backend("reference"), 1)):
        plan = sparse_training_plan(network, np.float32, m)
        memory = plan.allocate()
        for name, value in theta.items():
            plan.view(memory, name)[...] = value
        values, scalars = np.zeros((1, plan.n_values)), np.ones((1, plan.n_scalars))
        job = Job(memory, [Source(x)], m, phases=schema.GRADIENT, n_threads=threads, scalars=scalars, values=values)
        assert backend.run(backend.compile(plan), job) == 1
        grads.append(plan.view(memory, "grad").copy())
        level.append(values[0])
    assert level[0][L0] > n / 5
    np.testing.assert_array_equal(grads[0], grads[1])
    np.testing.assert_array_equal(level[0], level[1])
    # a z at its threshold may fall to either side: compared as a whole
    error = np.linalg.norm(grads[0].astype(float) - grads[2]) / np.linalg.norm(grads[2])
    assert error < 2e-3
