"""The reference backend: NumPy in float64, the simplest right code. The oracle of all tests."""

from __future__ import annotations

import numpy as np

from .. import interpreter
from . import activities, codes, dense, encoding, losses, norm, random, regularisers, update

MODULES = (activities, codes, dense, encoding, losses, norm, random, regularisers, update)


class ReferenceBackend(interpreter.Interpreter):
    """Computes every op in float64 whatever the plan's dtype, and stores in the plan's."""

    name = "reference"
    kernels = interpreter.kernel_table(*MODULES)

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        return random.permutation(seed, epoch, n)
