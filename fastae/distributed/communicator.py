"""How processes add up arrays: the protocol, and NCCL's way."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Communicator(Protocol):
    """Processes 0 .. size − 1 that call the same methods in the same order.

    Arrays are NumPy's, or CuPy's where the backend computes on a GPU. Sums must be the same bits on every rank.
    """

    rank: int
    size: int

    def sum(self, array: Any) -> None:
        """Replaces the array by its sum over all ranks."""

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Replaces the array by that of rank ``root``."""


class Nccl:
    """NCCL through ``cupyx.distributed``; made by `nccl`."""

    def __init__(self, rank: int, size: int, host: str, port: int):
        import cupy
        from cupyx.distributed import init_process_group

        self.rank, self.size, self.cupy = rank, size, cupy
        self.group = init_process_group(size, rank, backend="nccl", host=host, port=port)

    def _on_device(self, array: Any, call: Any) -> None:
        """Calls with an array of the device's; NumPy's goes there and back."""
        if not isinstance(array, np.ndarray):
            call(array)
            return
        copy = self.cupy.asarray(array)
        call(copy)
        array[...] = copy.get()

    def sum(self, array: Any) -> None:
        self._on_device(array, lambda a: self.group.all_reduce(a, a, "sum"))

    def broadcast(self, array: Any, root: int = 0) -> None:
        self._on_device(array, lambda a: self.group.broadcast(a, root))


def nccl(rank: int, size: int, host: str = "127.0.0.1", port: int = 13_333) -> Communicator:
    """A communicator between one process per GPU. Select the device first: ``cupy.cuda.Device(rank).use()``.

    host, port : where rank 0 listens
    Raises ValueError for a rank that is not in 0 .. size − 1, ImportError without CuPy or NCCL.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank={rank} must be in 0..{size - 1}, as size={size}")
    try:
        return Nccl(rank, size, host, port)
    except ImportError as error:
        raise ImportError(
            f"NCCL is missing ({error}): pip install 'fastae[cuda13]' nvidia-nccl-cu13 (or the same for CUDA 12)"
        ) from error
