"""Records of codes on every backend and instruction set against the float64 reference; threads, parts, gradients."""

from functools import lru_cache

import numpy as np
import pytest
from conftest import assert_close, backend_named

from fastae import ops
from fastae.backends import get_backend
from fastae.catalog import INDEX, UPDATE_RULES
from fastae.plan import schema
from fastae.plan.fuse import fuse_updates
from fastae.plan.plan import Job, PlanBuilder

M = schema.BATCH_ROWS
DTYPES = {np.dtype(np.int32): schema.INT32, np.dtype(np.int64): schema.INT64, np.dtype(float): schema.FLOAT64}
CODE = {"val", "idx", "pre", "dval", "dz", "dtheta", "dgate", "dmag", "dr"}  # only entries mean something
BATCHED = CODE | {"count", "y", "target", "base", "weight", "dy", "x", "entry", "u", "coef"}
DOUBLE = {"factor"}

# rows, latents, features, segments, capacity of a segment
SIZES = [(1, 1, 1, 1, 1), (7, 33, 17, 1, 5), (64, 96, 48, 2, 8), (33, 7, 101, 1, 7), (300, 5, 400, 2, 3),
         (13, 1009, 129, 3, 31), (700, 3, 33, 1, 3), (3, 600, 530, 1, 520)]  # fmt: skip


def code(rng, m, n, segments, capacity):
    """idx, count: ascending within segments, some rows empty, some segments longer than fits; the rest is rubbish."""
    capacity = min(capacity, n)
    idx = np.full((m, segments * capacity), 2**30, np.int32)
    count = rng.integers(0, capacity + 1, (m, segments)).astype(np.int32)
    count[rng.random((m, segments)) < 0.3] = capacity
    if m > 2:
        count[1], count[2, 0] = -1, capacity + 2
    for r in range(m):
        for q in range(segments):
            k = min(max(count[r, q], 0), capacity)
            weight = np.where(np.arange(n) == n // 2, 50.0, 1.0)  # one latent is in most rows
            idx[r, q * capacity : q * capacity + k] = np.sort(rng.choice(n, k, False, weight / weight.sum()))
    return idx, count


def case(sizes, seed=0):
    """Arrays of every slot that ops of codes know, float64."""
    m, n, p, segments, capacity = sizes
    rng = np.random.default_rng(seed)
    idx, count = code(rng, m, n, segments, capacity)
    width = idx.shape[1]
    a = {"idx": idx, "count": count}
    mask = entry_mask(a)
    for name in ("pre", "dval", "dgate", "dz", "dtheta", "dmag", "dr"):
        a[name] = rng.normal(size=(m, width))
    a["val"] = np.maximum(rng.normal(size=(m, width)), 0)
    for name in ("pre", "val", "dval", "dgate"):
        a[name][~mask] = np.nan
    a["w"] = rng.normal(size=(n, p))
    a["w"][n // 3] *= 1e-3
    for name in ("y", "target", "base", "dy"):
        a[name] = rng.normal(size=(m, p))
    a["b"], a["dbias"], a["sum_p"] = (rng.normal(size=(1, p)) for _ in range(3))
    a["weight"] = rng.uniform(0.5, 2, (m, 1))
    a["n_dead"] = np.array([[3]], np.int32)
    for name in ("threshold", "r", "b_gate", "b_mag", "db", "sum"):
        a[name] = 0.3 * rng.normal(size=(1, n))
    start = np.zeros((1, n + 1), np.int64)
    a |= {"start": start, "entry": np.zeros((m, width), np.int64)}
    if n > 5:
        a["groups"] = np.array([[n // 4, n // 4, n // 2, n - 2]], np.int32)
    else:
        a["groups"] = np.array([[n]], np.int32)
    a["ends"] = np.where(np.arange(a["groups"].size) == a["groups"].size - 1, n, a["groups"]).astype(np.int32)
    return a


def entry_mask(a):
    width = a["idx"].shape[1] // a["count"].shape[1]
    return (np.arange(width) < a["count"][:, :, None]).reshape(len(a["count"]), -1)


def run(backend, dtype, m, records, arrays, threads=1, scalars=None, n_values=2, wide=False):
    """Runs records (kind, attributes, slots) over copies of the arrays; returns them and the values.

    wide: every array with a row per batch row is columns of a wider one, so that its rows lie apart.
    """
    real = {name: a if a.dtype.kind == "i" or name in DOUBLE else a.astype(dtype) for name, a in arrays.items()}
    builder = PlanBuilder(dtype, m)
    builder.n_values, builder.n_scalars = n_values, 0 if scalars is None else scalars.shape[1]
    memory, names = {}, {}
    for name, a in real.items():
        kind = DTYPES[a.dtype] if a.dtype.kind == "i" or name in DOUBLE else schema.REAL
        rows = M if name in BATCHED else len(a)
        if wide and name in BATCHED and name != "entry":
            memory[name] = np.ascontiguousarray(np.pad(a, ((0, 0), (3, 2))))
            builder.external(name, rows, a.shape[1] + 5, kind)
            names[name] = builder.part(name, 3, a.shape[1])
        else:
            memory[name] = a.copy()
            names[name] = builder.external(name, rows, a.shape[1], kind)
    for kind, attributes, slots in records:
        builder.op(kind, **{slot: names[name] for slot, name in slots.items()}, **attributes)
    plan, values = builder.build(), np.zeros((1, max(n_values, 1)))
    job = Job([*plan.allocate(), *memory.values()], (), m, phases=schema.GRADIENT, values=values, n_threads=threads,
              scalars=scalars)  # fmt: skip
    assert backend.run(backend.compile(plan), job) == 1
    if wide:
        for name in memory:
            if memory[name].shape != real[name].shape:
                assert not memory[name][:, :3].any() and not memory[name][:, -2:].any()
                memory[name] = memory[name][:, 3:-2]
    return memory, values[0]


def slots_of(*names, **renamed):
    return {name: name for name in names} | renamed


CODE_SLOTS = ("val", "idx", "count")
BY_LATENT = ("by_latent", {}, slots_of("idx", "count", "start", "entry"))
ENTRY_SLOTS = ("start", "entry")


def records(sizes):
    """(what is written, records): every attribute of every op."""
    _, n, p, _, capacity = sizes
    s = {"strength": 0.3, "value": 0}
    capacity = min(capacity, n)
    listed = {"capacity": capacity}
    yield "y", [("decode", {}, slots_of(*CODE_SLOTS, "w", "b", "y"))]
    yield "y", [("decode", {}, slots_of(*CODE_SLOTS, "w", "y"))]
    yield "x", [("decode", {}, slots_of(*CODE_SLOTS, "w", "b", "groups", y="x"))]
    yield "dval", [("code_grad", {}, slots_of("dy", "idx", "count", "w", "dval"))]
    yield "dval", [("code_grad", {}, slots_of("idx", "count", "w", "dval", dy="x", groups="ends"))]
    for norm in range(3):
        for k_aux in (0, 2, 7):
            attributes = {"scale": 0.7, "value": 0, "variance": 1, "norm": norm, "k_aux": k_aux}
            slots = slots_of("y", "target", "base", "weight", "n_dead", "dy")
            yield "dy", [("squared_error", attributes, slots)]
    plain = {"scale": 0.7, "value": 0, "variance": -1}
    yield "y", [("squared_error", plain, slots_of("y", "target", dy="y"))]
    yield "", [("squared_error", plain | {"variance": 1}, slots_of("y", "target"))]
    yield "x", [("suffix_sum", {"blocks": 4 if n > 5 else 1}, slots_of("x"))]
    for scalar in (-1, 1):
        yield "dval", [("code_penalty", s | {"scalar": scalar, "spaces": 1}, slots_of(*CODE_SLOTS, "w", "dval"))]
        yield "dval", [("code_penalty", s | {"scalar": scalar}, slots_of(*CODE_SLOTS, "dval"))]
    if p % 3 == 0:
        yield "dval", [("code_penalty", s | {"scalar": -1, "spaces": 3}, slots_of(*CODE_SLOTS, "w", "dval"))]
    yield "dval", [("relu_grad", {}, slots_of("val", "count", "dval"))]
    jump = slots_of("pre", "val", "idx", "count", "threshold", "dval", "dz", "dtheta")
    for penalty in range(len(schema.JUMP_PENALTIES)):
        for logarithm in (0, 1):
            attributes = s | {"bandwidth": 0.4, "target": 3.0, "p0": 1.3, "l0": 1, "scalar": 1 - 2 * logarithm,
                              "penalty": penalty, "logarithm": logarithm, "above": penalty % 2}  # fmt: skip
            yield "dz dtheta", [("jumprelu_grad", attributes, jump)]
            yield "dval dtheta", [("jumprelu_grad", attributes, jump | {"dz": "dval", "w": "w"})]
    yield "val", [("gated_code", {}, slots_of("pre", "idx", "count", "r", "b_gate", "b_mag", "val"))]
    gated = slots_of("pre", "val", "idx", "count", "r", "b_gate", "dval", "dgate", "dz", "dmag", "dr")
    yield "dgate dz dmag dr", [("gated_grad", s | {"scalar": 0}, gated)]
    yield "dgate dz dval dr", [("gated_grad", s | {"scalar": -1}, gated | {"w": "w", "dmag": "dval"})]
    yield "start entry", [BY_LATENT]
    for unit in (0, 1):
        slots = slots_of(*ENTRY_SLOTS, "w", coef="dval", u="dy", dw="out_w", db="db")
        yield "out_w db", [BY_LATENT, ("latent_grad", listed | {"unit": unit}, slots)]
        for p0 in (0.0, 0.8):
            factor = ("norm_factor", {"strength": 0.3, "scalar": -unit, "p0": p0},
                      slots_of("val", *ENTRY_SLOTS, "w", "factor"))  # fmt: skip
            yield "out_w factor", [BY_LATENT, factor,
                                   ("latent_grad", listed | {"unit": unit}, slots | {"factor": "factor"})]  # fmt: skip
    yield "db", [BY_LATENT, ("latent_grad", listed, slots_of(*ENTRY_SLOTS, "w", coef="dval", db="db"))]
    blocks = slots_of(*ENTRY_SLOTS, "w", "u", coef="dval", dw="out_w")
    yield "out_w", [BY_LATENT, ("latent_grad", listed, blocks)]
    yield "out_w", [BY_LATENT, ("latent_grad", listed, blocks | {"groups": "ends"})]
    for add in (0, 1):
        yield "sum", [BY_LATENT, ("latent_sum", {"add": add}, slots_of(*ENTRY_SLOTS, "sum", coef="dval"))]
        yield "sum_p", [("bias_grad", {"add": add}, slots_of("dy", db="sum_p"))]
    yield "dbias", [("pre_bias_grad", {"scale": 0.5}, slots_of("db", "w", "dbias"))]
    yield "since list n_dead", [("fired", {}, slots_of(*CODE_SLOTS, "since")),
                                ("dead", {"limit": sizes[0] + 3}, slots_of("since", "list", "n_dead"))]  # fmt: skip
    yield "out_w", [("average", {"decay": 0.9}, slots_of("w", mean="out_w"))]
    yield "w", [("project", {"kind": schema.PROJECT_KINDS.index("unit")}, slots_of("w"))]


def needed(arrays, sizes, chain, seed=1):
    """The arrays that records name, with those whose shape depends on them."""
    m, n, p, segments, _ = sizes
    rng = np.random.default_rng(seed)
    blocks = arrays["groups"].shape[1]
    extra = {"out_w": rng.normal(size=(n, p)), "x": rng.normal(size=(m, blocks * p)),
             "u": rng.normal(size=(m, (blocks + segments - 1) * p)), "factor": np.ones((1, n)),
             "since": rng.integers(0, 9, (1, n)), "list": np.full((1, n), -1, np.int32)}  # fmt: skip
    if not any(
        "groups" in slots for _, _, slots in chain
    ):  # u: a block for the first segment, one for each further one
        extra["u"] = extra["u"][:, : segments * p] if segments > 1 else extra["u"][:, :p]
    return {name: (arrays | extra)[name] for _, _, slots in chain for name in slots.values()}


def compare(got, want, names, arrays, dtype, length):
    mask = entry_mask(arrays) if "count" in arrays and "idx" in arrays else None
    for name in names.split():
        actual, expected = got[name], want[name]
        if name in CODE and mask is not None:
            actual, expected = actual[mask], expected[mask]
        if name == "entry":
            total = got["start"][0, -1]
            actual, expected = actual.reshape(-1)[:total], expected.reshape(-1)[:total]
        if actual.dtype.kind == "i":
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        else:
            scale = max(1.0, np.abs(expected).max(initial=0.0))
            assert_close(actual.astype(dtype), expected, length=length, scale=scale)


SCALARS = np.array([[0.8, 1.7]])


@lru_cache
def expected_results(sizes):
    """(what is written, records, arrays, the reference's arrays and values) of all records."""
    every = case(sizes)
    results = []
    for written, chain in records(sizes):
        arrays = needed(every, sizes, chain)
        want, values = run(get_backend("reference"), np.float64, sizes[0], chain, arrays, scalars=SCALARS)
        results.append((written, chain, arrays, want, values))
    return results


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_records(native_backend, sizes, dtype, wide):
    for written, chain, arrays, want, expected in expected_results(sizes):
        got, values = run(native_backend, dtype, sizes[0], chain, arrays, scalars=SCALARS, wide=wide)
        # |t - mean t|^2 of one row is rounding
        np.testing.assert_allclose(values, expected, rtol=400 * np.finfo(dtype).eps, atol=1e-12, err_msg=chain[-1][0])
        compare(got, want, written, arrays, dtype, 4 * max(sizes))


@pytest.mark.parametrize("sizes", [(300, 5, 400, 2, 3), (257, 1009, 129, 1, 61)], ids=str)
def test_threads_change_no_bit(native_backend, sizes):
    every = case(sizes)
    for _, chain in records(sizes):
        arrays = needed(every, sizes, chain)
        one, value = run(native_backend, np.float32, sizes[0], chain, arrays, scalars=SCALARS)
        for threads in (2, 3, 7):
            many, other = run(native_backend, np.float32, sizes[0], chain, arrays, threads, scalars=SCALARS)
            np.testing.assert_array_equal(value, other)
            for name in arrays:
                np.testing.assert_array_equal(one[name], many[name], err_msg=f"{chain[-1]}: {name}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_instruction_sets_give_the_same_bits(sizes, dtype):
    both = [backend_named(isa) for isa in ("avx2", "avx512")]
    every = case(sizes)
    for _, chain in records(sizes):
        arrays = needed(every, sizes, chain)
        (one, value), (other, second) = (run(b, dtype, sizes[0], chain, arrays, scalars=SCALARS) for b in both)
        np.testing.assert_array_equal(value, second)
        for name in arrays:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{chain[-1]}: {name}")


CHAIN = (("decode", {}, slots_of(*CODE_SLOTS, "w", "b", "y")),
         ("squared_error", {"scale": 0.7, "value": 0, "variance": 1, "norm": 1},
          slots_of("y", "target", "base", "weight", "dy")),
         ("code_grad", {}, slots_of("dy", "idx", "count", "w", "dval")))  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_that_go_through_three_ops_at_once_get_the_same_bits(native_backend, sizes):
    arrays = needed(case(sizes), sizes, CHAIN)
    together, value = run(native_backend, np.float32, sizes[0], CHAIN, arrays, threads=3)
    apart, values = arrays, np.zeros(2)
    for record in CHAIN:
        names = set(record[2].values())
        done, own = run(native_backend, np.float32, sizes[0], [record], {n: apart[n] for n in names})
        apart, values = apart | done, values + own
    np.testing.assert_array_equal(value, values)
    for name in arrays:
        np.testing.assert_array_equal(together[name], apart[name].astype(together[name].dtype))
    want, expected = run(get_backend("reference"), float, sizes[0], CHAIN, arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-9)
    compare(together, want, "y dy dval", arrays, np.float32, 4 * max(sizes))


# ---- gradients of the reference, by finite differences ---------------------------------------------------------------


def check_gradient(function, x, gradient, *, samples=8, step=1e-6):
    """Central differences of function(x) against its gradient at some elements."""
    rng = np.random.default_rng(0)
    assert np.abs(gradient).max() > 0
    for i in rng.permutation(np.flatnonzero(gradient))[:samples]:
        moved = []
        for sign in (1, -1):
            y = x.copy()
            y.reshape(-1)[i] += sign * step
            moved.append(function(y))
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(gradient.reshape(-1)[i], rel=2e-5, abs=1e-8)


def reference(chain, arrays, m=33):
    return run(get_backend("reference"), float, m, chain, arrays, scalars=SCALARS)


GRADIENT_SIZES = (33, 40, 15, 2, 6)


@pytest.mark.parametrize(("norm", "k_aux"), [(0, 0), (1, 7), (2, 2)])
def test_gradient_of_squared_error(norm, k_aux):
    """With a variance as divisor, which is taken as constant, as it does not depend on y."""
    attributes = {"scale": 0.7, "value": 0, "variance": -1, "norm": norm, "k_aux": k_aux}
    chain = [("squared_error", attributes, slots_of("y", "target", "base", "weight", "n_dead", "dy"))]
    arrays = needed(case(GRADIENT_SIZES), GRADIENT_SIZES, chain)
    dy = reference(chain, arrays)[0]["dy"]
    check_gradient(lambda y: reference(chain, arrays | {"y": y})[1][0], arrays["y"], dy)


def test_gradients_of_a_decoder_and_a_penalty_weighted_by_its_norms():
    """decode, squared_error and code_penalty in val and w: through code_grad, norm_factor and latent_grad."""
    listed = {"capacity": 6}
    chain = [*CHAIN[:1], ("squared_error", {"scale": 0.7, "value": 0, "variance": -1}, slots_of("y", "target", "dy")),
           CHAIN[2], ("code_penalty", {"value": 0, "scalar": 1, "strength": 0.3}, slots_of(*CODE_SLOTS, "w", "dval")),
           BY_LATENT,
           ("norm_factor", {"strength": 0.3, "scalar": 1}, slots_of("val", *ENTRY_SLOTS, "w", "factor")),
           ("latent_grad", listed, slots_of(*ENTRY_SLOTS, "w", "factor", coef="val", u="dy", dw="out_w")),
           ("bias_grad", {}, slots_of("dy", db="sum_p"))]  # fmt: skip
    every = case(GRADIENT_SIZES)
    arrays = needed(every, GRADIENT_SIZES, chain)
    got = reference(chain, arrays)[0]
    value = lambda name: lambda x: reference(chain, arrays | {name: x})[1][0]  # noqa: E731
    inside = entry_mask(arrays) & (arrays["val"] > 0)
    check_gradient(value("val"), arrays["val"], np.where(inside, got["dval"], 0))
    check_gradient(value("w"), arrays["w"], got["out_w"])
    check_gradient(value("b"), arrays["b"], got["sum_p"])


def test_gradients_of_the_saturating_penalty_and_of_gates():
    slots = slots_of("pre", "val", "idx", "count", "threshold", "w", "dval", "dz", "dtheta")
    attributes = {"value": 0, "l0": -1, "scalar": -1, "penalty": 1, "bandwidth": 1e-9, "strength": 0.3, "p0": 1.3}
    chain = [("jumprelu_grad", attributes, slots)]
    arrays = needed(case(GRADIENT_SIZES), GRADIENT_SIZES, chain)
    mask = entry_mask(arrays)
    arrays["dval"][...] = 0
    arrays["threshold"][...] = -9  # all entries count
    got = reference(chain, arrays)[0]
    check_gradient(lambda x: reference(chain, arrays | {"val": x})[1][0], arrays["val"], np.where(mask, got["dz"], 0))

    gated = [("gated_code", {}, slots_of("pre", "idx", "count", "r", "b_gate", "b_mag", "val")),
             ("gated_grad", {"value": 0, "scalar": 1, "strength": 0.3},
              slots_of("pre", "val", "idx", "count", "r", "b_gate", "w", "dval", "dgate", "dz", "dmag", "dr")),
             ("by_latent", {}, slots_of("idx", "count", *ENTRY_SLOTS)),
             ("latent_sum", {}, slots_of(*ENTRY_SLOTS, coef="dr", sum="sum"))]  # fmt: skip
    arrays = needed(case(GRADIENT_SIZES), GRADIENT_SIZES, gated)
    slope, gate = arrays["dval"].copy(), arrays["dgate"].copy()

    def loss(changed):  # what has the gradients that come in, and the penalty
        got, values = reference(gated, arrays | changed)
        now = (arrays | changed)["pre"]
        return values[0] + np.where(mask, slope * got["val"] + gate * now, 0).sum()

    got = reference(gated, arrays)[0]
    # the gate's own share of pre - b_gate: with b_gate fixed, pre moves both
    check_gradient(lambda x: loss({"pre": x}), arrays["pre"], np.where(mask, got["dz"], 0))
    check_gradient(lambda x: loss({"r": x}), arrays["r"], got["sum"])


# ---- public functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "n", "p", "s"), [(1, 1, 1, 1), (7, 33, 17, 5), (64, 512, 96, 8), (5, 9, 3, 0)])
def test_public_functions(backend, m, n, p, s, dtype):
    rng = np.random.default_rng(0)
    values, w, b, dy = (rng.normal(size=shape).astype(dtype) for shape in ((m, s), (n, p), (p,), (m, p)))
    indices = rng.integers(0, n, (m, s))  # int64, in any order
    dense = np.zeros((m, n))
    np.add.at(dense, (np.arange(m)[:, None], indices), values)
    length = 4 * max(m, s, p)
    y = np.empty((m, p), dtype)
    assert ops.decode(values, indices, w, b, out=y, backend=backend) is y
    assert_close(y, dense @ w + b, length=length, scale=10)
    assert_close(ops.decode(values, indices, w, backend=backend, n_threads=2), dense @ w, length=length, scale=10)
    expected = np.take_along_axis(dy.astype(float) @ w.T, indices, axis=1)
    assert_close(ops.code_grad(dy, indices, w, backend=backend), expected, length=length, scale=10)
    assert_close(ops.latent_grad(values, indices, dy, n, backend=backend), dense.T @ dy, length=length, scale=10)


def test_public_functions_refuse_what_does_not_fit():
    values, indices, w = np.ones((2, 3), np.float32), np.array([[0, 1, 2], [3, 4, 5]]), np.ones((6, 4), np.float32)
    with pytest.raises(ValueError, match=r"indices hold 5; wanted 0 \.\. 4"):
        ops.decode(values, indices, w[:5])
    with pytest.raises(ValueError, match="indices hold -1"):
        ops.code_grad(np.ones((2, 4)), indices - 1, w)
    with pytest.raises(ValueError, match="indices hold 5"):
        ops.latent_grad(values, indices, np.ones((2, 4)), 5)
    with pytest.raises(TypeError, match="wanted integers"):
        ops.decode(values, indices.astype(float), w)
    with pytest.raises(ValueError, match=r"values has shape \(2, 2\); wanted \(2, 3\)"):
        ops.decode(values[:, :2], indices, w)
    with pytest.raises(ValueError, match=r"u has shape \(3, 4\); wanted \(2, 4\)"):
        ops.latent_grad(values, indices, np.ones((3, 4)), 6)
    with pytest.raises(ValueError, match="out shares memory"):
        ops.decode(values, indices, w, out=w[:2])


# ---- updates within the gradient ------------------------------------------------------------------------------------

BOTH = schema.GRADIENT | schema.UPDATE


def step_plan(dtype, sizes, rule="adam", after=()):
    """A step of a sparse autoencoder behind its encoder: both gradients, pre-bias, update, unit rows."""
    m, n, p, segments, capacity = sizes
    width = segments * min(capacity, n)
    b = PlanBuilder(dtype, m)
    for space, prefix in ((schema.THETA, ""), (schema.GRAD, "d")):
        for name, rows, columns in (("w_enc", n, p), ("b_enc", 1, n), ("w_dec", n, p), ("b_dec", 1, p)):
            b.buffer(prefix + name, rows, columns, space)
    states = UPDATE_RULES[INDEX["update"][rule]].states
    b.flat(states)
    for name, columns, code in (("x", p, 0), ("val", width, 0), ("idx", width, schema.INT32),
                                ("count", segments, schema.INT32)):  # fmt: skip
        b.external(name, M, columns, code)
    for name in ("y", "dval"):
        b.buffer(name, M, p if name == "y" else width)
    b.buffer("factor", 1, n, dtype=schema.FLOAT64)
    if any(kind == "average" for kind, _ in after):
        b.buffer("mean", n, p)
    b.buffer("start", 1, n + 1, dtype=schema.INT64)
    b.buffer("entry", M, width, dtype=schema.INT64)
    listed = {"start": "start", "entry": "entry"}
    code = {"val": "val", "idx": "idx", "count": "count"}
    b.op("decode", **code, w="w_dec", b="b_dec", y="y")
    b.op("squared_error", y="y", target="x", dy="y", value=b.value(), variance=-1, scale=0.5)
    b.op("code_grad", dy="y", idx="idx", count="count", w="w_dec", dval="dval")
    b.op("code_penalty", **code, w="w_dec", dval="dval", value=b.value(), scalar=-1, strength=0.1)
    b.op("relu_grad", val="val", count="count", dval="dval")
    b.op("by_latent", idx="idx", count="count", **listed)
    b.op("bias_grad", dy="y", db="db_dec")
    b.op("norm_factor", val="val", w="w_dec", factor="factor", strength=0.1, scalar=-1, **listed)
    listed["capacity"] = width // segments
    b.op("latent_grad", coef="val", u="y", w="w_dec", dw="dw_dec", factor="factor", unit=1, **listed)
    b.op("latent_grad", coef="dval", u="y", w="w_enc", db="db_enc", **listed)
    b.op("pre_bias_grad", db="db_enc", w="w_enc", dbias="db_dec", scale=0.7)
    b.op("latent_grad", coef="dval", u="x", w="w_enc", dw="dw_enc", **listed)
    scalar = b.scalars(len(UPDATE_RULES[INDEX["update"][rule]].step))
    b.op("update", schema.UPDATE, w="theta", g="grad", rule=INDEX["update"][rule], scalar=scalar, p0=0.9, p1=0.99,
         p2=1e-8, **{f"s{i}": f"state_{name}" for i, name in enumerate(states)})  # fmt: skip
    for kind, attributes in after:
        b.op(kind, schema.UPDATE, **attributes)
    return b.build()


UNIT = ("project", {"w": "w_dec", "kind": schema.PROJECT_KINDS.index("unit")})
LIMIT = ("project", {"w": "w_dec", "kind": schema.PROJECT_KINDS.index("range"), "p0": -0.1, "p1": 0.1})
MEAN = ("average", {"w": "w_dec", "mean": "mean", "decay": 0.5})


def fused_weights(plan):
    return [op.slots["w"] for op in plan.ops if op.kind == "latent_grad" and op.ints["fused"]]


def test_which_weights_of_codes_are_fused():
    def weights(*after):
        return fused_weights(fuse_updates(step_plan(np.float32, (9, 20, 7, 1, 3), after=after)))

    assert weights() == weights(UNIT) == weights(UNIT, LIMIT) == weights(UNIT, MEAN) == ["w_dec", "w_enc"]
    assert weights(LIMIT) == weights(MEAN) == ["w_dec", "w_enc"]
    assert weights(LIMIT, UNIT) == weights(MEAN, UNIT) == ["w_enc"]


@pytest.mark.parametrize("rule", ["sgd", "adam", "amsgrad", "adamw"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("after", [(UNIT,), (UNIT, LIMIT), (LIMIT, UNIT), (UNIT, UNIT), ()], ids=len)
@pytest.mark.parametrize("sizes", [(50, 200, 37, 1, 5), (700, 130, 101, 2, 9)], ids=str)
def test_fused_updates_give_the_bits_of_separate_ones(native_backend, sizes, after, dtype, rule):
    m, n, p, segments, capacity = sizes
    rng = np.random.default_rng(3)
    idx, count = code(rng, m, n - 20, segments, capacity)  # the last latents have no entries
    external = [rng.normal(size=(m, p)).astype(dtype), np.maximum(rng.normal(size=idx.shape), 0).astype(dtype), idx,
                count]  # fmt: skip
    plans = [step_plan(dtype, sizes, rule, after)] * 2
    plans[0] = fuse_updates(plans[0])
    assert len(fused_weights(plans[0])) == 2 - (after[:1] == (LIMIT,))
    results = []
    for plan, phases, threads in zip(plans, ([BOTH], [schema.GRADIENT, schema.UPDATE]), (3, 1), strict=True):
        memory = plan.allocate()
        start = np.random.default_rng(4)
        for name in ["theta", *(b.name for b in plan.buffers if b.name.startswith("state_"))]:
            view = plan.view(memory, name)
            view[...] = np.abs(start.normal(size=view.shape)) * 0.1
        plan.view(memory, "w_dec")[n - 3] = 0
        values = np.zeros((1, plan.n_values))
        for phase in phases:
            job = Job([*memory, *external], (), m, phases=phase, values=values, n_threads=threads,
                      scalars=np.full((1, plan.n_scalars), 0.01))  # fmt: skip
            assert native_backend.run(native_backend.compile(plan), job) == 1
        results.append([memory[schema.THETA], memory[schema.STATE], plan.view(memory, "db_dec")])
        if after == (UNIT,):
            norms = np.linalg.norm(plan.view(memory, "w_dec").astype(float), axis=1)
            np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
