"""The kernels compiled for GPUs, where nvcc or NVRTC is: no warnings, no spills, no float64 where float32 is meant."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from test_packaging import ENVIRONMENT, ROOT

from fastae.backends.cuda import manifest, source

CSRC = ROOT / "csrc"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")

# Kernels for float32 that calculate in float64, by reason. Reading and rounding a float64 does not count.
FLOAT64 = {
    "sums over rows, columns or features, and a step's values, as on the CPU": """
        activity batch_norm_grad_sums batch_norm_statistics centre_columns check clip_factor clip_squares column_means
        contractive contractive_norms contractive_sums decorrelation_rest kl_means layer_norm layer_norm_grad
        layer_norm_grad_sums likelihood loss loss_wide mean_value orthogonality_rest pair project_max_norm project_unit
        projector_rest size_factor softmax softmax_grad sum_value weight_penalty code_penalty code_statistics code_value
        error_factor gated_grad jumprelu_count jumprelu_grad jumprelu_l0 latent_grad_bias latent_sum norm_factor
        norms_make squared_error squares_by_column""",
    "a statistic or factor that such a sum gave, once per column or thread": """
        batch_norm batch_norm_grad clip_scale fold_norm latent_grad_finish latent_update""",
    "a rate's threshold and 1 / (1 - rate), once per thread": """
        activation_grad dense_bf16 dense_bf16_chain dense_finish dense_grad_finish dense_large dense_middle dense_small
        dropout input_grad_bf16 input_grad_bf16_chain input_grad_large input_grad_middle input_grad_small noise""",
    "erf of float32 in float64, as on the CPU": "activation dense_int8_large dense_int8_middle dense_int8_small",
    "a step's scalars, once per thread": "average project_elements",
    "standardised rows there and back, element by element, as on the CPU": "restore standardize",
    "numbers of rows and latents, once per batch": "batch_begin batch_finish",
    "bounds of rounding, once per row": "certify_begin certify_pack pack_encoder",
    "one draw by weight per row": "neighbour",
}


# The others are compiled where a wheel is built (test_packaging.py).
COMBINATIONS = [pytest.param(real, 90, id=f"{real}-sm_90") for real in source.REALS]


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel takes: registers, bytes of stack and of registers spilled to memory."""

    registers: int
    stack: int
    spilled: int


@cache
def compiled(real, architecture):
    """PTX, what nvcc says, and ptxas's report on it: the front end, which takes most of the time, runs once."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernels.ptx")
        warnings = source.run_nvcc("-ptx", f"-arch=sm_{architecture}", f"-I{CSRC}", *source.OPTIONS,
                                   f"-DFASTAE_REAL={real}", CSRC / source.UNITS[0], "-o", ptx)  # fmt: skip
        command = ["ptxas", f"-arch=sm_{architecture}", "-v", ptx, "-o", os.devnull]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ptx.read_text(), warnings, done.stderr


def resources(report):
    """ptxas -v: Resources by kernel."""
    pattern = re.compile(
        r"Compiling entry function 'fastae_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return {
        name: Resources(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in pattern.findall(report)
    }


def known_kernels(real):
    """Those of the manifest; what is made of products in bfloat16 is float32's."""
    of_float = re.compile(r"certify_|fallback_|pack_encoder|stream_|(dense|\w+_grad)_bf16")
    return {name for name in manifest.kernel_digests(CSRC) if real == "float" or not of_float.match(name)}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("real, architecture", COMBINATIONS)
def test_kernels_compile(real, architecture):
    _, warnings, report = compiled(real, architecture)
    found = resources(report)
    width = max(map(len, found))
    print(f"\n{real}, sm_{architecture}", *(f"{name:{width}} {r.registers:4} registers {r.stack:5} bytes of stack"
                                             for name, r in sorted(found.items())), sep="\n")  # fmt: skip
    assert not warnings.strip() and "warning" not in report, warnings + report
    assert set(found) == known_kernels(real), "the manifest and the compiler know the same kernels"
    spilled = {name: r.spilled for name, r in found.items() if r.spilled}
    assert not spilled, f"registers spilled to memory, in bytes: {spilled}"


# ---- float64 where float32 is meant ---

_HARMLESS = re.compile(r"(ld|st|mov|selp|cvt\.rn\.f32|cvt\.rn\.bf16|cvt\.rn\.f16|cvt\.rzi\.[su]\d+)\b[\w.:]*\.f64")


def float64_kernels(ptx):
    """Kernel → its first instruction that calculates in float64, or widens to it."""
    functions = re.split(r"^(?=(?:\.visible |\.weak )?(?:\.entry|\.func))", ptx, flags=re.MULTILINE)[1:]
    texts = {re.search(r"\.(?:entry|func)\s*(?:\([^)]*\))?\s*(\w+)", text)[1]: text for text in functions}

    def first(name, seen):
        for line in map(str.strip, texts[name].splitlines()):
            instruction = re.sub(r"^@!?%p\d+\s+", "", line)
            if ".f64" in instruction and instruction[0] not in "./" and not _HARMLESS.match(instruction):
                return instruction
        calls = set(re.findall(r"^\s*(\w+),?\s*$", texts[name], re.MULTILINE)) & texts.keys()
        for called in sorted(calls - seen):  # functions that were not inlined
            if found := first(called, seen | {called}):
                return found
        return None

    found = {name: first(name, {name}) for name in texts if name.startswith("fastae_")}
    return {name.removeprefix("fastae_"): line for name, line in found.items() if line}


def lint(ptx):
    found = float64_kernels(ptx)
    known = {name for names in FLOAT64.values() for name in names.split()}
    unintended = [f"kernel {name}: {line}" for name, line in found.items() if name not in known]
    assert not unintended, "float64 in kernels for float32; see FLOAT64 in this file:\n" + "\n".join(unintended)
    assert not known - found.keys(), "these no longer calculate in float64; take them out of FLOAT64"


@needs_nvcc
@pytest.mark.slow
def test_no_unintended_float64():
    lint(compiled("float", 90)[0])


def test_the_lint_sees_float64():
    ptx = """
.visible .entry fastae_good(.param .align 8 .b8 fastae_good_param_0[864])
{
	.reg .f64 %fd<3>;
	ld.param.f64 %fd1, [fastae_good_param_0+8];
	cvt.rn.f32.f64 %f1, %fd1;
	mov.f64 %fd2, %fd1;
	ret;
}
.func (.param .b32 func_retval0) _helper(.param .b64 _helper_param_0)
{
	add.f64 %fd3, %fd1, %fd2;
	ret;
}
.visible .entry fastae_calls(.param .b64 p)
{
	call.uni (retval0),
	_helper,
	(param0);
	ret;
}
.visible .entry fastae_bad(.param .b64 p)
{
	@%p1 mul.f64 %fd1, %fd2, 0d3FE0000000000000;
	ret;
}
.visible .entry fastae_widens(.param .b64 p)
{
	cvt.f64.f32 %fd1, %f1;
	ret;
}
"""
    assert set(float64_kernels(ptx)) == {"calls", "bad", "widens"}
    with pytest.raises(AssertionError, match="kernel bad: mul"):
        lint(ptx)


# ---- NVRTC ---


@cache
def nvrtc_libraries():
    """Those of NVIDIA's wheels in this environment, and those that FASTAE_NVRTC names (paths, with colons between)."""
    found = [Path(path) for path in os.environ.get("FASTAE_NVRTC", "").split(":") if path]
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*"):
            found += [path for path in sorted(Path(folder).glob(pattern)) if ".alt." not in path.name]
    return found


def nvrtc_ptx(path, text, options):
    """PTX of a source, and what NVRTC says, by its version."""
    library = ctypes.CDLL(str(path))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)

    def text_of(what):
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    log = text_of("ProgramLog")
    assert status == 0, f"NVRTC of {path}: {log}"
    ptx = text_of("PTX")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


@pytest.mark.parametrize("real", ["float", pytest.param("double", marks=pytest.mark.slow)])
def test_nvrtc_compiles_the_kernels_as_one_text(real):
    """What a GPU's first use does where no fatbin is, with each version at hand."""
    if not nvrtc_libraries():
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc, or its path in FASTAE_NVRTC")
    for path in nvrtc_libraries():
        options = [*source.NVRTC_OPTIONS, f"-DFASTAE_REAL={real}", "-arch=compute_90"]
        ptx, log = nvrtc_ptx(path, source.kernels(), options)
        assert not log.strip("\0\n "), f"NVRTC of {path}: {log}"
        entries = set(re.findall(r"\.entry fastae_(\w+)", ptx))
        assert entries == known_kernels(real), path
        if real == "float":
            lint(ptx)
