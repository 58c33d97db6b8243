"""The Numba backend: compiled loops where no C++ extension is, products through NumPy's BLAS."""

from __future__ import annotations

import numpy as np

from .. import interpreter
from . import activities, codes, dense, encoding, gates, latents, losses, norm, random, regularisers, selection, update

MODULES = (activities, codes, dense, encoding, gates, latents, losses, norm, random, regularisers, selection, update)
TAKE_GAPS = {module.__name__ for module in (codes, gates, latents, selection)}  # arrays with gaps between rows


def on_contiguous(kernel):
    """The kernel, with the caller's arrays that have gaps between rows taken in and out as copies.

    The loops run over flat arrays, and flattening an array with gaps would copy it and lose what is written.
    """

    def wrapped(step, op, v):
        gaps = [array for array in v.values() if not array.flags.c_contiguous]
        if not gaps:
            return kernel(step, op, v)
        # by address: slots that name one buffer share one copy
        copies = {array.ctypes.data: (array, np.ascontiguousarray(array)) for array in gaps}
        kernel(step, op, {slot: copies.get(array.ctypes.data, (None, array))[1] for slot, array in v.items()})
        for array, copy in copies.values():
            if array.flags.writeable:
                array[...] = copy

    return wrapped


class NumbaBackend(interpreter.Interpreter):
    """Computes in the plan's dtype; compiled code is cached on disk between processes."""

    name = "numba"
    kernels = {
        kind: kernel if kernel.__module__ in TAKE_GAPS else on_contiguous(kernel)
        for kind, kernel in interpreter.kernel_table(*MODULES).items()
    }

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        return random.shuffled(np.uint64(seed), np.uint64(epoch), n)
