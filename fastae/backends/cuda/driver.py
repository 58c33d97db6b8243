"""What the backend wants of a GPU, through CuPy: memory, launches, graphs, products."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from . import lt, source
from .binder import Launch

_REAL = {"float32": "float", "float64": "double"}


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
        self._kernels: dict[tuple[str, str], Any] = {}
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

    def upload(self, array: np.ndarray) -> Any:
        """A copy of a host array on the device, as bytes."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer = self.empty(flat.nbytes)
        self.write(buffer, flat)
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

    def fill(self, buffer: Any, byte: int) -> None:
        with self.device:
            self.cupy.cuda.runtime.memsetAsync(self.address(buffer), byte, buffer.nbytes, self.stream.ptr)

    # ---- kernels ---

    def kernel(self, name: str, dtype: np.dtype) -> Any:
        real = _REAL[dtype.name]
        if (name, real) not in self._kernels:
            if real not in self._modules:
                self._modules[real] = self._module(real)
            self._kernels[name, real] = self._modules[real].get_function(f"fastae_{name}")
        return self._kernels[name, real]

    def _module(self, real: str) -> Any:
        """The kernels for a real type: those built with the package, else compiled now and kept on disk by CuPy."""
        path = source.fatbin(real)
        if path is not None:
            return self.cupy.RawModule(path=str(path))
        return self.cupy.RawModule(code=source.kernels(), options=(*source.NVRTC_OPTIONS, f"-DFASTAE_REAL={real}"))

    def launch(self, dtype: np.dtype, launch: Launch | lt.Product) -> None:
        with self.device, self.stream:
            if isinstance(launch, lt.Product):
                self._multiply(launch)
            else:
                self.kernel(launch.kernel, dtype)(launch.grid, launch.block, (launch.record,), shared_mem=launch.shared)

    def _multiply(self, product: lt.Product) -> None:
        if self._products is None:
            self._workspace = self.cupy.empty(lt.WORKSPACE_BYTES, np.uint8)
            self._products = lt.Products(self._workspace.data.ptr)
        self._products(product, self.stream.ptr)

    def capture(self, dtype: np.dtype, launches: list[Launch | lt.Product]) -> Callable[[], None]:
        """The launches as one CUDA graph; a call of the result replays it."""
        for launch in launches:  # before the capture, which allows neither loading nor allocating
            if isinstance(launch, Launch):
                self.kernel(launch.kernel, dtype)
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
