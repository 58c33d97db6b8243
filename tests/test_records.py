"""Records of structure and regularisers on every backend and instruction set against the float64 reference."""

import numpy as np
import pytest
from conftest import assert_close

from fastae.backends import get_backend
from fastae.catalog import ACTIVATIONS, INDEX
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, Source

M = schema.BATCH_ROWS
SIZES = [(1, 1, 1), (7, 33, 17), (64, 96, 5), (257, 31, 70), (300, 3, 13), (13, 129, 200)]

# kind, attributes, {slot: (rows, columns)}; letters: M batch rows, n, k. d: float64, i: int64, +: positive
RECORDS = [
    ("add", {}, {"x": "M n", "y": "M n", "sum": "M n"}),
    ("maxout", {}, {"z": "M 3n", "y": "M n"}),
    ("maxout_grad", {}, {"dy": "M n", "z": "M 3n", "dz": "M 3n"}),
    ("batch_norm", {"momentum": 0.3, "epsilon": 1e-3},
     {"x": "M n", "gamma": "1 n", "beta": "1 n", "y": "M n", "mean": "1 n d", "deviation": "1 n d",
      "running_mean": "1 n", "running_var": "1 n"}),
    ("batch_norm_grad", {"add": 0},
     {"dy": "M n", "x": "M n", "gamma": "1 n", "mean": "1 n d", "deviation": "1 n d +", "dx": "M n", "dgamma": "1 n",
      "dbeta": "1 n"}),
    ("batch_norm_grad", {"add": 1},
     {"dy": "M n", "x": "M n", "gamma": "1 n", "mean": "1 n d", "deviation": "1 n d +", "dx": "M n", "dgamma": "1 n",
      "dbeta": "1 n"}),
    ("layer_norm", {"epsilon": 1e-3},
     {"x": "M n", "gamma": "1 n", "beta": "1 n", "y": "M n", "statistics": "M 2 d"}),
    ("layer_norm_grad", {"add": 0},
     {"dy": "M n", "x": "M n", "gamma": "1 n", "statistics": "M 2 d +", "dx": "M n", "dgamma": "1 n", "dbeta": "1 n"}),
    ("layer_norm_grad", {"add": 1},
     {"dy": "M n", "x": "M n", "gamma": "1 n", "statistics": "M 2 d +", "dx": "M n", "dgamma": "1 n", "dbeta": "1 n"}),
    ("fold_norm", {"epsilon": 1e-3},
     {"w": "n k", "b": "1 n", "gamma": "1 n", "beta": "1 n", "mean": "1 n", "var": "1 n +", "folded_w": "n k",
      "folded_b": "1 n"}),
    ("fold_norm", {"epsilon": 1e-3, "transposed": 1},
     {"w": "k n", "b": "1 n", "gamma": "1 n", "beta": "1 n", "mean": "1 n", "var": "1 n +", "folded_w": "k n",
      "folded_b": "1 n"}),
    ("dense", {"transposed": 1, "activation": INDEX["activation"]["tanh"]},
     {"x": "M k", "w": "k n", "b": "1 n", "y": "M n", "z": "M n"}),
    ("dense_grad", {"transposed": 1, "activation": INDEX["activation"]["tanh"]},
     {"dz": "M n", "x": "M k", "w": "k n", "dx": "M k", "dw": "k n", "db": "1 n", "saved": "M k"}),
    ("dense_grad", {"transposed": 1, "add": 1, "add_bias": 1},
     {"dz": "M n", "x": "M k", "w": "k n", "dw": "k n", "db": "1 n"}),
    ("dense_grad", {"add": 1, "add_bias": 0}, {"dz": "M n", "x": "M k", "w": "n k", "dw": "n k", "db": "1 n"}),
    ("pair", {"strength": 0.3},
     {"h": "M n", "h2": "M n", "coefficient": "M 1", "dh": "M n", "dh2": "M n", "row_value": "M 1 d"}),
    ("pair", {"strength": 0.3}, {"h": "M n", "h2": "M n", "dh": "M n", "dh2": "M n", "row_value": "M 1 d"}),
    *[("contractive", {"strength": 0.3, "activation": i, "p0": 0.5},
       {"h": "M n", "dh": "M n", "w": "n k", "factor": "1 n d"}) for i in range(len(ACTIVATIONS))],
    ("scale_rows", {}, {"w": "n k", "factor": "1 n d", "dw": "n k"}),
    ("decorrelation", {"strength": 0.3},
     {"h": "M n", "dh": "M n", "mean": "1 n d", "centred": "M n", "covariance": "n n", "product": "M n"}),
    ("orthogonality", {"strength": 0.3}, {"w": "n k", "dw": "n k", "gram": "n n", "product": "n k"}),
    ("orthogonality", {"strength": 0.3, "columns": 1}, {"w": "n k", "dw": "n k", "gram": "k k", "product": "n k"}),
    ("projector", {"strength": 0.3},
     {"w": "n k", "v": "3 k", "dw": "n k", "coordinates": "n 3", "product": "n k"}),
]  # fmt: skip
SCRATCH = {"gram", "product", "centred", "covariance", "coordinates", "mean"}  # working memory, by backends' choice


def arrays_of(slots, sizes, dtype):
    m, n, k = sizes
    rng = np.random.default_rng(0)
    arrays = {}
    for name, text in slots.items():
        rows, columns, *flags = text.replace("3n", str(3 * n)).split()
        shape = tuple({"M": m, "n": n, "k": k}.get(size) or int(size) for size in (rows, columns))
        values = rng.normal(size=shape).astype(dtype)  # the same numbers for every backend
        arrays[name] = (np.abs(values) + dtype(0.5) if "+" in flags else values).astype(
            float if "d" in flags else dtype
        )
    return arrays


def run(backend, dtype, m, kind, attributes, slots, arrays, threads=1):
    """Runs one record over copies of the arrays; returns them and the value."""
    arrays = {name: array.astype(float if array.dtype == float else dtype) for name, array in arrays.items()}
    builder = PlanBuilder(dtype, m)
    for name, text in slots.items():
        code = schema.FLOAT64 if " d" in text else schema.REAL
        builder.external(name, M if text.startswith("M") else arrays[name].shape[0], arrays[name].shape[1], code)
    value = {"value": builder.value()} if "value" in schema.KIND[kind].ints else {}
    builder.op(kind, **{name: name for name in arrays}, **attributes, **value)
    plan, values = builder.build(), np.zeros((1, 1))
    job = Job([*plan.allocate(), *arrays.values()], (), m, phases=schema.GRADIENT, values=values, n_threads=threads)
    assert backend.run(backend.compile(plan), job) == 1
    return arrays, values[0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_records(tested_backend, sizes, dtype):
    for kind, attributes, slots in RECORDS:
        arrays = arrays_of(slots, sizes, dtype)
        got, value = run(tested_backend, dtype, sizes[0], kind, attributes, slots, arrays)
        want, expected = run(get_backend("reference"), np.float64, sizes[0], kind, attributes, slots, arrays)
        assert value == pytest.approx(expected, rel=400 * float(np.finfo(dtype).eps), abs=1e-30), kind
        for name in slots.keys() - (SCRATCH if "norm" not in kind else set()):
            scale = max(1.0, np.abs(want[name]).max()) * (4 if kind in ("decorrelation", "orthogonality") else 1)
            actual = got[name].astype(dtype)
            assert_close(actual, want[name], length=4 * max(sizes), scale=scale)


@pytest.mark.parametrize("sizes", [(300, 70, 200), (513, 130, 31)], ids=str)
def test_threads_change_no_bit(native_backend, sizes):
    for kind, attributes, slots in RECORDS:
        arrays = arrays_of(slots, sizes, np.float32)
        one, value = run(native_backend, np.float32, sizes[0], kind, attributes, slots, arrays)
        for threads in (2, 3, 7):
            many, other = run(native_backend, np.float32, sizes[0], kind, attributes, slots, arrays, threads)
            assert value == other
            for name in slots:
                np.testing.assert_array_equal(one[name], many[name], err_msg=f"{kind}: {name}")


def test_maxout_sends_the_gradient_of_a_tie_to_the_lowest_piece(backend):
    z, dy = np.zeros((2, 9), np.float32), np.ones((2, 3), np.float32)
    slots = {"dy": "M n", "z": "M 3n", "dz": "M 3n"}
    got, _ = run(backend, np.float32, 2, "maxout_grad", {}, slots, {"dy": dy, "z": z, "dz": z.copy()})
    np.testing.assert_array_equal(got["dz"], [[1, 1, 1, 0, 0, 0, 0, 0, 0]] * 2)


def test_maxout_lets_nan_through(backend):
    z = np.zeros((2, 33), np.float32)
    z[0, 3] = z[1, 20] = np.nan
    got, _ = run(
        backend, np.float32, 2, "maxout", {}, {"z": "M 3n", "y": "M n"}, {"z": z, "y": np.zeros((2, 11), np.float32)}
    )
    assert np.isnan(got["y"]).sum() == 2


def draw(backend, graph, rows, epoch=0):
    """Neighbours of rows and coefficients under a CSR graph."""
    n = graph.shape[0]
    builder = PlanBuilder(np.float64, len(rows))
    for name, code in (("rows", schema.INT64), ("out", schema.INT64), ("coefficient", schema.REAL)):
        builder.external(name, M, 1, code)
    builder.external("x", M, 4)
    builder.op("neighbour", rows="rows", out="out", coefficient="coefficient", source=1, stream=5)
    builder.op("take", x="x", rows="out", source=0)
    plan = builder.build()
    out, c, x = np.zeros((len(rows), 1), np.int64), np.zeros((len(rows), 1)), np.zeros((len(rows), 4))
    data = np.arange(4.0 * n).reshape(n, 4)
    sources = (Source(data, columns=4),
               Source(graph.data, graph.indptr.astype(np.int64), graph.indices.astype(np.int32), n))  # fmt: skip
    job = Job([*plan.allocate(), rows[:, None], out, c, x], sources, len(rows), epoch=epoch, seed=3,
              phases=schema.GRADIENT)  # fmt: skip
    assert backend.run(backend.compile(plan), job) == 1
    np.testing.assert_array_equal(x, data[out[:, 0]])
    return out[:, 0], c[:, 0]


def test_neighbours_are_the_same_everywhere_and_follow_the_weights(backend):
    from scipy.sparse import csr_array

    graph = csr_array(np.array([[0, 1, 3, 0], [1, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]], float))
    rows = np.array([0, 1, 2, 3])
    drawn = [draw(backend, graph, rows, epoch) for epoch in range(300 if backend.name == "native" else 40)]
    expected = [draw(get_backend("reference"), graph, rows, epoch) for epoch in range(40)]
    for (out, c), (want, d) in zip(drawn, expected, strict=False):
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(c, d)
    assert {int(out[0]) for out, _ in drawn} == {1, 2}
    assert all(out[3] == 3 and c[3] == 0 and c[0] == 2 for out, c in drawn)
    if backend.name == "native":
        assert abs(np.mean([out[0] == 2 for out, _ in drawn]) - 0.75) < 0.1
