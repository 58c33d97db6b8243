"""Correctness on the device: every record through the test suite, whole fits, bits, graphs."""

from __future__ import annotations

import datetime
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fastae
from fastae.backends.cuda import manifest

from .device import Device

ROOT = Path(__file__).resolve().parents[2]


def kernels(device: Device, left: float) -> dict[str, Any]:
    """The test suite's cases on the GPU (in a rehearsal a few of those on the host).

    Where all pass, what they launched is written down as verified in csrc/cuda/verified.json. What the tests say is
    kept beside the result, also of a run that is ended because time is up.
    """
    chosen = ["-k", "cuda_host and dropout"] if device.rehearse else ["-k", "cuda_gpu or cuda_cublas"]
    # all of them, and with other libraries' versions than tests are usually run with
    everything = [] if device.rehearse else ["-m", "slow or not slow", "-W", "default::DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-x" if device.rehearse else "--maxfail=200", "-p",
               "no:cacheprovider", *side_by_side(), *everything, *chosen, "tests"]  # fmt: skip
    log = Path(device.out).with_suffix(".tests.txt")
    with tempfile.TemporaryDirectory() as folder:
        launched = Path(folder) / "launched"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "FASTAE_GPU_LAUNCHED": str(launched)}
        with log.open("w") as file:
            ended, status = "", 1
            try:
                status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False,
                                        timeout=max(left, 60), env=environment).returncode  # fmt: skip
            except subprocess.TimeoutExpired as error:
                ended = f"ended after {error.timeout:.0f} s; "
        names = sorted(set(launched.read_text().split())) if launched.exists() and not status else []
    lines = log.read_text(errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    failed = failed or [line for line in lines if "] FAILED" in line or ") FAILED" in line]
    passed = sum(" PASSED" in line for line in lines)
    print("\n".join(failed[:60] + lines[-1:]), flush=True)
    if names:
        record_verified(names)
    summary = ended + (lines[-1] if lines else "nothing was said")
    return {"summary": summary, "passed": passed, "failed": failed, "verified": len(names), "log": str(log)}


def side_by_side() -> list[str]:
    """Options for tests in several processes, where pytest-xdist is installed."""
    if importlib.util.find_spec("xdist") is None or (os.cpu_count() or 1) < 4:
        return []
    return ["-n", str(min(12, (os.cpu_count() or 1) - 2))]


def record_verified(names: list[str]) -> None:
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    cuda = str(cupy.cuda.runtime.runtimeGetVersion())
    manifest.record(ROOT / "csrc", names, datetime.date.today().isoformat(), gpu, cuda)


def _fit(backend: Any, X: np.ndarray, **options: Any) -> fastae.Autoencoder:
    return fastae.Autoencoder(
        16, hidden_layer_sizes=(48,), activation="gelu", dropout=0.2, batch_size=64, max_iter=10, tol=0,
        random_state=0, backend=backend, **options,
    ).fit(X)  # fmt: skip


def _difference(a: Any, b: Any) -> float:
    return max(float(np.abs(v - w).max()) for (v, _), (w, _) in zip(a.weights_, b.weights_, strict=True))


def fits(device: Device, left: float) -> dict[str, Any]:
    """100 steps with dropout: the largest difference of a weight between runs, and to the CPU."""
    X = np.random.default_rng(0).standard_normal((640, 64)).astype(np.float32)
    out: dict[str, Any] = {}
    cpu = _fit("auto", X)
    for name, products, options in (("exact", "exact", {}), ("cublas", "cublas", {}),
                                    ("tf32", "cublas", {"precision": "tf32"}),
                                    ("bfloat16", "cublas", {"precision": "bfloat16"})):  # fmt: skip
        first, second = (_fit(device.backend(products), X, **options) for _ in range(2))
        out[name] = {"between two runs": _difference(first, second), "to the CPU": _difference(first, cpu)}
    for name, precision in (("sparse", "float32"), ("sparse, bfloat16", "bfloat16")):
        sparse = [fastae.SparseAutoencoder(256, k=8, batch_size=64, max_iter=10, random_state=0, backend=b,
                                           precision=precision).fit(X)
                  for b in ("auto", device.backend(), device.backend())]  # fmt: skip
        out[name] = {
            "between two runs": float(np.abs(sparse[1].dictionary_ - sparse[2].dictionary_).max()),
            "to the CPU": float(np.abs(sparse[0].dictionary_ - sparse[1].dictionary_).max()),
            "codes of the same model": codes_differ(sparse[0], device, X),
        }
    print(out, flush=True)
    return out


def codes_differ(model: fastae.SparseAutoencoder, device: Device, X: np.ndarray) -> int:
    """How many values or indices of codes differ between CPU and GPU for the same weights."""
    values, indices = model.encode(X)
    backend = model.backend
    model.set_params(backend=device.backend())
    model._forget_compiled()
    try:
        v, i = model.encode(X)
    finally:
        model.set_params(backend=backend)
        model._forget_compiled()
    return int((values != v).sum() + (indices != i).sum())


def graphs(device: Device, left: float) -> dict[str, Any]:
    """100 steps as a replayed graph and as single launches: the same bits."""
    X = np.random.default_rng(1).standard_normal((640, 64)).astype(np.float32)
    replayed = _fit(device.backend(), X)
    driver = device.backend().driver
    capture = driver.capture

    def eager(dtype: Any, launches: list) -> Any:
        return lambda: [driver.launch(dtype, launch) for launch in launches]

    driver.capture = eager
    try:
        single = _fit(device.backend(), X)
    finally:
        driver.capture = capture
    return {"difference": _difference(replayed, single)}
