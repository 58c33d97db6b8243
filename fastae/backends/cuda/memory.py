"""A plan's memory on a GPU, with a copy on the host of what is looked at there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...plan import schema
from ...plan.plan import Plan, aligned_bytes
from .launches import Launch, over
from .record import LAUNCH, STEP

_NOWHERE, _HOST, _DEVICE, _BOTH = range(4)  # where a space's present bytes are; nowhere: all zeros


class DeviceSpaces:
    """Arena, theta, grad and state of a plan: `fastae.plan.plan.Spaces` on a GPU.

    ``spaces[i]`` is an array on the host, always the same one, brought up to date when it is asked for; as it may be
    written to, the device takes it back before the next run. `share`, `peek`, `snapshot` and `restore` don't cost that.
    """

    def __init__(self, driver: Any, sizes: tuple[int, ...]):
        self.driver, self.sizes = driver, list(sizes)
        self.host: list[Any] = [None] * len(sizes)
        self.device: list[Any] = [None] * len(sizes)
        self.where = [_NOWHERE] * len(sizes)

    # ---- as a list of arrays on the host ---

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> np.ndarray:
        array = self.share(i)
        self.where[i] = _HOST
        return array

    def __setitem__(self, i: int, array: np.ndarray) -> None:
        self.host[i], self.sizes[i] = array, array.nbytes
        self.device[i], self.where[i] = None, _HOST

    def __add__(self, external: list) -> JobSpaces:
        return JobSpaces(self, external)

    def share(self, i: int) -> np.ndarray:
        """The same array as it is now, for somebody who only reads it."""
        if self.host[i] is None:
            self.host[i] = aligned_bytes(self.sizes[i])
        if self.where[i] == _DEVICE:
            self.driver.download(self.device[i], self.host[i])
            self.where[i] = _BOTH
        return self.host[i]

    # ---- on the device ---

    def _empty(self, i: int) -> Any:
        """Device memory for a space."""
        try:
            return self.driver.empty(self.sizes[i])
        except self.driver.OutOfMemory as error:
            raise too_large(self.driver, self.sizes, 0, error) from error

    def address(self, i: int) -> int:
        """Where a space lies on the device, with its present bytes there."""
        if self.device[i] is None:
            self.device[i] = self._empty(i)
            if self.where[i] == _NOWHERE:
                self.driver.fill(self.device[i], 0)
        if self.where[i] == _HOST:
            self.driver.write(self.device[i], self.host[i])
            self.where[i] = _BOTH
        elif self.where[i] == _NOWHERE:
            self.where[i] = _DEVICE
        return self.driver.address(self.device[i])

    def addresses(self, plan: Plan) -> list[int]:
        """Where all spaces lie, for a run of a plan: what it may write is then newer there."""
        found = [self.address(i) for i in range(len(self))]
        self.where[schema.ARENA] = _DEVICE
        if not plan.row_local:
            self.where[schema.THETA :] = [_DEVICE] * (len(self) - schema.THETA)
        return found

    def snapshot(self, i: int, into: Any = None) -> Any:
        self.address(i)
        saved = self._empty(i) if into is None else into
        self.driver.copy(saved, self.device[i])
        return saved

    def restore(self, i: int, saved: Any) -> None:
        self.address(i)
        self.driver.copy(self.device[i], saved)
        self.where[i] = _DEVICE

    def take(self, i: int, other: DeviceSpaces) -> None:
        self.address(i)
        other.address(i)
        self.driver.copy(self.device[i], other.device[i], self.sizes[i])
        self.where[i] = _DEVICE

    def release(self) -> None:
        self.host, self.device = [None] * len(self), [None] * len(self)
        self.where = [_NOWHERE] * len(self)

    def zero(self, i: int) -> None:
        self.address(i)
        self.driver.fill(self.device[i], 0)
        self.where[i] = _DEVICE

    def array(self, i: int, dtype: np.dtype) -> Any:
        self.address(i)
        self.where[i] = _DEVICE
        return self.driver.view(self.device[i], self.sizes[i], dtype)

    def peek(self, plan: Plan, name: str) -> np.ndarray:
        """A buffer to be read only: nothing else is copied."""
        buffer = plan.buffers[plan.index[name]]
        i = buffer.space
        if self.where[i] != _DEVICE or buffer.parent is not None:
            return plan.view(self, name)
        out = np.empty(buffer.shape(plan.batch), plan.buffer_dtype(buffer))
        self.driver.download(self.device[i], out, buffer.offset)
        return out

    def finite(self, backend: Any, plan: Plan, name: str | None = None, n_threads: int = 1) -> bool:
        address, n_bytes = self.address(schema.THETA), self.sizes[schema.THETA]
        if name is not None:
            buffer = plan.buffers[plan.index[name]]
            rows, columns = buffer.shape(plan.batch)
            address, n_bytes = address + buffer.offset, rows * columns * plan.buffer_dtype(buffer).itemsize
        return all_finite(self.driver, address, n_bytes, plan.dtype)

    def with_arena(self, plan: Plan) -> DeviceSpaces:
        new = DeviceSpaces(self.driver, plan.sizes)
        for parts in ("sizes", "host", "device", "where"):
            getattr(new, parts)[schema.THETA :] = getattr(self, parts)[schema.THETA :]
        return new


def too_large(driver: Any, sizes: Sequence[int], work: int, error: Exception) -> MemoryError:
    """What is raised where a plan finds no room."""
    return MemoryError(
        f"the GPU's memory does not suffice: this plan takes {sum(sizes) + work} bytes of it (arena {sizes[0]}, "
        f"parameters, gradients and states {sum(sizes[1:])}, work {work}), and {driver.free_bytes()} are free; lower "
        f"batch_size or the model's size ({error})"
    )


class JobSpaces:
    """A plan's memory and the arrays of the caller's beside it."""

    def __init__(self, spaces: DeviceSpaces, external: list):
        self.spaces, self.external = spaces, external

    def parts(self) -> tuple[DeviceSpaces, list]:
        return self.spaces, self.external


def all_finite(driver: Any, address: int, n_bytes: int, dtype: np.dtype) -> bool:
    """Whether the real numbers at an address are finite."""
    dtype = np.dtype(dtype)
    n = n_bytes // dtype.itemsize
    step, found = driver.upload(np.zeros(1, STEP).view(np.uint8)), driver.upload(np.zeros(1, np.int64))
    record = np.zeros(1, LAUNCH)
    record["step"], record["work"] = driver.address(step), driver.address(found)
    record["slot"][0, 0] = (address, n, 1, n)
    driver.launch(dtype, Launch("find_not_finite", *over(n), 0, record))
    answer = np.empty(1, np.int64)
    driver.download(found, answer)
    return not answer[0]
