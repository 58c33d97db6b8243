"""What the register functions are given: parameters with bounds, and formulas as texts or as Python functions."""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable
from types import CodeType
from typing import Any

from .. import catalog
from ..catalog import Activation, Loss, Parameter, Penalty
from ..codegen import FormulaError, functions
from ..spec.options import ActivationOption, LossOption, PenaltyOption, number

MAX_TEXT = 2000  # characters of one formula
MAX_PARAMETERS = 2  # p0 and p1 of the records, see fastae/plan/schema.py
ROWS: dict[str, Any] = {"activation": Activation, "loss": Loss, "penalty": Penalty}
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
# what options have beside their parameters, which a field of that name would hide
_OF_OPTIONS = {name for cls in (ActivationOption, LossOption, PenaltyOption) for name in dir(cls)}
_RESERVED = {*"xytws", "name", *_OF_OPTIONS, *catalog.PRIMITIVES}
_VARIABLES: dict[str, list[tuple[str, ...]]] = {
    "activation": [("x",), ("y",)], "loss": [("y", "t")], "penalty": [("w",)],
}  # fmt: skip


def parse_parameters(given: Any) -> tuple[Parameter, ...]:
    if given is None:
        given = {}
    if not isinstance(given, dict) or len(given) > MAX_PARAMETERS:
        raise ValueError(
            f"parameters={given!r} must be a dict of at most {MAX_PARAMETERS}: name → default or (default, low, high)"
        )
    made = []
    for name, value in given.items():
        if not isinstance(name, str) or not WORD.fullmatch(name) or keyword.iskeyword(name) or name in _RESERVED:
            raise ValueError(
                f"parameter {name!r} must be a word that means nothing else in formulas, as {', '.join('xytws')} and "
                "functions do, nor in options, as 'output' does; rename it"
            )
        default, low, high = value if isinstance(value, (tuple, list)) and len(value) == 3 else (value, None, None)
        low = -math.inf if low is None else number(f"{name}'s low", low, -math.inf, math.inf, "neither")
        high = math.inf if high is None else number(f"{name}'s high", high, low, math.inf, "left")
        left, right = math.isfinite(low), math.isfinite(high)
        closed = "both" if left and right else "left" if left else "right" if right else "neither"
        made.append(Parameter(name, number(f"{name}'s default", default, low, high, closed), low, high, closed))
    return tuple(made)


def parse_formulas(kind: str, name: str, given: dict, parameters: list[str]) -> tuple[dict, dict, dict]:
    """Texts of the row, and the user's functions with the names of their arguments where that is what came."""
    present = {suffix: value for suffix, value in given.items() if value is not None}
    missing = [suffix for suffix in given if suffix not in present and suffix not in ("d2y", "smooth", "prox")]
    if missing:
        raise ValueError(f"{kind} {name!r} has no {missing[0]}; give {missing[0]}= as text or a function: a derivative "
                         "is never taken numerically")  # fmt: skip
    if all(isinstance(value, str) for value in present.values()):
        texts = {suffix: value.strip() for suffix, value in present.items()}
        own: dict[str, Callable] = {}
    elif all(callable(value) for value in present.values()):
        own = {suffix: getattr(value, "py_func", value) for suffix, value in present.items()}
        texts = {suffix: _call(kind, name, suffix, function, parameters) for suffix, function in own.items()}
        if "d2y" in texts and texts["d2y"][4:5] != texts["dy"][3:4]:
            raise ValueError(f"{kind} {name!r}: d2y takes another variable than dy; write it of the same one")
    else:
        raise TypeError(f"{kind} {name!r} needs {', '.join(present)} as texts, or all of them as functions")
    if kind == "penalty":
        texts = {"smooth": texts["dw"], "prox": None} | texts
        if own and "smooth" not in own:
            own["smooth"], texts["smooth"] = own["dw"], texts["dw"].replace("dw(", "smooth(", 1)
    signatures = {suffix: tuple(inspect.signature(function).parameters) for suffix, function in own.items()}
    if not own:
        _check_texts(kind, name, texts, parameters)
    return texts, own, signatures


def _call(kind: str, name: str, suffix: str, function: Callable, parameters: list[str]) -> str:
    """The row's text for a function: its call, which has the names that a text would have."""
    variables = [("w", "s")] if suffix == "prox" else _VARIABLES[kind]
    if suffix == "y":
        variables = variables[:1]
    try:
        names = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = ()
    for wanted in variables:
        if names[: len(wanted)] == wanted and set(names[len(wanted) :]) <= set(parameters):
            return f"{suffix}({', '.join(names)})"
    wanted_names = " or ".join(f"({', '.join([*v, *parameters])})" for v in variables)
    raise ValueError(f"{kind} {name!r}: {suffix} takes {names}; wanted {wanted_names}; declare others in parameters=")


def _check_texts(kind: str, name: str, texts: dict, parameters: list[str]) -> None:
    from .program import compile_program

    for suffix, text in texts.items():
        if text is not None and len(text) > MAX_TEXT:
            raise ValueError(f"{kind} {name!r}: {suffix} has {len(text)} characters; at most {MAX_TEXT} are allowed")
    try:
        row = ROWS[kind](name, name, **texts, parameters=tuple(Parameter(p, 0.0) for p in parameters))
        for _, arguments, text in functions(row):
            compile_program(text, arguments, parameters)
    except FormulaError as error:
        raise FormulaError(f"{kind} {name!r}: {error}") from None


def code_of(own: dict[str, Callable]) -> Any:
    """What makes two definitions of the same functions equal, wherever they stand."""

    def key(value: Any) -> Any:
        if isinstance(value, CodeType):
            return value.co_code, value.co_names, value.co_varnames, tuple(key(c) for c in value.co_consts)
        return type(value).__name__, repr(value)

    return {suffix: key(function.__code__) for suffix, function in own.items()}
