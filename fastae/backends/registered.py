"""Formulas registered at run time, made into what each backend calls; see `fastae.registry`.

Text becomes NumPy for the reference backend, a Numba loop for the Numba backend, and a program of block operations for
the native one. A Python function is compiled by Numba: loops for the Python backends, and for the native one a C
function over a block of elements. Everything is made when it is first needed and kept while the process lives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import catalog, codegen

if TYPE_CHECKING:
    from ..registry import Formula


class Table(dict):
    """Index in the catalogue → the functions of a row; those of a registered row are made when first asked for."""

    def __init__(self, backend: str, rows: tuple):
        super().__init__(enumerate(rows))
        self._make = {"reference": on_arrays, "numba": loops}[backend]

    def __missing__(self, index: int) -> tuple[Callable, ...]:
        from ..registry import FORMULAS

        return self.setdefault(index, tuple(self._make(FORMULAS[index]).values()))


def _executed(source: str, formula: Formula, names: dict[str, Any]) -> dict[str, Callable]:
    exec(source, names)  # only what codegen.emit lets through, and calls of the user's own functions
    return {suffix: names[f"{formula.row.name}_{suffix}"] for suffix, _, _ in codegen.functions(formula.row)}


# ---- on arrays: the reference backend -------------------------------------------------------------------------------


@cache
def on_arrays(formula: Formula) -> dict[str, Callable]:
    """suffix → function(*arguments, p) of float64 arrays of any shape."""
    if not formula.functions:
        from .reference import primitives

        return _executed(codegen.numpy_functions(formula.row), formula, {"np": np, "primitives": primitives})
    made = loops(formula)
    chained = isinstance(formula.row, catalog.Activation)
    return {suffix: _of_arrays(loop, chained and suffix == "dy") for suffix, loop in made.items()}


def _of_arrays(loop: Callable, chained: bool) -> Callable:
    def call(*values: Any) -> np.ndarray:
        *arrays, p = values
        out = np.empty(arrays[0].shape)
        flat = [np.ascontiguousarray(a, dtype=np.float64).reshape(-1) if np.ndim(a) else float(a) for a in arrays]
        loop(*flat, np.array(p, dtype=np.float64), *([np.ones(out.size)] if chained else []), out.reshape(-1))
        return out

    return call


@cache
def on_points(formula: Formula) -> dict[str, Callable]:
    """The same for a few points, as the check of derivatives needs it: nothing is compiled but the user's scalars."""
    if not formula.functions:
        return on_arrays(formula)
    scalars = scalar_functions(formula)
    return {suffix: _of_points(scalars[suffix], formula.signatures[suffix], arguments, formula)
            for suffix, arguments, _ in codegen.functions(formula.row) if suffix in scalars}  # fmt: skip


def _of_points(scalar: Callable, signature: tuple[str, ...], arguments: list[str], formula: Formula) -> Callable:
    vectorised = np.vectorize(scalar, otypes=[np.float64])

    def call(*values: Any) -> np.ndarray:
        *arrays, p = values
        names = [*arguments, *(parameter.name for parameter in formula.row.parameters)]
        given = dict(zip(names, [*arrays, *map(float, p)], strict=True))
        return vectorised(*[given[name] for name in signature])

    return call


# ---- Numba ----------------------------------------------------------------------------------------------------------


@cache
def _compiler() -> Callable:
    from numba import njit

    return njit(nogil=True, error_model="numpy")


@cache
def scalar_functions(formula: Formula) -> dict[str, Callable]:
    """The user's functions, compiled as scalar ones."""
    return {suffix: _compiler()(function) for suffix, function in formula.functions.items()}


def _names(formula: Formula) -> dict[str, Any]:
    """What stands behind names in generated source: the primitives, the compiler, the user's functions."""
    from .numba import primitives

    own = {f"{suffix}_of": function for suffix, function in scalar_functions(formula).items()}
    return {"primitives": primitives, "_jit": _compiler(), **own}


@cache
def loops(formula: Formula) -> dict[str, Callable]:
    """suffix → a compiled loop like those of ``backends/numba/formulas.py``."""
    source = codegen.numba_functions(formula.row, {name: len(s) for name, s in formula.signatures.items()})
    return _executed(source, formula, _names(formula))


# ---- native ---------------------------------------------------------------------------------------------------------


@cache
def native(formula: Formula, dtype: np.dtype) -> tuple[int, bool, list]:
    """Index, whether an activation's derivative is taken from x, and each function as the kernels take it.

    A function is (code, constants, temporaries) of a program, the address of a C function, or None.
    """
    made = [
        _c_function(formula, suffix, arguments, text, dtype) if suffix in formula.functions else
        _program(formula, arguments, text) for suffix, arguments, text in codegen.functions(formula.row)
    ]  # fmt: skip
    return formula.index, getattr(formula.row, "needs", "") == "x", made


def _program(formula: Formula, arguments: list[str], text: str) -> tuple:
    from ..registry.program import compile_program

    program = compile_program(text, arguments, [parameter.name for parameter in formula.row.parameters])
    return program.code, program.constants, program.n_temporaries


_KEPT: list[Any] = []  # the compiled C functions, whose addresses plans hold


def _c_function(formula: Formula, suffix: str, arguments: list[str], text: str, dtype: np.dtype) -> int:
    """Address of ``int64 f(const T* a, const T* b, const T* p, T* out, int64 n)``, which gives n back.

    Anything else than n means that an exception ended it.
    """
    from numba import carray, cfunc, types

    names = {name: f"{array}[i]" for name, array in zip(arguments, "ab", strict=False)}
    names |= {parameter.name: f"p[{i}]" for i, parameter in enumerate(formula.row.parameters)}
    arity = {name: len(signature) for name, signature in formula.signatures.items()}
    source = (
        "def block(a, b, p, out, n):\n"
        "    a, b, p, out = carray(a, n), carray(b, n), carray(p, 2), carray(out, n)\n"
        "    for i in range(n):\n"
        f"        out[i] = {codegen.numba_expression(text, names, arity)}\n"
        "    return n\n"
    )
    scope = _names(formula) | {"carray": carray}
    exec(source, scope)
    real = types.CPointer(types.float64 if dtype == np.float64 else types.float32)
    compiled: Any = cfunc(types.int64(real, real, real, real, types.int64), error_model="numpy")(scope["block"])
    _KEPT.append(compiled)
    return compiled.address
