"""The Numba backend: compiled loops where no C++ extension is, products through NumPy's BLAS."""

from __future__ import annotations

import numpy as np

from .. import interpreter
from . import dense, losses, random, regularisers, update

KERNELS = {
    "gather": dense.gather,
    "noise": random.noise,
    "dropout": random.dropout,
    "pack": dense.pack,
    "dense": dense.dense,
    "activation": dense.activation,
    "activation_grad": dense.activation_grad,
    "softmax": dense.softmax,
    "softmax_grad": dense.softmax_grad,
    "loss": losses.loss,
    "dense_grad": dense.dense_grad,
    "activity": regularisers.activity,
    "kl_sparsity": regularisers.kl_sparsity,
    "weight_penalty": regularisers.weight_penalty,
    "clip_gradient": update.clip_gradient,
    "update": update.update,
    "project": regularisers.project,
}


class NumbaBackend(interpreter.Interpreter):
    """Computes in the plan's dtype; compiled code is cached on disk between processes."""

    name = "numba"
    kernels = KERNELS

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        return random.shuffled(np.uint64(seed), np.uint64(epoch), n)
