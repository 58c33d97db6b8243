"""Backends: who runs a plan. One object each, with ``compile``, ``run``, ``permutation`` and ``all_finite``."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache, lru_cache
from typing import Any

from ..spec.options import unknown

NAMES = ("native", "numba", "reference")
_log = logging.getLogger("fastae")


def available() -> dict[str, str | None]:
    """Backend → None, or why it cannot be used."""
    reasons: dict[str, str | None] = {}
    for name in NAMES:
        try:
            _load(name)
            reasons[name] = None
        except (ImportError, ValueError) as error:  # ValueError: FASTAE_ISA names what is not there
            reasons[name] = str(error)
    reasons["cuda"] = "this version of fastae has no CUDA backend"
    return reasons


@cache
def _load(name: str) -> Any:
    module = importlib.import_module(f".{name}", __name__)
    return getattr(module, f"{name.capitalize()}Backend")()


@lru_cache(maxsize=1)
def _automatic() -> Any:
    try:
        return _load("native")
    except ImportError as error:
        _log.warning(
            "fastae runs on the slower Numba backend: the compiled kernels are missing (%s); "
            "install a C++17 compiler and install fastae again",
            error,
        )
        return _load("numba")


def get_backend(name: str = "auto") -> Any:
    """The backend of a name; "auto" takes ``FASTAE_BACKEND``, else native, else (with a warning in the log) Numba.

    Raises ValueError for an unknown name, ImportError for one that is not available here: never another one silently.
    """
    if not isinstance(name, str):
        return name  # a backend object
    if name == "auto":
        name = os.environ.get("FASTAE_BACKEND", "") or "auto"
    if name == "auto":
        return _automatic()
    if name == "cuda":
        raise ImportError("backend='cuda' is not available: this version of fastae has no CUDA backend; use 'auto'")
    if name not in NAMES:
        raise unknown("backend", name, (*NAMES, "auto", "cuda"))
    try:
        return _load(name)
    except ImportError as error:
        raise ImportError(
            f"backend={name!r} is not available: {error}; use backend='auto', or install fastae again with a C++17 "
            "compiler"
        ) from error
