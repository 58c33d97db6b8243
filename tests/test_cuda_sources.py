"""The device code as files: one text for NVRTC, what is installed, layouts shared with Python, what was verified."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from cuda_host import HostDriver, compiler
from test_packaging import ENVIRONMENT, ROOT

from fastae.backends.cuda import driver, manifest, record, source
from fastae.backends.cuda.launches import Launch

CSRC = ROOT / "csrc"
needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler (g++, or the one CXX names)")


def test_flatten_takes_every_include_once(tmp_path):
    for name, text in {
        "cuda/kernels.cu": '#include "a.h"\n#include <cmath>\n  #  include "cuda/b.cuh"\nlast\n',
        "a.h": '#pragma once\n#include "c.h"\na\n',
        "cuda/b.cuh": '#pragma once\n#include "a.h"\n#include "c.h"\nb\n',
        "c.h": "#pragma once\nc\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert source.flatten(tmp_path).split() == ["c", "a", "#include", "<cmath>", "b", "last"]
    assert list(source.parts(tmp_path, "cuda/kernels.cu")) == ["cuda/kernels.cu", "a.h", "c.h", "cuda/b.cuh"]
    assert source.shipped(tmp_path) == ["a.h", "c.h", "cuda/b.cuh", "cuda/kernels.cu"]


def test_one_text_of_all_device_code():
    text = source.kernels()
    assert '#include "' not in text and "#pragma once" not in text
    for name in source.shipped(CSRC):
        lines = [line for line in (CSRC / name).read_text().splitlines() if line and line[0] not in "#/ }"]
        assert not lines or lines[0] in text, name
    assert text.count("struct Launch {") == 1


def build_script():
    """The definitions of setup.py, without running a build."""
    pytest.importorskip("pybind11", reason="setup.py wants what builds the package")
    pytest.importorskip("setuptools")
    names = {}
    exec(compile((ROOT / "setup.py").read_text().partition("\nsetup(\n")[0], "setup.py", "exec"), names)
    return names


def test_an_installation_holds_what_nvrtc_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    build_script()["ship_device_code"](tmp_path)
    assert source.flatten(tmp_path) == source.kernels()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 1 << 20


def test_a_fatbin_of_other_sources_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "__file__", str(tmp_path / "source.py"))
    path = tmp_path / "kernels_float.fatbin"
    assert source.fatbin("float") is None
    path.write_bytes(b"code")
    assert source.fatbin("float") is None
    path.with_suffix(".sha256").write_text(source.digest(source.kernels()) + "\n")
    assert source.fatbin("float") == path
    path.with_suffix(".sha256").write_text(source.digest(source.kernels() + " ") + "\n")
    assert source.fatbin("float") is None


@pytest.mark.parametrize("nvcc, said", [(None, "not on the PATH"), ("exit 3", "status 3")])
def test_without_a_working_nvcc_the_build_says_why(tmp_path, monkeypatch, nvcc, said):
    if nvcc:
        (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=said):
        source.compile_fatbin(CSRC, "float", tmp_path / "kernels_float.fatbin")
    assert not (tmp_path / "kernels_float.sha256").exists()


def test_the_build_compiles_device_code_for_wheels_only(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = build_script()
    wants, have = script["wants_cuda"], {"nvcc": "/opt/cuda/bin/nvcc"}
    monkeypatch.setitem(script, "shutil", types.SimpleNamespace(which=have.get))
    monkeypatch.setitem(script, "SANITIZE", "")
    for switch, expected in (("auto", (True, False)), ("1", (True, True)), ("0", (False, False))):
        monkeypatch.setitem(script, "CUDA", switch)
        assert (wants(inplace=False), wants(inplace=True)) == expected
    have.clear()
    for switch, expected in (("auto", False), ("1", True)):  # asked for by name, it is tried, and the failure reported
        monkeypatch.setitem(script, "CUDA", switch)
        assert wants(inplace=False) is expected


# ---- layouts ---


def layout(dtype, prefix=""):
    """(name, offset, size) of each field, of those of nested records too."""
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        yield prefix + name, offset, field.itemsize


@needs_compiler
def test_records_lie_as_in_cxx(tmp_path):
    structs = {"Launch": record.LAUNCH, "Slot": record.SLOT, "Step": record.STEP, "DeviceSource": record.SOURCE}
    lines = ['#include "cuda/host/shim.h"', '#include "cuda/device.cuh"', "#include <cstddef>", "#include <cstdio>",
             "using namespace fastae;", "int main() {"]  # fmt: skip
    for name, dtype in structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _, _ in layout(dtype):
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));'
            )
    (tmp_path / "layout.cpp").write_text("\n".join([*lines, "}"]))
    command = [compiler(), "-std=c++17", "-w", "-DFASTAE_DEVICE", f"-I{CSRC}", "layout.cpp", "-c", "-o", "layout.o"]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True)
    # the shim's own functions are not called
    subprocess.run([compiler(), "layout.o", "-o", "layout", "-Wl,--unresolved-symbols=ignore-all"], cwd=tmp_path,
                   env=ENVIRONMENT, check=True)  # fmt: skip
    said = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.split("\n")
    expected = []
    for name, dtype in structs.items():
        expected.append(f"{name} {dtype.itemsize}")
        expected += [f"{name}.{field} {offset} {size}" for field, offset, size in layout(dtype)]
    assert said[:-1] == expected


# ---- why there is no GPU ---


class FakeCupy(types.ModuleType):
    """CuPy of a CUDA version, on a machine with so many GPUs."""

    def __init__(self, version=13000, devices=1, error=None):
        super().__init__("cupy")
        broken = type("CUDARuntimeError", (Exception,), {})

        def count():
            if error:
                raise broken(error)
            return devices

        runtime = types.SimpleNamespace(
            runtimeGetVersion=lambda: version, getDeviceCount=count, CUDARuntimeError=broken
        )
        self.cuda = types.SimpleNamespace(runtime=runtime)


@pytest.mark.parametrize(
    "major, cupy, words",
    [
        (None, None, ["no NVIDIA driver", "libcuda.so.1", "device='cpu'"]),
        (13, None, ["CuPy is missing", "CUDA 13", "pip install 'fastae[cuda13]'"]),
        (12, None, ["CuPy is missing", "CUDA 12", "pip install 'fastae[cuda12]'"]),
        (12, FakeCupy(13000), ["built for CUDA 13", "driver runs CUDA 12", "pip uninstall cupy-cuda13x", "[cuda12]"]),
        (13, FakeCupy(13000, devices=0), ["no GPU is visible", "CUDA_VISIBLE_DEVICES"]),
        (13, FakeCupy(13000, error="cudaErrorNoDevice"), ["cudaErrorNoDevice", "nvidia-smi"]),
        (13, FakeCupy(12090), None),  # an older CuPy runs on a newer driver
        (13, FakeCupy(13000), None),
    ],
)
def test_what_is_missing_for_a_gpu(monkeypatch, major, cupy, words):
    monkeypatch.setattr(driver, "driver_version", lambda: major)
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: import fails
    said = driver.why_not()
    if words is None:
        assert said is None
        return
    assert all(word in said for word in words), said
    with pytest.raises(ImportError) as raised:
        driver.CupyDriver()
    assert str(raised.value) == said


# ---- verified on a GPU ---


@pytest.fixture
def copied(tmp_path):
    """A copy of the device code with a manifest that says all was verified."""
    shutil.copytree(CSRC, tmp_path / "csrc")
    root = tmp_path / "csrc"
    (root / manifest.FILE).unlink()
    manifest.record(root, manifest.kernel_digests(root), "2026-11-01", "a machine", "13.0")
    return root


def append(path, text="\nstruct AnotherLine {};\n"):
    path.write_text(path.read_text() + text)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_no_device_compiles_changes_no_kernel(copied):
    replace(copied / "vec.h", "#include <immintrin.h>", "#include <x86intrin.h>")
    assert not manifest.state(copied).changed
    append(copied / "philox.h", "\n\n// a comment\n")
    assert not manifest.state(copied).changed
    replace(copied / "vec.h", '#include "cuda/lane.h"', '#include "cuda/lane.h"\n#define FASTAE_HERE')
    assert not manifest.state(copied).verified


def test_a_kernels_body_changes_no_other(copied):
    replace(copied / "cuda" / "run.cuh", "o.step->number += 1;", "o.step->number += 2;")
    assert manifest.state(copied).changed == ["advance"]
    replace(copied / "cuda" / "dense.cuh", "chain_four(a, x, s,", "chain_four(a, s, x,")
    assert manifest.state(copied).changed == ["activation_grad", "advance"]


def test_a_number_of_an_op_changes_its_kernels_alone(copied):
    replace(copied / "schema.h", "namespace at_pair {\nenum Slot {", "namespace at_pair {\nenum Slot { s_new,")
    found = manifest.state(copied)
    assert "pair" in {name.split("_")[0] for name in found.changed} and {"gather", "update"} <= set(found.verified)
    replace(copied / "schema.h", "constexpr int kMaxInts", "constexpr int kMore = 1;\nconstexpr int kMaxInts")
    assert not manifest.state(copied).verified


def test_manifest_knows_what_changed(copied):
    kernels = manifest.kernel_digests(copied)
    assert {"gather", "update", "dense_finish", "mean_value"} <= set(kernels)
    assert manifest.state(copied) == manifest.State(sorted(kernels), [], [])
    append(copied / "cuda" / "update.cuh")
    assert "update" in manifest.state(copied).changed
    assert {"gather", "dense_finish"} <= set(manifest.state(copied).verified)
    append(copied / "philox.h")
    assert set(manifest.state(copied).changed) == set(kernels)
    append(copied / "cuda" / "run.cuh", "FASTAE_KERNEL(brand_new, 32) {}\n")
    assert manifest.state(copied).never == ["brand_new"]
    lines = manifest.summary(copied, ["gather"])
    assert lines[0].startswith(f"CUDA kernels: {len(kernels) + 1}; run on the host here: 1, not: ")
    assert lines[1].startswith(f"verified on a GPU as they are: 0; changed since: {len(kernels)} (")
    assert "never verified: 1 (brand_new)" in lines[1]


def test_manifest_keeps_what_was_not_verified_again(copied):
    append(copied / "cuda" / "run.cuh")
    manifest.record(copied, ["gather"], "2026-12-01", "another machine", "13.1")
    kernels = json.loads((copied / manifest.FILE).read_text())["kernels"]
    assert kernels["gather"]["date"] == "2026-12-01" and kernels["take"]["machine"] == "a machine"
    found = manifest.state(copied)
    assert "gather" in found.verified and "take" in found.changed
    with pytest.raises(KeyError, match="no_such_kernel"):
        manifest.record(copied, ["no_such_kernel"], "", "", "")


def test_the_manifest_names_no_kernel_that_is_gone():
    assert set(manifest.read(CSRC)) <= set(manifest.kernel_digests(CSRC))


# ---- barriers ---


def mean_by_block(sources, seed):
    """The mean of 1000 numbers by `mean_value`, whose block adds them by `block_sum`."""
    host = HostDriver(seed, sources=sources)
    rows, values = np.arange(1000.0) ** 2, np.zeros(1)
    step = np.zeros(1, record.STEP)
    step["n_values"], step["values"] = 1, values.ctypes.data
    launch = np.zeros(1, record.LAUNCH)
    launch["step"], launch["m"], launch["work"] = step.ctypes.data, len(rows), rows.ctypes.data
    host.launch(np.dtype(np.float32), Launch("mean_value", (1, 1, 1), (1024, 1, 1), 0, launch))
    return values[0]


@needs_compiler
def test_a_missing_barrier_is_caught(tmp_path):
    """Threads run in an order drawn anew at every barrier: without the one in `block_sum`'s tree sums are wrong."""
    for name in ("as it is", "patched"):
        root = tmp_path / name
        shutil.copytree(CSRC, root)
        (root / "cuda" / "kernels.cu").write_text('#include "cuda/run.cuh"\n')
    device = root / "cuda" / "device.cuh"
    text = device.read_text()
    start = text.index("double block_sum(")
    loop = text.index("for (int h", start)
    barrier = text.index("__syncthreads();", loop)
    device.write_text(text[:barrier] + text[barrier + len("__syncthreads();") :])
    expected = (np.arange(1000.0) ** 2).mean()
    assert [mean_by_block(tmp_path / "as it is", seed) for seed in range(3)] == [expected] * 3
    assert all(mean_by_block(tmp_path / "patched", seed) != expected for seed in range(3))


@pytest.mark.slow
@needs_compiler
def test_kernels_under_sanitizers():
    """The host's kernels with the address and undefined-behaviour sanitizers, also around arrays in shared memory."""
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):
        path = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip(f"{compiler()} has no {name}")
        libraries.append(path)
    variables = {
        "LD_PRELOAD": " ".join(libraries), "FASTAE_SANITIZE": "address", "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k",
         "not 300 and not missing and not need and not 264 and not 304 and not 512 and not 520",
         "test_cuda_records.py"],  # `make asan` runs all of them
        cwd=ROOT / "tests", env=os.environ | variables, capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert " passed" in done.stdout
