"""Accuracy of the vector functions, and their special values."""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastae import ops

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("isa", FLAGS)
def test_ulps(isa, tmp_path):
    native = pytest.importorskip("fastae.backends.native")
    if isa not in native.instruction_sets() or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{isa} is not available")
    program = tmp_path / "driver"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w", *FLAGS[isa]]
    source = str(ROOT / "tests" / "vecmath_driver.cpp")
    subprocess.run(["g++", *flags, f"-I{ROOT / 'csrc'}", source, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "a signed zero or a square root came out wrong"
    errors = {tuple(line.split()[:2]): float(line.split()[2]) for line in done.stdout.splitlines()}
    assert len(errors) == 20
    for (kind, name), worst in errors.items():
        assert worst <= (2 if kind == "float" else 4), (kind, name, worst)


@pytest.mark.parametrize("name", ["exponential", "sigmoid", "tanh", "elu"])
def test_float32_within_two_ulp(native_backend, name):
    x = np.concatenate([np.linspace(-90, 90, 100_001), np.linspace(-1, 1, 100_001), [0.0, -0.0, 1e-40, -1e-40]])
    x = x.astype(np.float32)
    y = ops.activation(name, x, backend=native_backend)
    with np.errstate(over="ignore"):
        exact = ops.activation(name, x.astype(float), backend="reference")
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    ulp = np.spacing(np.abs(rounded[finite])).astype(float)
    assert (np.abs(y[finite] - exact[finite]) / ulp).max() <= 2
    np.testing.assert_array_equal(np.isinf(y), ~finite)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["softplus", "sigmoid", "tanh", "elu", "gelu"])
def test_no_bit_depends_on_the_other_lanes(name, dtype, native_backend):
    """Registers whose lanes all lie where arithmetic is short take a way of their own."""
    x = np.concatenate([np.linspace(-30, 30, 40_000), np.geomspace(1e-9, 1, 24_000), [0.0]]).astype(dtype)
    mixed = x.copy()
    mixed[::2] = np.nan
    y, among_nan = (ops.activation(name, rows, backend=native_backend) for rows in (x, mixed))
    np.testing.assert_array_equal(among_nan[1::2], y[1::2])


def test_special_values(native_backend):
    inf = np.inf
    x = np.array([0.0, -0.0, inf, -inf, np.nan], np.float32)
    for name, expected in {
        "sigmoid": [0.5, 0.5, 1, 0, np.nan],
        "tanh": [0, -0.0, 1, -1, np.nan],
        "relu": [0, 0, inf, 0, np.nan],
        "elu": [0, -0.0, inf, -1, np.nan],
        "softplus": [np.log(2), np.log(2), inf, 0, np.nan],
        "exponential": [1, 1, inf, 0, np.nan],
    }.items():
        y = ops.activation(name, x, backend=native_backend)
        np.testing.assert_allclose(y, np.array(expected, np.float32), rtol=2e-7)
        if name in ("tanh", "elu"):
            assert np.signbit(y[1])
