"""What the backend wants of a GPU, through CuPy: memory, launches, graphs, products."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...registry import Formula
from . import lt, user
from .kernels import Kernels
from .launches import Beside, Launch, Wait
from .slot import Slot

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


def side_by_side(
    cupy: Any, stream: Any, sides: list[Any], launches: list[Any], launch: Callable[[Any, Any], None]
) -> None:
    """launch(one, stream) for each of the launches: what may run beside others on a stream of its own.

    Kernels have one such stream and products another: few of either fill a GPU.
    """

    def mark(on: Any) -> Any:
        event = cupy.cuda.Event(disable_timing=True)
        event.record(on)
        return event

    done: dict[Beside, Any] = {}
    for one in launches:
        if isinstance(one, Beside):
            side = sides[any(isinstance(each, lt.Product) for each in one.launches)]
            side.wait_event(mark(stream))
            for each in one.launches:
                launch(each, side)
            done[one] = mark(side)
        elif isinstance(one, Wait):
            for ended in one.ended:
                stream.wait_event(done[ended])
        else:
            launch(one, stream)


class CupyDriver:
    """One GPU through CuPy.

    device : number of the GPU
    products : "cublas" for cuBLASLt, "exact" for kernels with the CPU's order of operations, and its bits

    Everything runs on a stream of its own, in order; threads take turns at it (``lock``), as what one launches while
    another captures a graph would become part of that.
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
        runtime = cupy.cuda.runtime
        self.n_multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device)
        with self.device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.copies = cupy.cuda.Stream(non_blocking=True)  # to the device
            self.results = cupy.cuda.Stream(non_blocking=True)  # from there
            self.sides = [cupy.cuda.Stream(non_blocking=True) for _ in ("kernels", "products")]  # of a graph
            self.called = cupy.cuda.Event(disable_timing=True)
        self.lock = threading.RLock()
        self.OutOfMemory = cupy.cuda.memory.OutOfMemoryError
        self.kernels = Kernels(cupy, int(self.device.compute_capability))
        self._products: lt.Products | None = None
        self._epilogues: frozenset[str] | None = None
        self._workspaces: list[Any] = []

    def __repr__(self) -> str:
        return f"CupyDriver(device={self.number}, products={self.products!r})"

    @property
    def tensor_cores(self) -> bool:
        """Whether the kernels of tensor.cuh run here."""
        return self.kernels.architecture >= 80

    # ---- memory ---

    def empty(self, n_bytes: int, stream: Any = None) -> Any:
        """Memory. stream : whose work on it comes first; what was there before ends in that stream's order"""
        with self.device, stream or self.stream:
            return self.cupy.empty(max(n_bytes, 1), np.uint8)

    def size(self, buffer: Any) -> int:
        return buffer.nbytes

    def address(self, buffer: Any) -> int:
        if hasattr(buffer, "data") and hasattr(buffer.data, "ptr"):
            return buffer.data.ptr
        return buffer.__cuda_array_interface__["data"][0]

    def _copy(self, to: int, start: int, n_bytes: int, kind: str, stream: Any = None) -> None:
        """Bytes from one address to another. kind : "HostToDevice", "DeviceToHost" or "DeviceToDevice" """
        runtime = self.cupy.cuda.runtime
        if n_bytes:
            runtime.memcpyAsync(to, start, n_bytes, getattr(runtime, f"memcpy{kind}"), (stream or self.stream).ptr)

    def upload(self, array: np.ndarray, *, aside: bool = False) -> Any:
        """A copy of a host array on the device, as bytes. aside : beside what runs there, from another thread"""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer = self.empty(flat.nbytes, self.copies if aside else None)
        if not aside:
            self.write(buffer, flat)
            return buffer
        with self.device:
            self._copy(buffer.data.ptr, flat.ctypes.data, flat.nbytes, "HostToDevice", self.copies)
            self.copies.synchronize()
        return buffer

    def write(self, buffer: Any, array: np.ndarray, offset: int = 0) -> None:
        """The bytes of a host array to the device, from ``offset`` on."""
        flat = array.reshape(-1).view(np.uint8)
        with self.lock, self.device:
            self._copy(self.address(buffer) + offset, flat.ctypes.data, flat.nbytes, "HostToDevice")
            self.stream.synchronize()  # the host's memory may go at once

    def download(self, buffer: Any, array: np.ndarray, offset: int = 0) -> None:
        """Bytes of the device from ``offset`` on into a host array, after what was launched before."""
        target = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
        with self.lock, self.device:
            self._copy(target.ctypes.data, self.address(buffer) + offset, target.nbytes, "DeviceToHost")
            self.stream.synchronize()
        if target is not array:
            array[...] = target

    def copy(self, to: Any, buffer: Any, n_bytes: int | None = None) -> None:
        """The bytes of a buffer (the first ones) into another on the device."""
        with self.lock, self.device:
            self._copy(self.address(to), self.address(buffer), buffer.nbytes if n_bytes is None else n_bytes,
                       "DeviceToDevice")  # fmt: skip

    def view(self, buffer: Any, n_bytes: int, dtype: np.dtype) -> Any:
        """The first bytes of a buffer as an array; work of others on it waits for what was launched."""
        self.synchronize()
        return buffer[:n_bytes].view(dtype)

    def fill(self, buffer: Any, byte: int) -> None:
        with self.lock, self.device:
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
        with self.lock, self.device:
            return self.kernels(name, dtype, formula)

    def user_function(self, formula: Formula, suffix: str, dtype: np.dtype) -> int:
        """Address of a formula's Python function: none, as kernels are linked with it."""
        reason = user.missing()
        if reason is not None:
            raise ImportError(f"{formula.kind} {formula.row.name!r}: {reason}; or register it as text")
        return 0

    def launch(self, dtype: np.dtype, launch: Any) -> None:
        """Launches one after another, also what may run beside others."""
        if isinstance(launch, Wait):
            return
        with self.lock, self.device:
            for one in launch.launches if isinstance(launch, Beside) else (launch,):
                self._launch(dtype, one, self.stream)

    def _launch(self, dtype: np.dtype, launch: Launch | lt.Product, stream: Any) -> None:
        if isinstance(launch, lt.Product):
            self._multiply(dtype, launch, stream)
        else:
            kernel = self.kernels(launch.kernel, dtype, launch.formula)
            kernel(launch.grid, launch.block, (launch.record,), shared_mem=launch.shared, stream=stream)

    def _multiply(self, dtype: np.dtype, product: lt.Product, stream: Any) -> None:
        if self._products is None:  # products side by side each have a workspace
            self._workspaces = [self.empty(lt.WORKSPACE_BYTES) for _ in range(2)]
            self._products = lt.Products()
        known = product.instead is None or self._products.knows(product)
        workspace = self._workspaces[stream is not self.stream].data.ptr
        self._products(product if known else product.plain, stream.ptr, workspace)
        if not known:
            self._launch(dtype, product.instead, stream)

    @property
    def epilogues(self) -> frozenset[str]:
        """What cuBLASLt does to a product before it stores it: "bias", and "relu" where that leaves NaN what it is."""
        if self._epilogues is None:
            found = {"bias"} if self.products == "cublas" else set()
            if found and lt.keeps_nan(self):
                found.add("relu")
            self._epilogues = frozenset(found)
        return self._epilogues

    def capture(self, dtype: np.dtype, launches: list[Any]) -> Callable[[], None]:
        """A function that runs the launches: as one CUDA graph from its second call on.

        The first call makes them one by one, so that modules, libraries and their kernels, which load at first use, are
        there when the second one captures: a capture may neither load nor allocate. A graph that cannot be made is
        told, and done without.
        """
        graph: Any = None
        calls = 0

        def run() -> None:
            nonlocal graph, calls
            calls += 1
            with self.lock, self.device:
                if calls == 2:
                    try:
                        graph = self._graph(dtype, launches)
                    except (RuntimeError, OSError) as error:
                        _log.warning("no CUDA graph could be made (%s); steps go on, by single launches", error)
                if graph is not None:
                    graph.launch(self.stream)
                    return
                for launch in launches:
                    self.launch(dtype, launch)

        return run

    def _graph(self, dtype: np.dtype, launches: list[Any]) -> Any:
        with self.stream:
            self.stream.begin_capture()
            try:
                side_by_side(self.cupy, self.stream, self.sides, launches, partial(self._launch, dtype))
            finally:  # also ends a capture that went wrong
                graph = self.stream.end_capture()
            graph.upload(self.stream)
        return graph

    # ---- order ---

    def join(self) -> None:
        """What is launched from now on comes after what CuPy's current stream has: its arrays may still be made."""
        with self.lock, self.device:
            self.called.record(self.cupy.cuda.get_current_stream())
            self.stream.wait_event(self.called)

    def synchronize(self) -> None:
        with self.lock:
            self.stream.synchronize()

    def settle(self) -> None:
        """Waits for everything, copies too: before memory goes that a run which failed was using."""
        with self.lock:
            for stream in (self.stream, *self.sides, self.copies, self.results):
                stream.synchronize()
