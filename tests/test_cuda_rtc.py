"""NVRTC's binding, on small texts, where the library is: the kernels themselves are test_cuda_compile.py's."""

import ctypes

import pytest
from test_cuda_compile import nvrtc_libraries

from fastae.backends.cuda import rtc, source

TEXT = 'extern "C" __global__ void twice(float* x) { *x = *x / 3 + *x; }'

needs_nvrtc = pytest.mark.skipif(not nvrtc_libraries(), reason="needs NVRTC: its path in FASTAE_NVRTC")


@pytest.fixture(params=nvrtc_libraries() or [None], ids=lambda path: str(path).rpartition("/")[2])
def library(request):
    return rtc.declare(ctypes.CDLL(str(request.param)))


@needs_nvrtc
def test_code_for_a_gpu_and_ptx(library):
    assert rtc.version(library) >= (12, 0)
    assert rtc.compile_text(library, TEXT, [*source.NVRTC_OPTIONS, "-arch=sm_90"], "CUBIN")[:4] == b"\x7fELF"
    ptx = rtc.compile_text(library, TEXT, [*source.NVRTC_OPTIONS, "-arch=compute_90"], "PTX")
    assert ptx.endswith(b"\0") and b"div.rn.f32" in ptx
    assert b".ftz" not in ptx, "denormal numbers stay what they are"
    assert rtc.compile_text(library, TEXT, [*source.NVRTC_OPTIONS, "-dlto", "-arch=sm_90"], "LTOIR")


@needs_nvrtc
def test_an_architecture_that_the_compiler_does_not_know(library):
    assert rtc.target(library, 90) == ("-arch=sm_90", "CUBIN")
    option, kind = rtc.target(library, 999)
    assert kind == "PTX" and int(option.removeprefix("-arch=compute_")) >= 90


@needs_nvrtc
def test_errors_are_the_compilers(library):
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC \d+\.\d+: nvrtcCompileProgram failed: .*nonsense"):
        rtc.compile_text(library, "__global__ void f() { nonsense; }", ["-arch=sm_90"], "CUBIN")


def test_without_nvrtc_the_remedy_is_told(monkeypatch):
    import sys

    rtc.open_library.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(ImportError, match=r"NVRTC could not be opened.*pip install 'fastae\[cuda13\]'"):
        rtc.open_library()


def test_what_was_compiled_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return b"code"

    assert [rtc.cached(("text", 1), make, "cubin") for _ in range(2)] == [b"code", b"code"]
    assert rtc.cached(("text", 2), make, "cubin") == b"code" and len(made) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    assert rtc.cached(("text", 1), make, "cubin") == b"code" and len(made) == 3
