"""Device kernels of the dense ops, on the host: bit for bit the compiled backend's, in any order of threads."""

import itertools
import shutil

import cuda_host
import numpy as np
import pytest
from conftest import SLOW, backend_named
from cuda_host import HostDriver, most_threads
from test_records import RECORDS, M, arrays_of

import fastae
from fastae.backends.cuda import CudaBackend, dense, kernel_table, tensor
from fastae.backends.cuda.binder import Binder
from fastae.backends.cuda.launches import Beside, Launch
from fastae.backends.cuda.record import LAUNCH, STEP
from fastae.catalog import ACTIVATIONS, INDEX, LOSSES, PENALTIES, UPDATE_RULES
from fastae.likelihoods import LIKELIHOODS
from fastae.plan import schema
from fastae.plan.build import training_plan
from fastae.plan.plan import Job, PlanBuilder
from fastae.plan.sparse import sparse_training_plan
from fastae.spec.network import dense_network
from fastae.spec.sparse import sparse_network

SIZES = [(1, 1, 1), (7, 33, 17), (300, 67, 3), (13, 129, 200)]

# as in test_records, and more letters: h: 2n columns, H: 3n; t: counts with a few NaN; i: row ids
LOSS = {"y": "M n", "target": "M n", "weight": "M 1 +", "dy": "M n", "row_value": "M 1 d"}
MORE = [
    *[("dense", {"activation": i, "p0": 0.6, "rate": rate, "stream": 2},
       {"x": "M k", "w": "n k", "b": "1 n", "y": "M n", "rows": "M 1 i"} | ({"z": "M n"} if rate else {}))
      for i, rate in zip(range(len(ACTIVATIONS)), [0, 0.3] * 7, strict=False)],
    *[("dense_grad", {"activation": i, "p0": 0.6, "rate": rate, "stream": 3},
       {"dz": "M n", "x": "M k", "w": "n k", "dx": "M k", "dw": "n k", "db": "1 n", "saved": "M k", "rows": "M 1 i"})
      for i, rate in zip(range(len(ACTIVATIONS)), [0.3, 0] * 7, strict=False)],
    ("activation_grad", {"activation": INDEX["activation"]["relu"], "rate": 0.4},
     {"dy": "M n", "saved": "M n", "dz": "M n", "rows": "M 1 i"}),
    ("softmax", {}, {"z": "M n", "y": "M n"}),
    ("softmax_grad", {}, {"dy": "M n", "y": "M n", "dz": "M n"}),
    ("dropout", {"stream": 1, "rate": 0.25}, {"x": "M n", "y": "M n", "rows": "M 1 i"}),
    *[("noise", {"kind": i, "stream": 4, "amount": 0.3, "low": -1, "high": 2},
       {"x": "M n", "y": "M n", "rows": "M 1 i"}) for i in range(len(schema.NOISE_KINDS))],
    *[("transform_input", {"transform": i, "missing": missing}, {"x": "M n t", "y": "M n", "target": "M n"})
      for i, missing in ((0, 1.0), (1, np.nan))],
    *[("loss", {"loss": i, "masked": masked, "accumulate": masked, "p0": 0.5, "scale": 0.7},
       LOSS | {"target": "M n" if masked == 0 else "M n t"})
      for i in (*range(len(LOSSES)), schema.MULTINOMIAL, schema.COSINE) for masked in range(3)],
    *[("likelihood", {"likelihood": i, "masked": masked, "scale": 0.7},
       LOSS | {"target": "M n t", "y": f"M {'hH'[i]}", "dy": f"M {'hH'[i]}", "size": "M 1"})
      for i in range(len(LIKELIHOODS)) for masked in (1, 2)],
    ("size_factor", {}, {"target": "M n t", "size": "M 1"}),
    *[("distribution", {"likelihood": 1, "output": i}, {"y": "M n", "size": "M 1", "out": "M n"}) for i in range(3)],
    *[("activity", {"penalty": i, "p0": 0.3, "p1": 0.4}, {"h": "M n", "dh": "M n", "row_value": "M 1 d"})
      for i in range(len(PENALTIES))],
    ("activity", {"penalty": 0, "p0": 0.3}, {"h": "M n", "dh": "M n"}),
    ("kl_sparsity", {"rho": 0.1, "weight": 0.3}, {"h": "M n +", "dh": "M n", "mean": "1 n d"}),
    *[("weight_penalty", {"penalty": i, "p0": 0.3, "p1": 0.4}, {"w": "n k", "dw": "n k"})
      for i in range(len(PENALTIES))],
    *[("clip_gradient", {"mode": mode, "limit": 0.9}, {"g": "n k"}) for mode in range(2)],
    ("clip_gradient", {"mode": 1, "limit": 1e9}, {"g": "n k"}),
    *[("project", {"kind": i, "penalty": 2, "p0": 0.4, "p1": 0.5}, {"w": "n k"})
      for i in range(len(schema.PROJECT_KINDS))],
    *[("update", {"rule": i, "p0": 0.9, "p1": 0.99, "p2": 1e-6}, {"w": "n k", "g": "n k"}
       | {f"s{q}": "n k +" for q in range(len(rule.states))}) for i, rule in enumerate(UPDATE_RULES)],
]  # fmt: skip


def expanded(slots, n):
    """Shapes in the letters that test_records knows, without the flags of this file."""
    out = {}
    for name, text in slots.items():
        rows, columns, *flags = text.split()
        columns = {"h": str(2 * n), "H": str(3 * n)}.get(columns, columns)
        out[name] = " ".join([rows, columns, *(f for f in flags if f in "d+")])
    return out


def inputs(slots, sizes, dtype):
    shapes = expanded(slots, sizes[1])
    arrays = arrays_of(shapes, sizes, dtype)
    rng = np.random.default_rng(1)
    for name, text in slots.items():
        flags = text.split()[2:]
        if "i" in flags:
            arrays[name] = rng.integers(0, 1 << 40, (sizes[0], 1))
        elif "t" in flags:
            counts = rng.poisson(1.5, arrays[name].shape).astype(dtype)
            arrays[name] = np.where(rng.random(counts.shape) < 0.3, dtype(np.nan), counts)
    return arrays


def outcome(backend, dtype, m, kind, attributes, arrays, wide=(), valued=True):
    """All arrays after one record, and the value; arrays named in ``wide`` are columns of wider buffers."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    builder = PlanBuilder(dtype, m)
    codes = {np.dtype(np.int64): schema.INT64, np.dtype(np.float16): schema.FLOAT16, np.dtype(np.int8): schema.INT8}
    given = {}
    for name, array in arrays.items():
        code = codes.get(array.dtype, schema.REAL)
        if code == schema.REAL and array.dtype == np.float64 and name in DOUBLES:
            code = schema.FLOAT64
        batch = M if name in BATCH and len(array) == m else len(array)
        if name in wide:
            whole = np.full((len(array), array.shape[1] + 8), 7, array.dtype)
            whole[:, 3 : 3 + array.shape[1]] = array
            builder.external(f"{name}_whole", batch, whole.shape[1], code)
            given[name], arrays[name] = builder.part(f"{name}_whole", 3, array.shape[1]), whole
        else:
            given[name] = builder.external(name, batch, array.shape[1], code)
    value = {"value": builder.value()} if valued and "value" in schema.KIND[kind].ints else {}
    scalars = np.linspace(0.01, 0.05, 4)[None]
    more = {"scalar": builder.scalars(4)} if "scalar" in schema.KIND[kind].ints else {}
    builder.op(kind, **given, **attributes, **value, **more)
    plan, values = builder.build(), np.zeros((1, 1))
    job = Job([*plan.allocate(), *arrays.values()], (), m, phases=schema.GRADIENT, values=values, scalars=scalars,
              seed=11, epoch=3)  # fmt: skip
    assert backend.run(backend.compile(plan), job) == 1
    return arrays, values[0, 0]


DOUBLES = {"row_value", "mean", "deviation", "statistics", "factor"}
BATCH = {"x", "y", "z", "dy", "dz", "dx", "h", "h2", "dh", "dh2", "target", "weight", "size", "rows", "row_value",
         "saved", "sum", "out", "statistics", "coefficient", "centred", "product", "q", "scale"}  # fmt: skip
WEIGHTS = {"orthogonality", "projector"}  # whose product has no row per row of the batch


def compare(kind, attributes, slots, sizes, dtype, native, device, wide=()):
    arrays = inputs(slots, sizes, dtype)
    m = sizes[0] if kind not in WEIGHTS else 1
    want, expected = outcome(native, dtype, m, kind, attributes, arrays, wide)
    got, value = outcome(device, dtype, m, kind, attributes, arrays, wide)
    label = f"{kind} {attributes} {sizes} {np.dtype(dtype)}"
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-300, nan_ok=True), label
    for name in arrays:
        np.testing.assert_array_equal(got[name], want[name], err_msg=f"{label}: {name}")


@pytest.fixture(scope="module")
def native():
    """The widest set with fused multiply-adds that is here."""
    for name in ("avx512", "avx2", "neon"):
        try:
            return backend_named(name)
        except pytest.skip.Exception:
            continue
    pytest.skip("no compiled kernels with fused multiply-adds")


@pytest.fixture(scope="module")
def device():
    return backend_named("cuda_host")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bits_of_the_compiled_backend(native, device, sizes, dtype):
    for kind, attributes, slots in [*RECORDS, *MORE]:
        slots = {name: text.replace("3n", "H") for name, text in slots.items()}
        compare(kind, attributes, slots, sizes, dtype, native, device)


def test_columns_of_wider_buffers(native, device):
    """Every buffer that has a row per row of the batch may be a part of another one."""
    for kind, attributes, slots in [*RECORDS, *MORE]:
        slots = {name: text.replace("3n", "H") for name, text in slots.items()}
        parts = {name for name, text in slots.items() if text.startswith("M") and not {"1", "d", "2"} & {*text.split()}}
        compare(kind, attributes, slots, (37, 19, 23), np.float32, native, device, parts)


@pytest.mark.parametrize("seed", [1, 77, 4242])
def test_no_bit_depends_on_the_order_of_threads(native, seed):
    for kind, attributes, slots in RECORDS[3:9] + RECORDS[-6:] + MORE[26:30] + MORE[-12:]:
        slots = {name: text.replace("3n", "H") for name, text in slots.items()}
        compare(kind, attributes, slots, (67, 35, 41), np.float32, native, CudaBackend(HostDriver(1000 * seed)))


def test_sums_over_many_blocks(native, device):
    for kind, attributes, slots in MORE:
        if kind in ("weight_penalty", "clip_gradient", "update"):
            compare(kind, attributes, slots, (1, 71, 257), np.float32, native, device)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_biases_of_more_columns_than_a_grid_has_blocks(native, device, monkeypatch, dtype):
    monkeypatch.setattr(dense, "MOST_ASIDE", 1)
    sums = [("bias_grad", {"add": add}, {"dy": "M n", "db": "1 n"}) for add in (0, 1)]
    sums += [record for record in [*RECORDS, *MORE] if record[0] == "dense_grad"]
    for sizes in ((7, 133, 17), (300, 67, 3), (1300, 70, 2)):
        for kind, attributes, slots in sums:
            compare(kind, attributes, slots, sizes, dtype, native, device)


def test_products_in_bfloat16(native, device):
    records = [record for record in [*RECORDS, *MORE] if record[0] in ("dense", "dense_grad")]
    for (kind, attributes, slots), sizes in zip(records, 9 * [(7, 33, 17), (300, 70, 31), (1, 1, 1)], strict=False):
        compare(kind, attributes | {"bf16": 1}, slots, sizes, np.float32, native, device)


def compare_products(native, device, kind, attributes, slots, sizes, *, sums_rounded=True):
    """A layer's products by tensor cores beside the compiled backend's, within rounding."""
    arrays = inputs(slots, sizes, np.float32)
    case = np.float32, sizes[0], kind, attributes | {"bf16": 1}, arrays
    (want, _), (got, _) = (outcome(backend, *case) for backend in (native, device))
    if "db" in want and sums_rounded:  # of what products see
        rounded = ((arrays["dz"].view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
        want["db"] = rounded.sum(0, keepdims=True) + (arrays["db"] if attributes.get("add_bias") else 0)
    for name in want:
        atol = 1e-4 * np.abs(want[name]).max(initial=1)
        label = f"{kind} {attributes} {sizes}: {name}"
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=atol, err_msg=label)


@pytest.mark.parametrize("sizes", [(1, 8, 8), (7, 40, 16), (70, 136, 200), (33, 72, 264)], ids=str)
def test_products_by_tensor_cores(native, by_cublas, sizes):
    """With all that follows of a layer, whatever a tile and a slice of the depth leave over."""
    device = by_cublas(5)
    weights = {0: {"w": "n k"}, 1: {"w": "k n"}}
    records = [record for record in [*RECORDS, *MORE] if record[0] in ("dense", "dense_grad")]
    for i, (kind, attributes, slots) in enumerate(records):
        if sizes[0] < 10 or i % 5 == 0:  # all activations at small sizes
            for transposed, w in weights.items():
                turned = w | ({"dw": w["w"]} if "dw" in slots else {})
                compare_products(native, device, kind, attributes | {"transposed": transposed}, slots | turned, sizes)
    kernels = {"dense_bf16", "input_grad_bf16", "weight_grad_bf16"}
    if launched(device) is not None:
        assert {name for name in launched(device) if "dense" in name or "_grad" in name} == kernels


def launched(device):
    """Kernel → how often it was launched, on the host; None on a GPU."""
    return getattr(device.driver, "launched", None)


def chain_of_layers(backend, m, widths, training):
    """Outputs, or gradients of inputs, weights and biases, of layers with every kind of weight and activation."""
    builder, rng = PlanBuilder(np.float32, m), np.random.default_rng(3)
    arrays = {"given": rng.standard_normal((m, widths[0])), "rows": rng.integers(0, 1 << 40, (m, 1)),
              "delta": rng.standard_normal((m, widths[-1]))}  # fmt: skip
    given, rows = builder.external("given", M, widths[0]), builder.external("rows", M, 1, schema.INT64)
    y = [builder.buffer("y0", M, widths[0])]
    builder.op("activation", x=given, y=y[0])
    slots, before = [], {}
    for q, (k, n) in enumerate(itertools.pairwise(widths)):
        turned = q % 3 == 1
        w = builder.buffer(f"w{q}", *((k, n) if turned else (n, k)), schema.THETA)
        b = builder.buffer(f"b{q}", 1, n, schema.THETA) if q % 2 else None
        last = q == len(widths) - 2
        y.append(builder.external("out", M, n) if last else builder.buffer(f"y{q + 1}", M, n))
        if last:
            arrays["out"] = np.zeros((m, n))
        own = {"activation": (q + 1) % 5, "p0": 0.5, "rate": 0.3 * (q % 2), "stream": q}
        more = {"b": b} if b else {}
        builder.op("dense", x=y[q], w=w, y=y[q + 1], rows=rows, **more, **own, transposed=int(turned), bf16=1)
        slots.append((w, turned, before))
        before = own
    dz = builder.buffer("dz", M, widths[-1])
    builder.op("activation", x=builder.external("delta", M, widths[-1]), y=dz)
    for q in reversed(range(len(slots)) if training else ()):
        w, turned, before = slots[q]
        k, n = widths[q : q + 2]
        arrays |= {f"dw{q}": np.ones((k, n) if turned else (n, k)), f"db{q}": np.ones((1, n))}
        dw, db = builder.external(f"dw{q}", *arrays[f"dw{q}"].shape), builder.external(f"db{q}", 1, n)
        dx = builder.buffer(f"d{q}", M, k) if q else builder.external("dx", M, k)
        saved = {"saved": y[q], "rows": rows} | before if q else {}
        builder.op("dense_grad", dz=dz, x=y[q], w=w, dx=dx, dw=dw, db=db, **saved, transposed=int(turned), bf16=1,
                   add=q % 2, add_bias=int(q == 2))  # fmt: skip
        dz = dx
    if training:
        arrays["dx"] = np.zeros((m, widths[0]))
    plan = builder.build()
    spaces = plan.allocate()
    spaces[schema.THETA].view(np.float32)[:] = 0.2 * rng.standard_normal(plan.sizes[schema.THETA] // 4)
    outside = {b.name: arrays[b.name] for b in plan.buffers if b.space >= schema.EXTERNAL}
    outside = {name: a if a.dtype == np.int64 else a.astype(np.float32) for name, a in outside.items()}
    job = Job([*spaces, *outside.values()], (), m, phases=schema.GRADIENT, seed=11, epoch=3)
    assert backend.run(backend.compile(plan), job) == 1
    return outside


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("m", [1, 43])
@pytest.mark.parametrize(
    "widths",
    [
        (64, 40, 8),
        SLOW((264, 136, 72, 512, 16, 32)),
        SLOW((8, 304, 24, 200, 96, 48, 64, 128)),
        (512, 128, 32, 128, 512),
        SLOW((64, 128, 512)),
        (520, 64, 40, 48, 520),
    ],
    ids=str,
)
def test_narrow_layers_in_one_launch(native, by_cublas, monkeypatch, widths, m, training):
    devices = [by_cublas(seed) for seed in (2, 7)]
    got, again = (chain_of_layers(device, m, widths, training) for device in devices)
    want = chain_of_layers(native, m, widths, training)
    found = launched(devices[0])
    if found is not None:
        assert found["dense_bf16_chain"] == 1 and found.get("input_grad_bf16_chain", 0) == training
        assert ("dense_bf16" in found) is any(width > 512 for width in widths)
    monkeypatch.setattr(tensor, "CHAIN_BLOCKS", 0)
    device = by_cublas()
    apart = chain_of_layers(device, m, widths, training)
    assert "dense_bf16_chain" not in (launched(device) or ())
    for name in want:
        np.testing.assert_array_equal(got[name], again[name], err_msg=name)
        for other, within in ((want, 1e-2 if name.startswith("db") else 1e-4), (apart, 1e-4)):
            # a number that is rounded the other way moves some of the next layer's by as much
            scale = max(np.abs(other[name]).max(initial=0), 1e-3)
            np.testing.assert_allclose(got[name], other[name], rtol=0, atol=0.02 * scale, err_msg=name)
            assert np.abs(got[name] - other[name]).mean() <= within * np.abs(other[name]).mean(), name


def test_gradients_that_wait_keep_what_they_read(by_cublas):
    """A buffer that is written to again, and read in bfloat16 again, while a weight gradient waits for others."""
    m, n, k = 40, 16, 24
    rng = np.random.default_rng(0)
    given, x = rng.standard_normal((2, m, n)).astype(np.float32), rng.standard_normal((m, k)).astype(np.float32)
    builder = PlanBuilder(np.float32, m)
    a, b = builder.external("given", M, 2 * n), builder.external("rows", M, k)
    dz, copied = builder.buffer("dz", M, n), builder.buffer("x", M, k)
    builder.op("activation", x=builder.part(a, 0, n), y=dz)
    builder.op("activation", x=b, y=copied)
    for dw in ("first", "second"):
        builder.op("dense_grad", dz=dz, x=copied, dw=builder.external(dw, n, k), bf16=1)
        builder.op("add", x=dz, y=builder.part(a, n, n), sum=dz)
    plan, dw = builder.build(), [np.zeros((n, k), np.float32) for _ in range(2)]
    backend = by_cublas()
    job = Job([*plan.allocate(), np.concatenate(given, 1), x, *dw], (), m, phases=schema.GRADIENT)
    assert backend.run(backend.compile(plan), job) == 1
    np.testing.assert_allclose(dw[0], given[0].T @ x, atol=0.1)
    np.testing.assert_allclose(dw[1], (given[0] + given[1]).T @ x, atol=0.1)
    assert launched(backend) is None or launched(backend)["weight_grad_bf16"] == 2


@pytest.mark.parametrize("sizes", [(40, 12, 16), (40, 16, 12), (300, 72, 72)], ids=str)
def test_other_products_in_bfloat16_are_cublaslts(native, by_cublas, sizes):
    """Where rows do not lie on 16 bytes, and where tiles are many."""
    device = by_cublas(5, 1)
    record = next(record for record in MORE if record[0] == "dense_grad")
    compare_products(native, device, *record, sizes, sums_rounded=sizes[1] % 8 == sizes[2] % 8 == 0)
    assert not [name for name in launched(device) or () if name in ("dense_bf16", "input_grad_bf16")]


def test_not_finite_and_extreme_numbers(native, device):
    """Losses, activations and softmax of NaN, infinities, zeros of both signs and numbers near the limits."""
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38, 88.7, -104], np.float32)
    for kind, attributes, slots in MORE:
        if kind not in ("loss", "likelihood", "dense", "softmax", "activation_grad", "transform_input", "project"):
            continue
        arrays = inputs(slots, (40, 13, 5), np.float32)
        rng = np.random.default_rng(2)
        for name, array in arrays.items():
            if array.dtype == np.float32 and name not in ("w", "weight"):
                array[::3] = rng.choice(special, array[::3].shape)
        case = np.float32, 40 if kind != "project" else 1, kind, attributes, arrays
        (want, _), (got, _) = (outcome(backend, *case, valued=False) for backend in (native, device))
        for name in arrays:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{kind} {attributes}: {name}")


# ---- that the shim finds a missing barrier ---


def changed(tmp_path, file, old, new, kernels):
    """A driver over a copy of the sources with one place changed, and only some files of kernels."""
    sources = tmp_path / "csrc"
    shutil.copytree(cuda_host.SOURCES, sources)
    text = (sources / "cuda" / file).read_text()
    assert text.count(old) == 1
    (sources / "cuda" / file).write_text(text.replace(old, new))
    (sources / "cuda" / "kernels.cu").write_text("".join(f'#include "cuda/{name}"\n' for name in kernels))
    return HostDriver(1, "-O0", sources=sources)


BARRIER = "__syncthreads();"


def sum_of_a_block(driver, threads=1024, rows=1):
    """`mean_value` of 1,000 numbers, over a grid of so many rows of blocks."""
    numbers, value, state, record = np.arange(1000.0), np.zeros(1), np.zeros(1, STEP), np.zeros(1, LAUNCH)
    state["n_values"], state["values"] = 1, value.ctypes.data
    record["step"], record["m"], record["work"] = state.ctypes.data, len(numbers), numbers.ctypes.data
    driver.launch(np.dtype(np.float32), Launch("mean_value", (1, rows, 1), (threads, 1, 1), 0, record))
    return value[0] / numbers.mean()


def test_a_sum_of_a_block_needs_its_barriers(device, tmp_path):
    place = "part[id] += part[id + h];\n    "
    driver = changed(tmp_path, "device.cuh", place + BARRIER, place, ["run.cuh"])
    assert sum_of_a_block(device.driver) == 1
    assert sum_of_a_block(driver) != 1


@pytest.mark.parametrize(
    "new, error",
    [
        (f"if (id % 64 < 32) {BARRIER}\nelse\n{BARRIER}", "different barriers"),
        ("x = id % 2 ? __shfl_sync(0xffffffffu, x, id % 32) :\n __shfl_sync(0xffffffffu, x, id % 32);", "never come"),
    ],
    ids=["barriers", "shuffles"],
)
def test_all_threads_have_to_come_to_the_same_place(device, tmp_path, new, error):
    place = "part[id] = x;\n  int width = 1;"
    driver = changed(tmp_path, "device.cuh", place, new + place, ["run.cuh"])
    assert sum_of_a_block(device.driver) == 1
    with pytest.raises(RuntimeError, match=error):
        sum_of_a_block(driver)


def test_launches_that_a_device_would_refuse(device):
    with pytest.raises(RuntimeError, match="65,535 blocks"):
        sum_of_a_block(device.driver, rows=65_536)
    for kernel, most in (("mean_value", 1024), ("find_not_finite", 256), ("certify_finish", 128), ("kl_means", 512)):
        launch = Launch(kernel, (1, 1, 1), (most + 32, 1, 1), 0, np.zeros(1, LAUNCH))
        with pytest.raises(RuntimeError, match=f"{kernel}: a block of {most + 32} threads, of the {most} "):
            device.driver.launch(np.dtype(np.float32), launch)


def test_tensor_cores_want_16_bytes(native, tmp_path):
    place = "Way way{m.p + (first + r) * m.ld + 8 * e,"
    driver = changed(tmp_path, "tensor.cuh", place, place.replace("8 * e", "8 * e + 4"), ["run.cuh", "tensor.cuh"])
    driver.products = "cublas"
    case = "dense", {}, {"x": "M k", "w": "n k", "y": "M n"}, (70, 64, 64)
    with pytest.raises(RuntimeError, match="come from 16 bytes"):
        compare_products(native, CudaBackend(driver), *case)


def test_a_product_needs_its_barriers(native, device, tmp_path):
    place = "keep<BN>(b, rb, right);\n      "
    driver = changed(tmp_path, "product.cuh", place + BARRIER, place, ["run.cuh", "product.cuh"])
    case = "dense", {}, {"x": "M k", "w": "n k", "y": "M n"}, (30, 20, 50), np.float32, native
    compare(*case, device)
    with pytest.raises(AssertionError):
        compare(*case, CudaBackend(driver))


@pytest.mark.parametrize(
    "old, new",
    [
        (f"{BARRIER}\n      start(from", "start(from"),  # a slice is overwritten while others read it
        (f"{BARRIER}\n      start(from + (kStages - 1) * kDeep);", f"start(from + (kStages - 1) * kDeep);\n{BARRIER}"),
        ("wait_for_groups<kStages - 2>();", "wait_for_groups<kStages - 1>();"),  # and read before it is there
        (f"{BARRIER}\n  }}\n\n  // f(row", "}\n\n  // f(row"),  # outputs lie where slices do
    ],
    ids=["barrier", "too soon", "wait", "end"],
)
def test_tensor_cores_need_their_barriers(native, tmp_path, old, new):
    case = "dense", {}, {"x": "M k", "w": "n k", "y": "M n"}, (200, 200, 440)  # warps drift in half of the blocks
    compare_products(native, CudaBackend(HostDriver(1, products="cublas")), *case)
    driver = changed(tmp_path, "tensor.cuh", old, new, ["run.cuh", "tensor.cuh"])
    driver.products = "cublas"
    with pytest.raises(AssertionError):
        compare_products(native, CudaBackend(driver), *case)


@pytest.mark.parametrize(
    "old, new",
    [
        (
            f"{BARRIER}\n    const ChainProduct p",
            "const ChainProduct p",
        ),  # a layer's rows are read before they are there
        ("to.put(q % kChainRows, p.columns + q / kChainRows * 2, 0);", ";"),  # places behind a layer's last are read
    ],
    ids=["barrier", "zeros"],
)
def test_chains_need_their_barriers_and_zeros(tmp_path, old, new):
    drivers = HostDriver(1, products="cublas"), changed(tmp_path, "chain.cuh", old, new, ["run.cuh", "chain.cuh"])
    drivers[1].products = "cublas"
    want, got = (chain_of_layers(CudaBackend(driver), 20, (64, 72, 40, 200, 8), False)["out"] for driver in drivers)
    assert np.isfinite(want).all()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(got, want, atol=1e-3)


# ---- sizes that no test could run: what is launched, over memory that is not there ---


def bound(plan, m, products):
    """The binder of a plan's steps of m rows, and their launches."""
    binder = Binder(plan, m, 0, [0] * (4 + plan.n_external), 0, 0, HostDriver(products=products), lambda index: 0, True)
    steps = [one for phase in schema.PHASES.values() for one in binder.bind(phase, kernel_table())]
    flat = [each for one in steps for each in (one.launches if isinstance(one, Beside) else (one,))]
    return binder, [one for one in flat if isinstance(one, Launch)]


@pytest.mark.parametrize("products", ["exact", "cublas"])
@pytest.mark.parametrize(
    "p, m", [(1_000_000, 1024), (3_000_000, 300), (4_500_000, 2048), (3, 100_000_000), (140_000, 8192)]
)
def test_grids_are_no_larger_than_a_gpu_takes(p, m, products):
    options = {"loss": "huber", "penalties": "l2", "solver": fastae.Adam(clip_norm=1.0)}
    dense = dense_network(p, n_components=2, hidden_layer_sizes=(2,), normalization="batch", dropout=0.1, **options)
    plans = [training_plan(dense, dtype, m, bf16=bf16) for dtype, bf16 in (("f4", 0), ("f4", 1), ("f8", 0))]
    if m < 10_000:
        plans.append(sparse_training_plan(sparse_network(p, n_components=2048, k=8), "f4", m))
    for plan in plans:
        for launch in bound(plan, m, products)[1]:
            (x, y, z), block = launch.grid, launch.block
            assert 0 < x < 1 << 31 and 0 < y < 1 << 16 and 0 < z < 1 << 16, (launch.kernel, launch.grid)
            assert np.prod(block) <= most_threads()[launch.kernel] and launch.shared <= 48 << 10, launch.kernel


@pytest.mark.parametrize("sparsity", ["topk", "batch_topk", "relu"])
@pytest.mark.parametrize("bf16", [0, 1])
def test_the_last_rows_of_an_epoch_take_no_more_memory_than_a_batch(sparsity, bf16):
    """Chunks have more latents where rows are few, and their weights are rounded for them."""
    network = sparse_network(4096, n_components=131_072, k=64, sparsity=sparsity)
    plan = sparse_training_plan(network, "f4", 8192, bf16=bf16)
    few, all_rows = (bound(plan, m, "cublas")[0].work_bytes for m in (100, 8192))
    assert few <= all_rows
