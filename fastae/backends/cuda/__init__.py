"""The CUDA backend: the same plans as launches of device kernels, memory and graphs through CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...arrays import namespace, on_device
from ...plan import schema
from ...plan.plan import Job, Plan, Source
from . import activities, codes, dense, encode, encoding, latents, losses, norm, random, regularisers, update
from .blocks import place
from .memory import DeviceSpaces, all_finite
from .run import Program, run

_EXPONENT = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}  # all of these bits: infinity or NaN
MODULES = (activities, dense, encoding, losses, norm, random, regularisers, update, codes, latents, encode)


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
        self.device = f"cuda:{driver.number}"

    def __repr__(self) -> str:
        return f"CudaBackend({self.driver!r})"

    def __deepcopy__(self, memo: dict) -> CudaBackend:
        """Itself: a GPU has no copy, and estimators that are copied go on with the same one."""
        return self

    def compile(self, plan: Plan) -> Program:
        """The plan with what the device keeps of it between runs."""
        if plan.dtype == np.float64 and any(op.ints.get("bf16") == 1 for op in plan.ops):
            raise ValueError("a float64 plan cannot have products in bfloat16")
        return Program(plan)

    def allocate(self, plan: Plan) -> DeviceSpaces:
        """Memory for a plan, on the device."""
        return DeviceSpaces(self.driver, plan.sizes)

    def place(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Sources where steps read them best: on the device, where there is room for them."""
        return place(self.driver, sources)

    def run(self, handle: Program, job: Job) -> int:
        """Runs the job's steps; returns how many finished (fewer when a step's values were not finite)."""
        return run(handle, self.driver, self.kernels, job)

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        from .. import get_backend

        return get_backend("auto").permutation(seed, epoch, n)

    def all_finite(self, array: Any, n_threads: int = 1) -> bool:
        """Whether an array, on the device or the host, has neither NaN nor infinity."""
        if not on_device(array):
            return bool(np.isfinite(array.astype(np.float32) if array.dtype.name == "bfloat16" else array).all())
        if array.dtype.name in _EXPONENT:  # by their bits: no library but ours need know bfloat16
            xp, bits, mask = namespace(array), array.view(np.uint16), _EXPONENT[array.dtype.name]
            return not bool(xp.any(xp.equal(xp.bitwise_and(bits, mask), mask)))
        if array.dtype.name not in ("float32", "float64") or array.strides[0] != array.shape[1] * array.dtype.itemsize:
            xp = namespace(array)
            return bool(xp.all(xp.isfinite(array)))
        self.driver.join()
        return all_finite(self.driver, self.driver.address(array), array.nbytes, array.dtype)
