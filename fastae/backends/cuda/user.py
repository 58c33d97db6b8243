"""Formulas of Python functions on a GPU: Numba makes device code of the functions, nvJitLink links it with a kernel.

The kernels are compiled once by NVRTC as intermediate code in which a formula's functions are external
(csrc/cuda/formula.cuh). For each formula, and each kernel that runs it, that code and the functions become one cubin,
in which the functions are inlined. Needs numba-cuda and what it brings, not CuPy and no GPU.
"""

from __future__ import annotations

import dis
import importlib
import re
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ... import codegen
from ...registry import Formula
from . import rtc

REAL = {"float32": "float", "float64": "double"}
_LTO_IR = 3  # nvJitLinkInputType


def parts(formula: Formula) -> list[tuple[int, str, list[str], str]]:
    """Functions of a formula that are Python's: number, suffix, arguments, and how the function is called."""
    rows = enumerate(codegen.functions(formula.row))
    return [(i, suffix, names, text) for i, (suffix, names, text) in rows if suffix in formula.functions]


def scalar_function(formula: Formula, suffix: str, dtype: np.dtype, compiler: Callable) -> Callable:
    """``f(a, b, p0, p1)``: arguments and parameters of a formula's function in their places.

    compiler : makes of a user's function what a compiled function can call
    """
    _, _, arguments, text = next(part for part in parts(formula) if part[1] == suffix)
    names = dict(zip(arguments, "ab", strict=False))
    names |= {parameter.name: f"p{i}" for i, parameter in enumerate(formula.row.parameters)}
    arity = {name: len(signature) for name, signature in formula.signatures.items()}
    scope: dict[str, Any] = {"T": dtype.type}
    scope |= {f"{name}_of": compiler(typed(f, dtype)) for name, f in formula.functions.items()}
    exec(f"def part(a, b, p0, p1):\n    return {codegen.numba_expression(text, names, arity)}\n", scope)
    return scope["part"]


def typed(function: Callable, dtype: np.dtype) -> Callable:
    """The function with its literals of a plan's real type: a bare one makes Numba calculate in float64."""
    function = getattr(function, "py_func", function)  # of one that Numba compiled before
    if dtype != np.float32 or not isinstance(function, types.FunctionType):
        return function
    code = function.__code__
    literals = (float, int) if _is_arithmetic(code) else (float,)
    constants = tuple(np.float32(c) if type(c) in literals else c for c in code.co_consts)
    new = types.FunctionType(code.replace(co_consts=constants), function.__globals__, function.__name__,
                             function.__defaults__, function.__closure__)  # fmt: skip
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def _is_arithmetic(code: types.CodeType) -> bool:
    """Whether integers in a function are numbers like any other: not powers, indices, counts or masks."""
    kept = ("**", "**=", "<<", ">>", "&", "|", "^", "[]")
    return not any(
        i.opname in ("BINARY_SUBSCR", "BINARY_SLICE", "STORE_SUBSCR", "GET_ITER")
        or (i.opname == "BINARY_OP" and i.argrepr in kept)
        for i in dis.get_instructions(code)
    )


def missing() -> str | None:
    """Why formulas of Python functions cannot run on a GPU here, with what to do about it."""
    try:
        for module in ("cuda.bindings.nvjitlink", "numba_cuda"):
            importlib.import_module(module)
    except ImportError as error:
        return f"a formula of Python functions needs numba-cuda ({error}): pip install 'fastae[cuda13]' (or [cuda12])"
    return None


def compile_functions(formula: Formula, dtype: np.dtype, architecture: int) -> list[bytes]:
    """Intermediate code of a formula's Python functions; warns where they calculate in float64 for float32."""
    from numba import cuda
    from numba import types as numba_types

    real = numba_types.float64 if dtype == np.float64 else numba_types.float32
    out = []
    for i, suffix, _, _ in parts(formula):
        function = scalar_function(formula, suffix, dtype, cuda.jit(device=True, inline="always"))

        def made(kind: str, function: Callable = function, i: int = i) -> Any:
            return cuda.compile(
                function, real(real, real, real, real), device=True, abi="c", output=kind, cc=divmod(architecture, 10),
                abi_info={"abi_name": f"fastae_user_{i}"},
            )[0]  # fmt: skip

        if dtype == np.float32 and (line := float64_line(made("ptx"))):
            warnings.warn(
                f"{formula.kind} {formula.row.name!r}: {suffix} calculates in float64 on the GPU for a float32 model "
                f"({line}), which most GPUs do at a small fraction of their speed; integers and constants from outside "
                "the function do that: write 2.0 for 2, and np.float32(CONSTANT)",
                stacklevel=2,
            )
        out.append(bytes(made("ltoir")))
    return out


def float64_line(ptx: str) -> str | None:
    """The first instruction of PTX that has to do with float64."""
    found = re.search(r"^\s*(?!\.)[\w.@%! ]*\.f64\b.*$", ptx, re.MULTILINE)
    return found[0].strip() if found else None


@cache
def compile_kernels(dtype: np.dtype, functions: int, architecture: int) -> bytes:
    """Intermediate code of the kernels, with calls of those functions of a formula that have their bit set."""
    return rtc.kernels(REAL[dtype.name], architecture, f"-DFASTAE_USER={functions}", lto=True)


def link(inputs: list[bytes], kernel: str, architecture: int) -> bytes:
    """A cubin with one kernel. No multiplication is fused with an addition that the sources don't fuse."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{architecture}", "-lto", "-fma=0", f"-kernels-used=fastae_{kernel}"]
    handle = nvjitlink.create(len(options), options)
    try:
        try:
            for i, data in enumerate(inputs):
                nvjitlink.add_data(handle, _LTO_IR, data, len(data), f"part {i}")
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = bytearray(nvjitlink.get_error_log_size(handle))
            nvjitlink.get_error_log(handle, log)
            raise RuntimeError(f"linking kernel {kernel} with its formula failed: {log.decode().strip()}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        return bytes(cubin)
    finally:
        nvjitlink.destroy(handle)


@cache
def _functions(formula: Formula, dtype: np.dtype, architecture: int) -> tuple[bytes, ...]:
    return tuple(compile_functions(formula, dtype, architecture))


def cubin(formula: Formula, kernel: str, dtype: np.dtype, architecture: int) -> bytes:
    """A kernel with a formula's Python functions in it. architecture : 90 for compute capability 9.0"""
    functions = sum(1 << i for i, *_ in parts(formula))
    kernels = compile_kernels(np.dtype(dtype), functions, architecture)
    return link([kernels, *_functions(formula, np.dtype(dtype), architecture)], kernel, architecture)
