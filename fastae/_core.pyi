from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def instruction_sets() -> list[str]: ...
def cpu_brand() -> str: ...
def compiler() -> str: ...
def set_max_threads(n_threads: int, /) -> None: ...
def max_threads() -> int: ...
def permutation(isa: str, seed: int, epoch: int, n: int, /) -> NDArray[np.int64]: ...
def all_finite(isa: str, array: np.ndarray, dtype: int, n_threads: int, /) -> bool: ...
def cpu_has(feature: str, /) -> bool: ...
def int8_rate(isa: str, vnni: bool, seconds: float, /) -> float: ...
def fma_rate(isa: str, is_double: bool, seconds: float, /) -> float: ...
def bf16_rate(isa: str, seconds: float, /) -> float: ...

class CompiledPlan: ...

class Encoder:
    def __init__(self, plan: CompiledPlan, arena: np.ndarray, theta: np.ndarray, check: int) -> None: ...
    def __call__(self, X: Any, out: Any, threads: int, code: int) -> Any: ...

class Plan(CompiledPlan):
    def __init__(
        self,
        isa: str,
        is_double: bool,
        batch: int,
        buffers: NDArray[np.int64],
        ops: NDArray[np.int64],
        floats: NDArray[np.float64],
        sizes: Sequence[int],
        n_values: int,
        n_scalars: int,
        row_local: bool,
        formulas: Sequence[tuple],
        vnni: bool,
    ) -> None: ...
    def run(
        self,
        spaces: Sequence[np.ndarray],
        sources: Sequence[tuple],
        n_rows: int,
        order: NDArray[np.int64] | None,
        first_batch: int,
        n_steps: int,
        phases: int,
        scalars: NDArray[np.float64] | None,
        values: NDArray[np.float64] | None,
        seed: int,
        epoch: int,
        threads: int,
        progress: Callable[[int], object] | None,
        first_row: int = 0,
    ) -> int: ...
