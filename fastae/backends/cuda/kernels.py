"""Kernels of one GPU by name: those compiled when the package was built, else compiled now and kept on disk."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ...registry import FORMULAS
from . import rtc, source, user

_log = logging.getLogger("fastae")


class Kernels:
    """Functions that CuPy launches; called where the device is the current one.

    architecture : 90 for compute capability 9.0
    """

    def __init__(self, cupy: Any, architecture: int):
        self.cupy, self.architecture = cupy, architecture
        self._functions: dict[tuple[str, str, int], Any] = {}
        self._modules: dict[str, Any] = {}

    def __call__(self, name: str, dtype: np.dtype, formula: int = 0) -> Any:
        """A kernel; formula : index of one whose Python functions it calls."""
        real = user.REAL[dtype.name]
        key = (name, real, formula)
        if key not in self._functions:
            if formula:
                module = self._load(user.cubin(FORMULAS[formula], name, dtype, self.architecture))
            else:
                if real not in self._modules:
                    self._modules[real] = self._module(real)
                module = self._modules[real]
            self._functions[key] = module.get_function(f"fastae_{name}")
        return self._functions[key]

    @property
    def names(self) -> set[str]:
        """Of the kernels that were asked for."""
        return {name for name, _, _ in self._functions}

    def _load(self, code: bytes) -> Any:
        module = self.cupy.cuda.function.Module()
        module.load(code)
        return module

    def _module(self, real: str) -> Any:
        """All kernels for a real type. Those built may be of a newer CUDA than the driver's, or lack this GPU."""
        path = source.fatbin(real)
        if path is not None:
            try:
                return self._load(path.read_bytes())
            except self.cupy.cuda.driver.CUDADriverError as error:
                _log.warning("%s cannot be loaded here (%s); the kernels are compiled now instead", path.name, error)
        return self._load(rtc.kernels(real, self.architecture))
