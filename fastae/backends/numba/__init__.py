"""The Numba backend: compiled loops where no C++ extension is, products through NumPy's BLAS."""

from __future__ import annotations

import numpy as np

from .. import interpreter
from . import dense, losses, random, regularisers, update


class NumbaBackend(interpreter.Interpreter):
    """Computes in the plan's dtype; compiled code is cached on disk between processes."""

    name = "numba"
    kernels = interpreter.kernel_table(dense, losses, random, regularisers, update)

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        return random.shuffled(np.uint64(seed), np.uint64(epoch), n)
