"""Formulas registered at run time, as kernels run them (csrc/cuda/formula.cuh): programs, or Python functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import codegen
from ...registry import FORMULAS
from ..registered import _program

PARTS = 4  # functions of a formula at most; each is an address and length of code, and of constants


class Formulas:
    """What a plan's kernels read of registered formulas, uploaded once."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.held: list[Any] = []
        self.addresses: dict[int, int] = {}

    def address(self, driver: Any, index: int) -> int:
        if index not in self.addresses:
            self.addresses[index] = self._upload(driver, index)
        return self.addresses[index]

    def _upload(self, driver: Any, index: int) -> int:
        formula = FORMULAS[index]

        def held(array: np.ndarray) -> int:
            self.held.append(driver.upload(array))
            return driver.address(self.held[-1])

        record = np.zeros(1 + 4 * PARTS, np.int64)
        record[0] = getattr(formula.row, "needs", "") == "x"
        for i, (suffix, arguments, text) in enumerate(codegen.functions(formula.row)):
            part = slice(1 + 4 * i, 5 + 4 * i)
            if suffix in formula.functions:
                record[part] = driver.user_function(formula, suffix, self.dtype), -1 - i, 0, 0
                continue
            program = _program(formula, arguments, text)
            if program is not None:
                code, constants, _ = program
                # a formula without numbers has one that nobody reads, as nothing has no address
                numbers = np.append(constants, 0.0).astype(self.dtype)
                record[part] = held(code), len(code), held(numbers), len(constants)
        return held(record)


__all__ = ["Formulas"]
