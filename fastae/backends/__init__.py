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
    from .cuda.driver import why_not

    reasons["cuda"] = why_not()
    return reasons


@cache
def _load(name: str) -> Any:
    module = importlib.import_module(f".{name}", __name__)
    return getattr(module, f"{name.capitalize()}Backend")()


@cache
def cuda_backend(number: int, products: str) -> Any:
    """The backend of one GPU, made once. products : "cublas", or "exact" for the CPU's bits"""
    from .cuda import CudaBackend
    from .cuda.driver import CupyDriver

    return CudaBackend(CupyDriver(number, products))


def device_number(device: str) -> int | None:
    """Which GPU a device's name means; None for the CPU ("auto" and "cpu")."""
    if device in ("auto", "cpu"):
        return None
    kind, colon, number = str(device).partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise unknown("device", device, ("auto", "cpu", "cuda", "cuda:1"))
    return int(number or 0)


def _cuda(number: int) -> Any:
    products = os.environ.get("FASTAE_CUDA_PRODUCTS", "") or "cublas"
    if products not in ("cublas", "exact"):
        raise ValueError(f"FASTAE_CUDA_PRODUCTS={products!r} must be 'cublas' or 'exact'; unset it for cuBLASLt")
    try:
        return cuda_backend(number, products)
    except ImportError as error:
        raise ImportError(f"device='cuda' is not available: {error}") from error


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


def get_backend(name: str = "auto", device: str = "auto") -> Any:
    """The backend of a name; "auto" takes ``FASTAE_BACKEND``, else native, else (with a warning in the log) Numba.

    device : "cuda" or "cuda:1" for a GPU, which is the backend "cuda"; "auto" is the CPU unless the backend says "cuda"
    Raises ValueError for an unknown name, ImportError for one that is not available here: never another one silently.
    """
    if not isinstance(name, str):
        if not hasattr(name, "compile"):
            raise TypeError(f"backend={name!r} must be a name, such as 'auto', or a backend")
        return name
    number = device_number(device)
    if number is not None:
        if name not in ("auto", "cuda"):
            raise ValueError(f"backend={name!r} runs on the CPU, not on device={device!r}; use backend='auto'")
        return _cuda(number)
    where = "backend"
    if name == "auto" and os.environ.get("FASTAE_BACKEND"):
        where, name = "FASTAE_BACKEND", os.environ["FASTAE_BACKEND"]
    if name == "cuda":
        if device == "cpu":
            raise ValueError("backend='cuda' cannot run on device='cpu'; use backend='auto'")
        return _cuda(0)
    if name == "auto":
        return _automatic()
    if name not in NAMES:
        raise unknown(where, name, (*NAMES, "auto", "cuda"))
    try:
        return _load(name)
    except ImportError as error:
        raise ImportError(
            f"backend={name!r} is not available: {error}; use backend='auto', or install fastae again with a C++17 "
            "compiler"
        ) from error
