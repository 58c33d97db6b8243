"""Formulas of Python functions in the device's kernels, compiled and linked for a GPU; test_registry calls them."""

import math
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import fastae
from fastae import registry
from fastae.backends.cuda import user
from fastae.registry import FORMULAS

FLOAT32 = np.dtype(np.float32)
SCALE = 0.3  # a constant from outside a function is a float64


def bent(x, bend):
    return (math.sqrt(x * x + 1) - 1) * bend + x


def bent_slope(x, bend):
    return x / math.sqrt(x * x + 1.0) * bend + 1


def from_outside(x):
    return x * SCALE


@pytest.fixture
def bent_formula(clean):
    return registered("cuda_bent", y=bent, dy=bent_slope, parameters={"bend": 0.5})


@pytest.fixture
def clean():
    """Takes back what a test registers."""
    before = set(FORMULAS)
    yield
    for index in sorted(set(FORMULAS) - before):
        registry.forget(index)


def registered(name, **given):
    return FORMULAS[fastae.register_activation(name, **given)._index]


def compiled(function):
    return function


# ---- without anything of CUDA ---


def test_arguments_and_parameters_have_places(bent_formula):
    assert [part[:2] for part in user.parts(bent_formula)] == [(0, "y"), (1, "dy")]
    y, dy = (user.scalar_function(bent_formula, suffix, FLOAT32, compiled) for suffix in ("y", "dy"))
    assert y(2.0, 99.0, 0.5, 99.0) == pytest.approx(bent(2.0, 0.5))
    assert dy(2.0, 99.0, 0.5, 99.0) == pytest.approx(bent_slope(2.0, 0.5))


def test_literals_are_typed():
    one = user.typed(bent, FLOAT32)
    assert {type(c) for c in one.__code__.co_consts if c is not None} <= {np.float32, str}
    assert one(3.0, 0.5) == pytest.approx(bent(3.0, 0.5))
    assert user.typed(bent, np.dtype(np.float64)) is bent
    squared = user.typed(lambda x: 0.5 * x**2, FLOAT32)  # an integer power is not a float's
    assert {type(c) for c in squared.__code__.co_consts if c is not None} == {np.float32, int}
    shift = 0.75
    assert user.typed(lambda x, *, add=0.5: x + shift + add, FLOAT32)(1.0) == 2.25


def test_float64_is_seen_in_ptx():
    assert user.float64_line("\t.reg .f64 \t%fd<4>;\n\tmul.f32 %f1, %f2, %f3;\n") is None
    assert user.float64_line("\tld.param.f32 %f1, [p];\n\tcvt.f64.f32 \t%fd1, %f1;\n") == "cvt.f64.f32 \t%fd1, %f1;"


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    assert "pip install 'fastae[cuda13]'" in user.missing()


# ---- with numba-cuda ---

needs_numba_cuda = pytest.mark.skipif(user.missing() is not None, reason=str(user.missing()))


@needs_numba_cuda
def test_functions_calculate_in_float32(bent_formula):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(user.compile_functions(bent_formula, FLOAT32, 90)) == 2


@needs_numba_cuda
def test_float64_in_a_function_is_warned_of(clean):
    outside = registered("cuda_outside", y=from_outside, dy=lambda x: 0.3)
    with pytest.warns(UserWarning, match=r"activation 'cuda_outside': y calculates in float64 .*np\.float32"):
        user.compile_functions(outside, FLOAT32, 90)


def instructions(cubin):
    """Disassembly, where the tool is; None elsewhere."""
    tool = shutil.which("nvdisasm")
    if tool is None:
        return None
    return subprocess.run([tool, "-"], input=cubin, capture_output=True, check=True).stdout.decode()


@needs_numba_cuda
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", [90, pytest.param(120, marks=pytest.mark.slow)])
def test_a_kernel_is_linked_with_functions(bent_formula, dtype, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user.compile_kernels.cache_clear()
    made = {kernel: user.cubin(bent_formula, kernel, np.dtype(dtype), architecture)
            for kernel in ("activation", "activation_grad")}  # fmt: skip
    for kernel, cubin in made.items():
        assert cubin[:4] == b"\x7fELF"
        assert f".text.fastae_{kernel}\0".encode() in cubin
        assert b".text.fastae_dense_" not in cubin, "only the kernel that was asked for"
        assert b".text.fastae_user_" not in cubin, "functions are inlined"
        text = instructions(cubin)
        assert text is None or "MUFU.RSQ" in text or "MUFU.SQRT" in text
    assert len(list(tmp_path.rglob("*.ltoir"))) == 1  # the kernels were compiled once


@needs_numba_cuda
def test_a_missing_function_is_an_error_that_names_the_kernel(bent_formula):
    kernels = user.compile_kernels(FLOAT32, 3, 90)
    with pytest.raises(RuntimeError, match=r"(?s)linking kernel activation .*fastae_user_"):
        user.link([kernels], "activation", 90)


def test_python_functions_without_numba_cuda(bent_formula, monkeypatch):
    from fastae.backends.cuda.driver import CupyDriver

    monkeypatch.setattr(user, "missing", lambda: "no numba-cuda")
    with pytest.raises(ImportError, match="activation 'cuda_bent': no numba-cuda; or register it as text"):
        CupyDriver.user_function(types.SimpleNamespace(), bent_formula, "y", FLOAT32)
