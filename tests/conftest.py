"""Fixtures: every backend and instruction set, the real data, tolerances."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fastae.backends import cuda_backend, get_backend
from fastae.backends.cuda.driver import why_not


def _native(isa):
    try:
        from fastae.backends.native import NativeBackend
    except ImportError as error:
        pytest.skip(f"no compiled kernels: {error}")
    try:
        return NativeBackend(isa)
    except ValueError as error:
        pytest.skip(str(error))


def _has(isa):
    """Whether the compiled kernels, which this machine can run, are there for an instruction set."""
    try:
        from fastae.backends.native import instruction_sets
    except ImportError:
        return False
    return isa in instruction_sets()


def _cuda_host():
    """The CUDA backend with its kernels compiled for the host (tests/cuda_host.py)."""
    from cuda_host import HostDriver, compiler

    from fastae.backends.cuda import CudaBackend

    if compiler() is None:
        pytest.skip("no C++ compiler to build the device kernels for the host with")
    return CudaBackend(HostDriver())


NATIVE = ["baseline", "avx2", "avx512", "neon"]
# a GPU where there is one: with kernels of the CPU's order of operations, and with cuBLASLt
GPU = {"cuda_gpu": "exact", "cuda_cublas": "cublas"} if why_not() is None else {}
BACKENDS = ["reference", "numba", "cuda_host", *GPU, *NATIVE]


# with the sets that only multiply bfloat16 in another way
BF16_NATIVE = [*NATIVE, "avx512_bf16", "avx512_amx"]
BF16_BACKENDS = [*BACKENDS, *BF16_NATIVE[len(NATIVE) :]]


def backend_named(name):
    """A backend object: "reference", "numba", the CUDA kernels on the host, or the native one on an instruction set."""
    if name == "cuda_host":
        return _cuda_host()
    if name in GPU:
        backend = cuda_backend(0, GPU[name])
        if GPU[name] == "exact":
            backend.driver.n_multiprocessors = 4  # as on the host, where tests' sizes take tiles of every size
        return backend
    return get_backend(name) if name in ("reference", "numba") else _native(name)


@pytest.fixture
def cuda():
    """The device's kernels on the host."""
    return backend_named("cuda_host")


@pytest.fixture
def native():
    """The compiled backend whose bits they have."""
    return backend_named("avx2")


def named(backend):
    """The name by which an estimator asks for a backend; the device kernels on the host have none."""
    if "HostDriver" in repr(backend):
        pytest.skip("estimators cannot ask for the device kernels on the host by name")
    return backend.name


# What the default run leaves to `-m slow`, to stay within three minutes: of these files, tests with such parameters.
OF_SETS = {"test_codes.py", "test_encode.py", "test_encode_exact.py", "test_encode_few.py"}
SLOW_WITH = {
    # the device's kernels, compiled for the host: test_cuda_*.py compare the same records
    "cuda_host": {
        "test_bf16.py", "test_bf16_codes.py", "test_classifier.py", "test_codes.py", "test_diagnostics.py",
        "test_encode.py", "test_encoder.py", "test_full_batch.py", "test_full_batch_fit.py", "test_fuse.py",
        "test_gradients.py", "test_int8.py", "test_losses.py", "test_records.py", "test_registry.py",
        "test_sparse_autoencoder.py", "test_sparse_gradients.py", "test_sparse_parity.py", "test_torch_parity.py",
        "test_torch_structure.py",
    },
    # which compiles for a minute, and is all there is without compiled kernels
    "numba": {
        "test_bf16_codes.py", "test_codes.py", "test_encode.py", "test_encoder.py", "test_full_batch.py",
        "test_fuse.py", "test_gradients.py", "test_int8.py", "test_ops.py", "test_records.py", "test_registry.py",
        "test_sparse_autoencoder.py", "test_sparse_gradients.py", "test_sparse_parity.py",
    } if _has("baseline") else set(),
    "[baseline": OF_SETS,  # which nearly no machine is left with
    "[avx2": OF_SETS if _has("avx512") else set(),
    "avx512_": {"test_encode_few.py"},
    "avx512_bf16": {"test_encode.py"} if _has("avx512_amx") else set(),
}  # fmt: skip
SLOW_FILES = {"test_full_codes.py"} | ({"test_codes_numba_reference.py"} if _has("baseline") else set())


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.name
        if file in SLOW_FILES or any(name in item.name and file in files for name, files in SLOW_WITH.items()):
            item.add_marker(pytest.mark.slow)


def SLOW(*values):
    """What the default run leaves out of a test's parameters."""
    return pytest.param(*values, marks=pytest.mark.slow)


WITHOUT_GPU = pytest.mark.skipif(why_not() is None, reason="there is a GPU here")


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend, and the native one on every instruction set; a missing one is a visible skip."""
    return backend_named(request.param)


@pytest.fixture(params=BACKENDS[1:])
def tested_backend(request):
    """Every backend but the reference."""
    return backend_named(request.param)


@pytest.fixture(params=NATIVE)
def native_backend(request):
    """The native backend on every instruction set."""
    return backend_named(request.param)


@pytest.fixture(params=["cuda_host", *(name for name, products in GPU.items() if products == "cublas")])
def by_cublas(request, monkeypatch):
    """make(seed, n_multiprocessors): a CUDA backend with cuBLASLt's products, which are NumPy's on the host."""

    def make(seed=1, n_multiprocessors=4):
        backend = backend_named(request.param)
        if request.param == "cuda_host":
            backend.driver.seed, backend.driver.products = seed, "cublas"
            backend.driver.epilogues = frozenset(("bias", "relu"))
        monkeypatch.setattr(backend.driver, "n_multiprocessors", n_multiprocessors)
        return backend

    return make


@pytest.fixture(scope="session")
def data_dir():
    """Folder of the real data: FASTAE_DATA, else ../shared/data."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FASTAE_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FASTAE_DATA")
    return folder


def assert_close(actual, expected, *, length=1, scale=None):
    """|actual − expected| within the rounding of a reduction over ``length`` terms of size ``scale``."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    eps = np.finfo(actual.dtype if actual.dtype.kind == "f" else np.float64).eps
    size = np.abs(expected).max(initial=0.0) if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=8 * eps, atol=8 * eps * max(length, 4) ** 0.5 * max(size, 1e-30))


def pytest_terminal_summary(terminalreporter):
    """Which device kernels ran here, and which were verified on a GPU as they are."""
    host = sys.modules.get("cuda_host")
    if host is not None:
        from fastae.backends.cuda import manifest

        for line in manifest.summary(host.SOURCES, host.LAUNCHED):
            terminalreporter.write_line(line)


def launched_on_gpu(backends):
    """Names of the kernels that some backends launched."""
    return {name for backend in backends for name in backend.driver.kernels.names}


def pytest_sessionfinish(session, exitstatus):
    """Names of the kernels that were launched on a GPU, behind what the file FASTAE_GPU_LAUNCHED has already."""
    file = os.environ.get("FASTAE_GPU_LAUNCHED")
    if file and GPU:
        with Path(file).open("a") as out:  # processes side by side add to it
            out.write("\n".join(sorted(launched_on_gpu([cuda_backend(0, way) for way in GPU.values()]))) + "\n")
