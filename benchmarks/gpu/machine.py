"""Which machine this is, and what it can do at most: copies, products."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastae.backends.cuda import lt, source

from ..common import version
from .device import Device


def facts(device: Device, left: float) -> dict[str, Any]:
    """Versions, and what it takes until the kernels are there."""
    found: dict[str, Any] = {
        "versions": {p: version(p) for p in ("fastae", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "numba-cuda")}
    }
    driver = device.backend().driver
    if not device.rehearse:
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(driver.number)
        found["gpu"] = properties["name"].decode()
        found["memory"] = properties["totalGlobalMem"]
        found["multiprocessors"] = driver.n_multiprocessors
        found["cuda"] = cupy.cuda.runtime.runtimeGetVersion(), cupy.cuda.runtime.driverGetVersion()
    found["fatbin"] = source.fatbin("float") is not None
    for real in ("float32", "float64"):
        start = time.perf_counter()
        if not device.rehearse:
            driver.kernel("advance", np.dtype(real))
        found[f"seconds to load {real} kernels"] = time.perf_counter() - start
    print(found)
    return found


def copy_speed(device: Device) -> float:
    """Bytes a second of a copy on the device, read and written."""
    driver = device.backend().driver
    n_bytes = device.size(4 << 30, 1 << 16)
    a, b = driver.empty(n_bytes), driver.empty(n_bytes)
    return 2 * n_bytes / device.events(lambda: driver.copy(b, a), 10)


def ceilings(device: Device, left: float) -> dict[str, float]:
    """Bytes a second of a copy (read and written), operations a second of square products by cuBLASLt."""
    driver = device.backend().driver
    out = {"copy": copy_speed(device)}
    n = device.size(8192, 64)
    for kind in ("bfloat16", "tf32", "float32", "float64"):
        rng = np.random.default_rng(0)
        dtype = np.dtype(np.float64 if kind == "float64" else np.float32)
        values = rng.standard_normal((n, n)).astype(dtype)
        if kind == "bfloat16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        left_, right_ = driver.upload(values), driver.upload(values)
        result = driver.empty(n * n * (8 if kind == "float64" else 4))
        product = lt.Product(
            kind, lt.Matrix(driver.address(left_), n), lt.Matrix(driver.address(right_), n, True),
            lt.Matrix(driver.address(result), n), n, n, n,
        )  # fmt: skip
        out[kind] = 2.0 * n**3 / device.events(lambda p=product, d=dtype: driver.launch(d, p), 5)
        print(f"{kind} products: {out[kind] / 1e12:.1f} TFLOP/s", flush=True)
    print(f"copy: {out['copy'] / 1e12:.2f} TB/s")
    return out
