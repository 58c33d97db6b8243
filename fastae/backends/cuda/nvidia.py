"""NVIDIA's libraries opened at run time, with the prototypes that a binding of ours gives them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

Prototypes = Mapping[str, list[Any]]  # a function's arguments; all of them return a status


def open_library(name: str, title: str, prototypes: Prototypes, status_text: str) -> ctypes.CDLL:
    """The library of the CUDA version that CuPy was built for. Raises ImportError without it.

    status_text : name of its function that says what a status means
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib(name).abs_path
    except Exception as error:  # the finder has errors of its own, and may be missing itself
        raise ImportError(
            f"{title} could not be opened: {error}; install it with pip install 'fastae[cuda13]' (or [cuda12])"
        ) from error
    return declare(ctypes.CDLL(path), prototypes, status_text)


def declare(library: ctypes.CDLL, prototypes: Prototypes, status_text: str) -> ctypes.CDLL:
    for name, arguments in prototypes.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    text = getattr(library, status_text)
    text.argtypes, text.restype = [ctypes.c_int], ctypes.c_char_p
    return library


__all__ = ["declare", "open_library"]
