"""The CUDA backend: the same plans as launches of device kernels, memory and graphs through CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plan import schema
from ...plan.plan import Job, Plan
from . import codes, dense, encode, latents, update
from .run import Program, run

MODULES = (dense, update, codes, latents, encode)


def kernel_table() -> dict:
    functions = {name: value for module in MODULES for name, value in vars(module).items() if callable(value)}
    return {kind.name: functions[kind.name] for kind in schema.OP_KINDS if kind.name in functions}


class CudaBackend:
    """Runs plans on one GPU.

    driver : what launches kernels and owns memory; None: CuPy on the current device
    """

    name = "cuda"

    def __init__(self, driver: Any = None):
        if driver is None:
            from .driver import CupyDriver

            driver = CupyDriver()
        self.driver = driver
        self.kernels = kernel_table()

    def __repr__(self) -> str:
        return f"CudaBackend({self.driver!r})"

    def compile(self, plan: Plan) -> Program:
        """The plan with what the device keeps of it between runs."""
        return Program(plan)

    def run(self, handle: Program, job: Job) -> int:
        """Runs the job's steps; returns how many finished (fewer when a step's values were not finite)."""
        return run(handle, self.driver, self.kernels, job)

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        from .. import get_backend

        return get_backend("auto").permutation(seed, epoch, n)

    def all_finite(self, array: np.ndarray, n_threads: int = 1) -> bool:
        """Whether an array has neither NaN nor infinity."""
        return bool(np.isfinite(array.astype(np.float32) if array.dtype.name == "bfloat16" else array).all())
