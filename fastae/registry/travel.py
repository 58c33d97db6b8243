"""How registered formulas travel: descriptions in pickles and model files, and what happens where they arrive."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import registry
from ..catalog import INDEX
from . import CLASSES, FORMULAS, Formula

MAX_FORMULAS = 64  # in one file
_ARGUMENTS = {
    "activation": {"y", "dy", "d2y", "parameters", "low", "high", "init_gain"},
    "loss": {"value", "dy", "parameters", "target_low", "target_high", "output", "prediction_low", "prediction_high"},
    "penalty": {"value", "dw", "smooth", "prox", "parameters"},
}


class UnregisteredError(ValueError):
    """A pickle or a file needs a Python function that this process lacks, or a name that means something else here."""


class MissingFunctionError(UnregisteredError):
    """A pickle or a file needs a Python function that this process lacks."""


def reduce_option(option: Any) -> tuple:
    """``__reduce__`` of options of registered formulas."""
    values = tuple(getattr(option, field.name) for field in dataclasses.fields(option))
    return _option, (FORMULAS[option._index].description, values)


def _option(description: dict, values: tuple) -> Any:
    return restored(description)(*values)


def restored(description: dict) -> type:
    """The option class of a described formula, registered now where it is text that this process has not seen.

    Raises UnregisteredError for a Python function that was not registered, and for a name that is another formula's.
    """
    kind, name, arguments = description["kind"], description["name"], description["arguments"]
    if kind not in _ARGUMENTS or not isinstance(arguments, dict) or set(arguments) - _ARGUMENTS[kind]:
        raise ValueError(f"formula {name!r} is described by things that this fastae does not know")
    known = [f for f in FORMULAS.values() if (f.kind, f.row.name) == (kind, name)]
    for formula in reversed(known):
        if _same(formula, description):
            return CLASSES[formula.index]
    if "function" in description and not known:
        raise MissingFunctionError(
            f"{kind} {name!r} is a Python function, which is not stored; call fastae.register_{kind}({name!r}, …) with "
            "it before loading"
        )
    if known:
        raise _another(kind, name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return getattr(registry, f"register_{kind}")(name, **given)


def _another(kind: str, name: str) -> UnregisteredError:
    return UnregisteredError(
        f"{kind} {name!r} is another formula here than the one stored; load in a fresh process, or register the stored "
        "one with replace=True first"
    )


def _same(formula: Formula, description: dict) -> bool:
    if "function" not in description or "function" not in formula.description:
        return formula.description == description
    from .check import values_at

    if formula.description["arguments"] != description["arguments"]:
        return False
    stored = description["function"]
    try:
        return bool(np.allclose(values_at(formula, stored["points"]), stored["values"], rtol=1e-9, atol=1e-12))
    except (TypeError, ValueError, KeyError):
        return False


def used(*things: Any) -> list[dict]:
    """Descriptions of the registered formulas in networks and parameters: options, and strings that are names.

    What comes first decides: a fitted network before the name of a formula that was replaced after the fit.
    """
    found: dict[tuple[str, str], Formula] = {}

    def look(thing: Any) -> None:
        if isinstance(thing, str):
            for kind in _ARGUMENTS:
                formula = FORMULAS.get(INDEX[kind].get(thing, -1))
                if formula is not None:
                    found.setdefault((kind, thing), formula)
        elif isinstance(thing, (tuple, list)):
            for item in thing:
                look(item)
        elif isinstance(thing, dict):
            look(tuple(thing.values()))
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            formula = FORMULAS.get(getattr(thing, "_index", -1))
            if formula is not None and found.setdefault((formula.kind, formula.row.name), formula) is not formula:
                raise ValueError(
                    f"the model was fitted with another {formula.kind} {formula.row.name!r} than its parameters have "
                    "now; call fit again before saving"
                )
            look([getattr(thing, field.name) for field in dataclasses.fields(thing)])

    if FORMULAS:
        look(things)
    return [formula.description for formula in found.values()]


@contextmanager
def restoring(descriptions: Iterable[dict]) -> Iterator[None]:
    """Registers what a file describes; takes it back when the rest of the file does not fit together.

    A missing function is an error only when the block fails: a name may be that of another kind's formula. Files keep
    names, so a formula whose name has gone to another since is an error.
    """
    before, made, missing = set(FORMULAS), [], None
    try:
        for description in descriptions:
            try:
                cls: Any = restored(description)
                if cls._index != INDEX[description["kind"]].get(description["name"]):
                    raise _another(description["kind"], description["name"])
                if cls._index not in before:
                    made.append(cls._index)
            except MissingFunctionError as error:
                missing = error
        yield
    except Exception as error:
        for index in made:  # not what other threads registered meanwhile
            registry.forget(index)
        if missing is not None:
            raise missing from error
        raise
