"""Formulas of one's own: activations, losses and penalties registered at run time.

A registered formula is a row of the catalogue like any other: usable by name or as an option, on every backend, in
public ops, copies, pickles and model files. Text (the language of `fastae.catalog`) travels with a pickle or a file and
is registered where it arrives; a Python function must be registered there first.
"""

from __future__ import annotations

import keyword
import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from .. import catalog
from ..spec import options
from ..spec.options import number
from .arguments import ROWS, WORD, code_of, parse_formulas, parse_parameters

_BASES = {"activation": options.ActivationOption, "loss": options.LossOption, "penalty": options.PenaltyOption}
# the tables of option classes by name that a new one belongs in: those that have all the built-in ones
_TABLES = {kind: [table for table in vars(options).values()
                  if isinstance(table, dict) and {row.name for row in catalog.KINDS[kind]} <= set(table)]
           for kind in _BASES}  # fmt: skip
_BUILT_IN = frozenset({"auto", "mean", "sum"}).union(
    *(table for name, table in vars(options).items() if name.isupper() and isinstance(table, dict))
)


@dataclass(frozen=True, eq=False)
class Formula:
    """A registered row. ``functions``, ``signatures``: suffix → the user's Python function, its names; empty for text.

    ``description`` is what a pickle or a file keeps: the arguments of the register function, and for functions some
    points and values by which they are known again.
    """

    kind: str
    index: int
    row: Any
    functions: dict[str, Callable]
    signatures: dict[str, tuple[str, ...]]
    description: dict


FORMULAS: dict[int, Formula] = {}  # every one ever registered, by its index in the catalogue
CLASSES: dict[int, type] = {}  # their option classes
_SIDES = ("", "target_", "prediction_")  # what settings with low and high are of
_numbers = count(catalog.FIRST_REGISTERED)
_lock = threading.RLock()


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold it
    os.register_at_fork(after_in_child=_new_lock)


# ---- public ---------------------------------------------------------------------------------------------------------


def register_activation(
    name: str, *, y: Any, dy: Any, d2y: Any = None, parameters: dict | None = None, low: float | None = None,
    high: float | None = None, init_gain: str = "xavier", replace: bool = False,
) -> type:  # fmt: skip
    """Makes an activation of one's own known under a name.

    Parameters
    ----------
    name : str
        What estimators and ops will take: ``activation="name"``.
    y, dy : str or function
        y = a(x), and its derivative from ``x`` or from ``y``: the function's first argument, or what the text names.
        From ``y`` is cheaper, as the pre-activation need not be kept. Text is in the language of `fastae.catalog`:
        ``+ - * /``, numbers, ``exp, expm1, log, log1p, tanh, erf, erfc, sqrt, fabs, sigmoid, sign, max, min, fma`` and
        ``select(a < b, then, otherwise)``. A Python function takes scalars, then parameters by their names, and must
        be plain arithmetic with functions of ``math`` that Numba compiles.
    d2y : str, function or None
        The second derivative, from the same variable as ``dy``; `fastae.Contractive` in closed form needs it.
    parameters : dict, name → default or (default, low, high)
        At most two; None stands for no bound.
    low, high : float or None
        Range of y for the default parameters; None is unbounded.
    init_gain : "xavier", "he" or "lecun"
        The initialiser that "auto" picks for a layer with this activation.
    replace : bool
        Take the place of another formula of this name. Fitted models keep the one they were fitted with.

    Returns
    -------
    type
        The option class: ``Name(slope=0.2)``.

    Raises
    ------
    ValueError
        The text has something that the language does not; Numba cannot compile the function; the derivative disagrees
        with central differences of y in float64 (the point is named); y or dy is not finite or hides NaN; the name is
        taken. Registering the same formula again does nothing.
    """
    if init_gain not in ("xavier", "he", "lecun"):
        raise options.unknown("init_gain", init_gain, ("xavier", "he", "lecun"))
    return _register("activation", name, {"y": y, "dy": dy, "d2y": d2y}, parameters,
                     {"low": low, "high": high, "init_gain": init_gain}, replace)  # fmt: skip


def register_loss(
    name: str, *, value: Any, dy: Any, parameters: dict | None = None, target_low: float | None = None,
    target_high: float | None = None, output: str = "identity", prediction_low: float | None = None,
    prediction_high: float | None = None, replace: bool = False,
) -> type:  # fmt: skip
    """Makes an elementwise loss of one's own known under a name.

    Parameters
    ----------
    value, dy : str or function
        l(y, t) of prediction y and target t, and its derivative with respect to y; see `register_activation`.
    target_low, target_high : float or None
        The interval, ends included, that targets must lie in: ``fit`` refuses others.
    output : str
        The activation that the loss takes care of itself: with "sigmoid", y is a logit and reconstructions are
        sigmoids of it.
    prediction_low, prediction_high : float or None
        The open interval of predictions that the loss is made for; the check of the derivative stays inside it.
    name, parameters, replace, returns, raises : as for `register_activation`
    """
    if output not in {row.name for row in catalog.ACTIVATIONS}:
        raise options.unknown("output", output, [row.name for row in catalog.ACTIVATIONS])
    settings = {"target_low": target_low, "target_high": target_high, "output": output,
                "prediction_low": prediction_low, "prediction_high": prediction_high}  # fmt: skip
    return _register("loss", name, {"value": value, "dy": dy}, parameters, settings, replace)


def register_penalty(
    name: str, *, value: Any, dw: Any, smooth: Any = None, prox: Any = None, parameters: dict | None = None,
    replace: bool = False,
) -> type:  # fmt: skip
    """Makes an elementwise penalty on weights or activities (`fastae.Activity`) of one's own known under a name.

    Parameters
    ----------
    value, dw : str or function
        R(w) and a (sub)derivative; see `register_activation`.
    prox, smooth : str, function or None
        For a penalty that gives true zeros. ``prox`` of w and the step s is argmin_u ½(u − w)² + s N(u), applied to
        weights after each step; ``smooth`` is the part of ``dw`` that is not N's and goes into the gradient ("0 * w"
        where there is none). Without ``prox`` the whole of ``dw`` goes into the gradient.
    name, parameters, replace, returns, raises : as for `register_activation`
    """
    if (smooth is None) != (prox is None):
        raise ValueError(
            f"penalty {name!r} has {'prox' if smooth is None else 'smooth'} alone; give smooth and prox together: "
            "smooth is the part of dw that prox does not take, '0 * w' where it takes all"
        )
    given = {"value": value, "dw": dw, "smooth": smooth, "prox": prox}
    return _register("penalty", name, given, parameters, {}, replace)


# ---- registering ----------------------------------------------------------------------------------------------------


def _register(kind: str, name: str, given: dict, parameters: Any, settings: dict, replace: bool) -> type:
    from .check import check, compiled, sample

    if not isinstance(name, str) or not WORD.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(f"name={name!r} must be a word of at most 64 letters, digits and underscores")
    if name in _BUILT_IN:
        raise ValueError(f"name={name!r} is taken by fastae itself; choose another name")
    rows = parse_parameters(parameters)
    texts, own, signatures = parse_formulas(kind, name, given, [parameter.name for parameter in rows])
    for key, value in settings.items():
        if key not in ("init_gain", "output"):
            settings[key] = None if value is None else number(key, value, -math.inf, math.inf, "neither")
    for side in _SIDES:
        low, high = settings.get(f"{side}low"), settings.get(f"{side}high")
        if low is not None and high is not None and low > high:
            raise ValueError(f"{kind} {name!r}: {side}low={low:g} is above {side}high={high:g}; exchange them")
    description = {
        "kind": kind,
        "name": name,
        "arguments": {
            **({} if own else texts),
            "parameters": {p.name: [v if math.isfinite(v) else None for v in (p.default, p.low, p.high)] for p in rows},
            **settings,
        },
    }
    with _lock:
        known = FORMULAS.get(catalog.INDEX[kind].get(name, -1))
        if known and not own and known.description == description:
            return CLASSES[known.index]
        label = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
        extent = {key: value for key, value in settings.items() if value is not None and "prediction" not in key}
        row = ROWS[kind](name, label, **texts, parameters=rows, **extent)
        formula = Formula(kind, next(_numbers), row, own, signatures, description)
        if own:
            compiled(formula)
        check(formula)
        if own:
            description["function"] = sample(formula)
            if known and known.description == description and code_of(known.functions) == code_of(own):
                return CLASSES[known.index]
        if known and not replace:
            raise ValueError(
                f"{kind} {name!r} is registered already, as another formula; choose another name or give replace=True"
            )
        return _add(formula)


def _add(formula: Formula) -> type:
    from .travel import reduce_option

    kind, row, index = formula.kind, formula.row, formula.index
    cls = options.from_row(index, row, _BASES[kind], [], {})
    cls.__reduce__ = reduce_option  # type: ignore[method-assign,assignment]
    FORMULAS[index], CLASSES[index] = formula, cls
    catalog.BY_NAME[kind][row.name], catalog.INDEX[kind][row.name] = row, index
    catalog.BY_INDEX[kind][index] = row
    for table in _TABLES[kind]:
        table[row.name] = cls
    return cls


def forget(index: int) -> None:
    """Takes back what a file registered that then turned out not to fit together."""
    with _lock:
        formula, cls = FORMULAS.pop(index), CLASSES.pop(index)
        kind, name = formula.kind, formula.row.name
        del catalog.BY_INDEX[kind][index]
        if catalog.INDEX[kind].get(name) == index:
            del catalog.INDEX[kind][name], catalog.BY_NAME[kind][name]
        for table in _TABLES[kind]:
            if table.get(name) is cls:
                del table[name]
