"""Formulas registered at run time, as the programs that kernels run (csrc/cuda/formula.cuh)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...registry import FORMULAS

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
        from ..registered import native

        formula = FORMULAS[index]
        if formula.functions:
            raise ValueError(
                f"{formula.kind} {formula.row.name!r} was registered as a Python function, which CUDA kernels cannot "
                f"call yet; register it as text: fastae.register_{formula.kind}({formula.row.name!r}, "
                f"{next(iter(formula.functions))}=\"...\", ...)"
            )

        def held(array: np.ndarray) -> int:
            self.held.append(driver.upload(array))
            return driver.address(self.held[-1])

        _, from_x, parts = native(formula, self.dtype)
        record = np.zeros(1 + 4 * PARTS, np.int64)
        record[0] = from_x
        for i, part in enumerate(parts):
            if part is not None:
                code, constants, _ = part
                # a formula without numbers has one that nobody reads, as nothing has no address
                numbers = np.append(constants, 0.0).astype(self.dtype)
                record[1 + 4 * i : 5 + 4 * i] = held(code), len(code), held(numbers), len(constants)
        return held(record)


__all__ = ["Formulas"]
