"""Twins of the row-wise device kernels in Numba's simulator: bits of the device kernels and of the compiled ones."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import backend_named
from test_cuda_records import LOSS, inputs, outcome

from fastae import ops
from fastae.backends import get_backend
from fastae.catalog import INDEX
from fastae.plan import schema

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import json, sys
import numpy as np
from fastae.backends.cuda import twins
given, made = np.load(sys.argv[1]), {}
for label, (twin, takes, more) in json.loads(sys.argv[3]).items():
    result = getattr(twins, twin)(*[given[f"{label} {name}"] for name in takes], **more)
    for q, array in enumerate(result if isinstance(result, tuple) else [result]):
        made[f"{label} {q}"] = array
np.savez(sys.argv[2], **made)
"""
SQUARED, MULTINOMIAL = INDEX["loss"]["squared_error"], schema.MULTINOMIAL
TAKES, GIVES = ("y", "target", "weight"), ("row_value", "dy")

# twin: [(record, its attributes, slots, arrays the twin takes and gives, its other arguments)]
TWINS = {
    "softmax": [("softmax", {}, {"z": "M n", "y": "M n"}, ("z",), ("y",), {})],
    "softmax_grad": [("softmax_grad", {}, {"dy": "M n", "y": "M n", "dz": "M n"}, ("dy", "y"), ("dz",), {})],
    "maxout": [("maxout", {}, {"z": "M H", "y": "M n"}, ("z",), ("y",), {"n": None})],
    "layer_norm": [
        ("layer_norm", {"epsilon": 1e-3},
         {"x": "M n", "gamma": "1 n", "beta": "1 n", "y": "M n", "statistics": "M 2 d"},
         ("x", "gamma", "beta"), ("y", "statistics"), {"epsilon": 1e-3})],
    "layer_norm_grad": [
        ("layer_norm_grad", {},
         {"dy": "M n", "x": "M n", "gamma": "1 n", "statistics": "M 2 d +", "dx": "M n", "dgamma": "1 n",
          "dbeta": "1 n"},
         ("dy", "x", "gamma", "statistics"), ("dx",), {})],
    **{name: [("loss", {"loss": loss, "masked": masked, "scale": 0.7}, LOSS | {"target": "M n t" if masked else "M n"},
               TAKES, GIVES, {"scale": 0.7, "masked": masked}) for masked in range(len(schema.MASK_MODES))]
       for name, loss in (("squared_error", SQUARED), ("multinomial", MULTINOMIAL))},
    "dropout": [
        ("dropout", {"stream": 2, "rate": 0.3}, {"x": "M n", "y": "M n", "rows": "M 1 i"},
         ("x", "rows"), ("y",), {"rate": 0.3, "stream": 2, "seed": 11, "epoch": 3})],
}  # fmt: skip
EXPONENTIAL = {"softmax", "multinomial"}
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38, 88.7, -104])
BIG_KEY = (2**63 + 5, 2**32 - 1, 254)  # seed, epoch, stream


def cases(twin):
    """label: (dtype, rows, units, record, arrays)"""
    for q, record in enumerate(TWINS[twin]):
        for dtype in (np.float32, np.float64):
            for kind, (m, n) in {"one": (1, 1), "any": (5, 37), "exact": (9, 18), "special": (9, 19)}.items():
                arrays, rng = inputs(record[2], (m, n, 1), dtype), np.random.default_rng(n + 1)
                for name in {"x", "y", "z", "dy", "target"} & set(record[3]):
                    if kind == "special":
                        some = rng.random(arrays[name].shape) < np.linspace(0, 0.3, len(arrays[name]))[:, None]
                        arrays[name][some] = rng.choice(SPECIAL, some.sum()).astype(dtype)
                    elif kind == "exact" and name in ("y", "z"):  # exp is 1 or 0, whoever makes it
                        arrays[name][...] = rng.choice([0.0, -0.0, -1000.0], arrays[name].shape)
                yield f"{twin} {q} {dtype.__name__} {kind}", (dtype, m, n, record, arrays)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What all twins make of all cases: the simulator wants a process of its own."""
    if importlib.util.find_spec("numba") is None or importlib.util.find_spec("numba.cuda") is None:
        pytest.skip("no Numba with a CUDA target")
    given, calls = {}, {}
    for twin in TWINS:
        for label, (_, _, n, (_, _, _, takes, _, more), arrays) in cases(twin):
            given |= {f"{label} {name}": arrays[name] for name in takes}
            calls[label] = twin, takes, {name: n if value is None else value for name, value in more.items()}
    given |= {"big x": np.ones((3, 21), np.float32), "big rows": np.array([[0], [7], [2**62 + 3]])}
    seed, epoch, stream = BIG_KEY
    calls["big"] = "dropout", ("x", "rows"), {"rate": 0.5, "seed": seed, "epoch": epoch, "stream": stream}
    folder = tmp_path_factory.mktemp("twins")
    np.savez(folder / "given.npz", **given)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, folder / "given.npz", folder / "made.npz", json.dumps(calls)],
        cwd=ROOT, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(folder / "made.npz") as made:
        return dict(made)


@pytest.fixture(scope="module", params=["cuda_host", "native"])
def kernels(request):
    """The device kernels on the host, and the compiled backend."""
    if request.param == "cuda_host":
        return backend_named("cuda_host")
    backend = get_backend("auto")
    if backend.name != "native":
        pytest.skip("no compiled kernels to compare with")
    return backend


def assert_same_bits(got, want, label):
    """With zeros of the same sign; NaN is NaN."""
    np.testing.assert_array_equal(got, want, err_msg=label)
    np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(want[want == 0]), err_msg=label)


def assert_few_ulp(got, want, eps, label):
    """Both not finite in the same places, else within 8 eps of a row's largest number."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=label)
    size = np.maximum(np.where(finite, np.abs(want), 0).max(axis=1, keepdims=True), np.abs(want))
    wrong = finite & ~(np.abs(got - want) <= 8 * eps * size)
    assert not wrong.any(), f"{label}: {got[wrong]} for {want[wrong]}"


@pytest.mark.parametrize("twin", TWINS)
def test_twin(twin, kernels, results):
    for label, (dtype, m, _, (kind, attributes, _, _, gives, _), arrays) in cases(twin):
        with np.errstate(all="ignore"):
            want, _ = outcome(kernels, dtype, m, kind, attributes, arrays, valued=False)
            for q, name in enumerate(gives):
                got = results[f"{label} {q}"]
                assert got.dtype == want[name].dtype
                if twin in EXPONENTIAL and not label.endswith("exact"):
                    assert_few_ulp(got, want[name], np.finfo(dtype).eps, f"{label}: {name}")
                else:
                    assert_same_bits(got, want[name], f"{label}: {name}")


def test_random_words_of_large_keys_and_rows(kernels, results):
    x, rows = np.ones((3, 21), np.float32), np.array([0, 7, 2**62 + 3])
    np.testing.assert_array_equal(results["big 0"], ops.dropout(x, 0.5, BIG_KEY, rows, backend=kernels))
