"""What the backend wants of a GPU, through CuPy: memory, launches, graphs, products."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from ...registry import FORMULAS, Formula
from . import lt, source, user
from .binder import Launch

_log = logging.getLogger("fastae")


def driver_version() -> int | None:
    """The newest CUDA version that the NVIDIA driver here can run, as major version; None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000
    return None


def why_not() -> str | None:
    """Why there is no working GPU here, with what to do about it; None where there is one."""
    major = driver_version()
    if major is None:
        return "no NVIDIA driver was found (libcuda.so.1 cannot be loaded); install the driver, or use device='cpu'"
    extra = "cuda13" if major >= 13 else "cuda12"
    remedy = f"pip install 'fastae[{extra}]'"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is missing ({error}); the driver runs CUDA {major}: {remedy}"
    except Exception as error:  # its libraries have errors of their own
        return f"CuPy cannot be loaded ({error}); the driver runs CUDA {major}: {remedy}"
    built = cupy.cuda.runtime.runtimeGetVersion() // 1000
    if built > major:
        return (
            f"CuPy is built for CUDA {built} and the driver runs CUDA {major}; pip uninstall cupy-cuda{built}x, then "
            f"{remedy}"
        )
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "no GPU is visible; look at CUDA_VISIBLE_DEVICES, or use device='cpu'"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"the GPU cannot be used ({error}); look at nvidia-smi, or use device='cpu'"
    return None


class CupyDriver:
    """One GPU through CuPy.

    device : number of the GPU
    products : "cublas" for cuBLASLt, "exact" for kernels with the CPU's order of operations, and its bits
    """

    def __init__(self, device: int = 0, products: str = "cublas"):
        reason = why_not()
        if reason is not None:
            raise ImportError(reason)
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
        if not 0 <= device < count:
            raise ImportError(f"device='cuda:{device}' is not there: this machine has {count}, counted from 0")
        self.cupy, self.number = cupy, device
        self.device = cupy.cuda.Device(device)
        self.products = products
        self.n_multiprocessors = self.device.attributes["MultiProcessorCount"]
        with self.device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.copies = cupy.cuda.Stream(non_blocking=True)
        self.OutOfMemory = cupy.cuda.memory.OutOfMemoryError
        self._kernels: dict[tuple[str, str, int], Any] = {}
        self._modules: dict[str, Any] = {}
        self._products: lt.Products | None = None
        self._workspace: Any = None

    def __repr__(self) -> str:
        return f"CupyDriver(device={self.number}, products={self.products!r})"

    # ---- memory ---

    def empty(self, n_bytes: int) -> Any:
        with self.device, self.stream:
            return self.cupy.empty(max(n_bytes, 1), np.uint8)

    def size(self, buffer: Any) -> int:
        return buffer.nbytes

    def address(self, buffer: Any) -> int:
        if hasattr(buffer, "data") and hasattr(buffer.data, "ptr"):
            return buffer.data.ptr
        return buffer.__cuda_array_interface__["data"][0]

    def upload(self, array: np.ndarray, *, aside: bool = False) -> Any:
        """A copy of a host array on the device, as bytes. aside : beside what runs there, from another thread"""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if not aside:
            buffer = self.empty(flat.nbytes)
            self.write(buffer, flat)
            return buffer
        with self.device, self.copies:
            buffer = self.cupy.empty(max(flat.nbytes, 1), np.uint8)
            self.cupy.cuda.runtime.memcpyAsync(buffer.data.ptr, flat.ctypes.data, flat.nbytes,
                                               self.cupy.cuda.runtime.memcpyHostToDevice, self.copies.ptr)  # fmt: skip
            self.copies.synchronize()
        return buffer

    def write(self, buffer: Any, array: np.ndarray, offset: int = 0) -> None:
        """The bytes of a host array to the device, from ``offset`` on."""
        flat = array.reshape(-1).view(np.uint8)
        if flat.nbytes:
            with self.device:
                self.cupy.cuda.runtime.memcpyAsync(
                    self.address(buffer) + offset, flat.ctypes.data, flat.nbytes,
                    self.cupy.cuda.runtime.memcpyHostToDevice, self.stream.ptr)  # fmt: skip
                self.stream.synchronize()  # the host's memory may go at once

    def download(self, buffer: Any, array: np.ndarray, offset: int = 0) -> None:
        """Bytes of the device from ``offset`` on into a host array, after what was launched before."""
        target = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
        if target.nbytes:
            with self.device:
                self.cupy.cuda.runtime.memcpyAsync(
                    target.ctypes.data, self.address(buffer) + offset, target.nbytes,
                    self.cupy.cuda.runtime.memcpyDeviceToHost, self.stream.ptr)  # fmt: skip
                self.stream.synchronize()
        if target is not array:
            array[...] = target

    def copy(self, to: Any, buffer: Any, n_bytes: int | None = None) -> None:
        """The bytes of a buffer (the first ones) into another on the device."""
        with self.device:
            self.cupy.cuda.runtime.memcpyAsync(
                self.address(to), self.address(buffer), buffer.nbytes if n_bytes is None else n_bytes,
                self.cupy.cuda.runtime.memcpyDeviceToDevice, self.stream.ptr)  # fmt: skip

    def view(self, buffer: Any, n_bytes: int, dtype: np.dtype) -> Any:
        """The first bytes of a buffer as an array; work of others on it waits for what was launched."""
        self.synchronize()
        return buffer[:n_bytes].view(dtype)

    def fill(self, buffer: Any, byte: int) -> None:
        with self.device:
            self.cupy.cuda.runtime.memsetAsync(self.address(buffer), byte, buffer.nbytes, self.stream.ptr)

    def free_bytes(self) -> int:
        """Bytes of the device that can still be had."""
        with self.device:
            return self.cupy.cuda.runtime.memGetInfo()[0] + self.cupy.get_default_memory_pool().free_bytes()

    def slot(self) -> Slot:
        """One of two buffers that rows go through."""
        return Slot(self)

    # ---- kernels ---

    def kernel(self, name: str, dtype: np.dtype, formula: int = 0) -> Any:
        """A kernel; formula : index of one whose Python functions it calls."""
        real = user.REAL[dtype.name]
        if (name, real, formula) not in self._kernels:
            if formula:
                module = self.cupy.cuda.function.Module()
                with self.device:
                    module.load(user.cubin(FORMULAS[formula], name, dtype, int(self.device.compute_capability)))
            else:
                if real not in self._modules:
                    self._modules[real] = self._module(real)
                module = self._modules[real]
            self._kernels[name, real, formula] = module.get_function(f"fastae_{name}")
        return self._kernels[name, real, formula]

    def user_function(self, formula: Formula, suffix: str, dtype: np.dtype) -> int:
        """Address of a formula's Python function: none, as kernels are linked with it."""
        reason = user.missing()
        if reason is not None:
            raise ImportError(f"{formula.kind} {formula.row.name!r}: {reason}; or register it as text")
        return 0

    def _module(self, real: str) -> Any:
        """The kernels for a real type: those built with the package, else compiled now and kept on disk by CuPy.

        Those built may be of a newer CUDA than the driver's, or lack this GPU's architecture.
        """
        path = source.fatbin(real)
        if path is not None:
            module = self.cupy.RawModule(path=str(path))
            try:
                module.compile()
                return module
            except self.cupy.cuda.driver.CUDADriverError as error:
                _log.warning("%s cannot be loaded here (%s); the kernels are compiled now instead", path.name, error)
        return self.cupy.RawModule(code=source.kernels(), options=(*source.NVRTC_OPTIONS, f"-DFASTAE_REAL={real}"))

    def launch(self, dtype: np.dtype, launch: Launch | lt.Product) -> None:
        with self.device, self.stream:
            if isinstance(launch, lt.Product):
                self._multiply(launch)
            else:
                kernel = self.kernel(launch.kernel, dtype, launch.formula)
                kernel(launch.grid, launch.block, (launch.record,), shared_mem=launch.shared)

    def _multiply(self, product: lt.Product) -> None:
        if self._products is None:
            self._workspace = self.cupy.empty(lt.WORKSPACE_BYTES, np.uint8)
            self._products = lt.Products(self._workspace.data.ptr)
        self._products(product, self.stream.ptr)

    def capture(self, dtype: np.dtype, launches: list[Launch | lt.Product]) -> Callable[[], None]:
        """The launches as one CUDA graph; a call of the result replays it."""
        for launch in launches:  # before the capture, which allows neither loading nor allocating
            if isinstance(launch, Launch):
                self.kernel(launch.kernel, dtype, launch.formula)
            else:
                if self._products is None:
                    self._workspace = self.empty(lt.WORKSPACE_BYTES)
                    with self.device:
                        self._products = lt.Products(self._workspace.data.ptr)
                self._products.choose(launch)
        with self.device, self.stream:
            self.stream.begin_capture()
            try:
                for launch in launches:
                    self.launch(dtype, launch)
            finally:
                graph = self.stream.end_capture()
            graph.upload(self.stream)

        def replay() -> None:
            graph.launch(self.stream)

        return replay

    def synchronize(self) -> None:
        self.stream.synchronize()


class Slot:
    """Pinned memory on the host, and what it was copied to, for rows on their way; copies have their own stream."""

    def __init__(self, driver: CupyDriver):
        self.driver, self.cupy = driver, driver.cupy
        self.pinned: dict[str, Any] = {}
        self.buffer: Any = None
        with driver.device:
            self.sent, self.free, self.fetched = (self.cupy.cuda.Event(disable_timing=True) for _ in range(3))
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
        with driver.device:
            driver.copies.wait_event(self.free)
            if self.buffer is None or self.buffer.nbytes < size:
                self.free.synchronize()
                self.buffer = driver.empty(size)
                driver.synchronize()
            address = driver.address(self.buffer)
            if size:
                runtime.memcpyAsync(address, pinned.ctypes.data, size, runtime.memcpyHostToDevice, driver.copies.ptr)
            self.sent.record(driver.copies)
            driver.stream.wait_event(self.sent)
        return [0 if part is None else address + offset for part, offset in zip(parts, offsets, strict=True)]

    def used(self) -> None:
        """What reads the rows is launched."""
        self.free.record(self.driver.stream)

    def fetch(self, pairs: list[tuple[Any, np.ndarray]]) -> None:
        """Has buffers copied to pinned memory once what is launched has run; `retire` puts them into the arrays."""
        driver, runtime = self.driver, self.cupy.cuda.runtime
        pinned = self._pin("fetch", sum(array.nbytes for _, array in pairs))
        with driver.device:
            done = self.cupy.cuda.Event(disable_timing=True)
            done.record(driver.stream)
            driver.copies.wait_event(done)
            offset = 0
            for buffer, array in pairs:
                part = pinned[offset : offset + array.nbytes]
                if array.nbytes:
                    runtime.memcpyAsync(
                        part.ctypes.data, driver.address(buffer), array.nbytes, runtime.memcpyDeviceToHost,
                        driver.copies.ptr)  # fmt: skip
                self.waiting.append((array, part))
                offset += array.nbytes
            self.fetched.record(driver.copies)
        self.held = [buffer for buffer, _ in pairs]

    def retire(self) -> None:
        if self.waiting:
            self.fetched.synchronize()
        for array, part in self.waiting:
            array[...] = part.view(array.dtype).reshape(array.shape)
        self.waiting = []
