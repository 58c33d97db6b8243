"""Two buffers that rows go through on their way to a GPU and back: pinned memory, and copies beside the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .driver import CupyDriver


class Slot:
    """Pinned memory on the host, and what it was copied to, for rows on their way.

    Copies to the device have a stream, and those from there another: in one, rows would wait for the results before
    them, and so for the kernels.
    """

    def __init__(self, driver: CupyDriver):
        self.driver, self.cupy = driver, driver.cupy
        self.pinned: dict[str, Any] = {}
        self.buffer: Any = None
        with driver.device:
            events = (self.cupy.cuda.Event(disable_timing=True) for _ in range(4))
        self.sent, self.free, self.made, self.fetched = events
        self.held: list[Any] = []
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def _pin(self, name: str, n_bytes: int) -> np.ndarray:
        if name not in self.pinned or self.pinned[name].nbytes < n_bytes:
            memory = self.cupy.cuda.alloc_pinned_memory(max(n_bytes, 1))
            self.pinned[name] = np.frombuffer(memory, np.uint8)
        return self.pinned[name]

    def send(self, parts: list[Any]) -> list[int]:
        """Copies arrays to the device, None for none; returns their addresses. Kernels launched later see them."""
        driver, runtime = self.driver, self.cupy.cuda.runtime
        self.sent.synchronize()  # the pinned bytes of the turn before the last are on the device
        offsets, size = [], 0
        for part in parts:
            offsets.append(size)
            size += 0 if part is None else -(-part.nbytes // 256) * 256
        pinned = self._pin("send", size)
        for part, offset in zip(parts, offsets, strict=True):
            if part is not None and part.nbytes:
                target = pinned[offset : offset + part.nbytes].view(part.dtype).reshape(part.shape)
                np.copyto(target, part)
        with driver.lock, driver.device:
            driver.copies.wait_event(self.free)
            if self.buffer is None or self.buffer.nbytes < size:
                self.free.synchronize()
                self.buffer = driver.empty(size, driver.copies)
            address = driver.address(self.buffer)
            if size:
                runtime.memcpyAsync(address, pinned.ctypes.data, size, runtime.memcpyHostToDevice, driver.copies.ptr)
            self.sent.record(driver.copies)
            driver.stream.wait_event(self.sent)
        return [0 if part is None else address + offset for part, offset in zip(parts, offsets, strict=True)]

    def used(self) -> None:
        """What reads the rows is launched."""
        with self.driver.lock, self.driver.device:
            self.free.record(self.driver.stream)

    def fetch(self, pairs: list[tuple[Any, np.ndarray]]) -> None:
        """Has buffers copied to pinned memory once what is launched has run; `retire` puts them into the arrays."""
        driver, runtime = self.driver, self.cupy.cuda.runtime
        self.retire()  # where a block before this one was given up: its bytes lie where these go
        self.held = [buffer for buffer, _ in pairs]
        if not pairs:
            return
        pinned = self._pin("fetch", sum(array.nbytes for _, array in pairs))
        with driver.lock, driver.device:
            self.made.record(driver.stream)
            driver.results.wait_event(self.made)
            offset = 0
            for buffer, array in pairs:
                part = pinned[offset : offset + array.nbytes]
                if array.nbytes:
                    runtime.memcpyAsync(
                        part.ctypes.data, driver.address(buffer), array.nbytes, runtime.memcpyDeviceToHost,
                        driver.results.ptr)  # fmt: skip
                self.waiting.append((array, part))
                offset += array.nbytes
            self.fetched.record(driver.results)

    def retire(self) -> None:
        if self.waiting:
            self.fetched.synchronize()
        for array, part in self.waiting:
            array[...] = part.view(array.dtype).reshape(array.shape)
        self.waiting = []
