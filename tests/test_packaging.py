"""What is shipped: cheap imports, fresh generated files, kernels that cannot leak into each other, one version."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A sanitizer preloaded into this process must not reach the compiler.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def run_python(*arguments, **variables):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("statement", ["import fastae", "import fastae.threads", "import fastae; dir(fastae)"])
def test_import_is_lean(statement):
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run_python("-c", code))}
    heavy = {"sklearn", "numba", "scipy", "cupy", "joblib", "pandas", "matplotlib", "torch", "tqdm"}
    assert not loaded & heavy


def test_import_time():
    # Beyond numpy's own import; the best of five, so that a busy machine does not decide.
    code = "import time, numpy; start = time.perf_counter(); import fastae; print(time.perf_counter() - start)"
    assert min(float(run_python("-c", code)) for _ in range(5)) < 0.020


def test_generated_files_are_fresh():
    run_python("-m", "fastae.codegen", "--check")


def test_one_version():
    import fastae

    assert fastae.__version__ == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(PROJECT['version'])}\b", changelog, re.MULTILINE), "CHANGELOG.md lacks it"
    try:
        installed = importlib.metadata.version("fastae")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastae is imported from the source tree, not installed: nothing to compare with")
    assert installed == PROJECT["version"]


def test_typed():
    assert (ROOT / "fastae" / "py.typed").exists()
    assert (ROOT / "fastae" / "_core.pyi").exists()


def test_extension_exports_only_its_entry_points():
    spec = importlib.util.find_spec("fastae._core")
    nm = shutil.which("nm")
    if spec is None or nm is None:
        pytest.skip("needs the native extension and nm")
    listing = subprocess.run([nm, "-D", "--defined-only", spec.origin], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    ours = {name for name in names if "fastae" in name}
    assert ours == {"fastae_get_num_threads", "fastae_set_num_threads"}
    assert "PyInit__core" in names


def test_extension_does_not_link_cuda():
    spec = importlib.util.find_spec("fastae._core")
    tool = shutil.which("objdump")
    if spec is None or tool is None:
        pytest.skip("needs the native extension and objdump")
    listing = subprocess.run([tool, "-p", spec.origin], capture_output=True, text=True, check=True).stdout
    needed = [line.split()[1] for line in listing.splitlines() if line.split()[:1] == ["NEEDED"]]
    assert needed and not [name for name in needed if re.search("cu(da|blas|rt)|nv", name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from a copy of the tree: (its file, its report, the folder of what was compiled for it)."""
    # by their metadata: looking for pip's module makes setuptools leave distutils to the standard library
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    if missing := [name for name in ("pip", "pybind11", "setuptools") if name not in installed]:
        pytest.skip(f"needs {missing} to build a wheel")
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "fastae", tree / "fastae",
                    ignore=shutil.ignore_patterns("*.so", "__pycache__", "_build.json", "kernels_*"))  # fmt: skip
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("PYTHONPATH", "FASTAE_CUDA")}
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "wheels"]
    subprocess.run(command, cwd=tree, env=environment, check=True)
    (wheel,) = (tree / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        report = json.loads(file.read("fastae/_build.json"))
    return wheel, report, tree / "build"


@pytest.mark.slow
def test_wheel_has_the_device_code(built, tmp_path):
    """Sources of the kernels in every wheel, and code compiled ahead where nvcc is; neither makes it large."""
    wheel, report, _ = built
    with zipfile.ZipFile(wheel) as file:
        sizes = {info.filename: info.compress_size for info in file.infolist()}
        file.extractall(tmp_path)
    fatbins = {name for name in sizes if name.endswith(".fatbin")}
    device = {name: size for name, size in sizes.items() if name.startswith("fastae/backends/cuda/")}
    assert "fastae/backends/cuda/csrc/cuda/kernels.cu" in device
    assert sum(size for name, size in device.items() if name not in fatbins) < 2 << 20
    assert sum(device.values()) < 5 << 20
    if shutil.which("nvcc") is None:
        assert not fatbins and report["cuda"] is None
    else:
        assert fatbins == {f"fastae/backends/cuda/kernels_{real}.fatbin" for real in ("float", "double")}
        assert {90, 120} <= set(report["cuda"]["float"]["architectures"])
    code = (
        "from fastae.backends.cuda import source; print(source.folder()); "
        "print(*(source.fatbin(real) is not None for real in source.REALS))"
    )
    said = run_python("-P", "-c", code, PYTHONPATH=str(tmp_path)).split()
    assert said == [str(tmp_path / "fastae/backends/cuda/csrc"), *[str(bool(fatbins))] * 2]


def instruction_sets():
    return sorted(path.stem.removeprefix("isa_") for path in (ROOT / "csrc").glob("isa_*.cpp"))


@pytest.mark.slow
@pytest.mark.parametrize("isa", instruction_sets())
def test_kernels_have_internal_linkage_only(isa, built):
    """A weak symbol compiled for AVX-512 may be the linker's choice for all, and crash an older processor."""
    _, report, folder = built
    compiler, nm = shutil.which(os.environ.get("CXX", "g++")), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("needs a C++ compiler (g++, or the one that CXX names) and nm")
    if isa not in (*report["instruction_sets"], *report["failed"]):
        pytest.skip(f"{isa} is not built on this platform")
    (library,) = folder.rglob(f"libfastae_{isa}.a")
    listing = subprocess.run([nm, "--defined-only", "-g", library], capture_output=True, text=True, check=True).stdout
    symbols = {fields[2]: fields[1] for fields in map(str.split, listing.splitlines()) if len(fields) == 3}
    tables = {"avx512": ["avx512", "avx512_bf16", "avx512_amx"]}.get(isa, [isa])
    assert symbols == {f"fastae_kernels_{name}": "T" for name in tables}
