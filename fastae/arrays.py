"""Arrays of NumPy and of a GPU (CuPy's, ``__cuda_array_interface__``, DLPack): which is which, and the same on both."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_CUDA = 2  # kDLCUDA


def on_device(array: Any) -> bool:
    """Whether an array lies in a GPU's memory."""
    if type(array) is np.ndarray or array is None:  # what comes most, at no cost
        return False
    return hasattr(array, "__cuda_array_interface__") or _gives_dlpack(array)


def _gives_dlpack(array: Any) -> bool:
    """Whether an array in a GPU's memory is to be had by DLPack."""
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == _CUDA


def cupy() -> Any:
    """CuPy; ImportError with what to do where it is missing."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"arrays on a GPU need CuPy ({error}): pip install 'fastae[cuda13]' (or [cuda12]), or give NumPy arrays"
        ) from error
    return cupy


class _Elsewhere:
    """CuPy's functions on another GPU than the current one: they allocate and launch on whichever that is."""

    def __init__(self, xp: Any, number: int):
        self._xp, self._device = xp, xp.cuda.Device(number)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)

        def there(*arguments: Any, **more: Any) -> Any:
            with self._device:
                return function(*arguments, **more)

        return there


def namespace(*arrays: Any) -> Any:
    """CuPy, on the GPU of the first of the arrays that lies on one; else NumPy."""
    there = next((array for array in arrays if on_device(array)), None)
    if there is None:
        return np
    xp, number = cupy(), device_number(there)
    return xp if xp.cuda.runtime.getDevice() == number else _Elsewhere(xp, number)


def asarray(value: Any) -> Any:
    """The value as an array of NumPy, or of CuPy where it lies on a GPU: without a copy.

    By DLPack where there are two ways: ``__cuda_array_interface__`` has no bfloat16, and PyTorch tells some other type.
    """
    if not on_device(value):
        return np.asarray(value)
    xp = cupy()
    if isinstance(value, xp.ndarray):
        return value
    return xp.from_dlpack(value) if _gives_dlpack(value) else xp.asarray(value)


def of_tensor(value: Any) -> Any:
    """A tensor in the host's memory (PyTorch's) as NumPy's array of its own type, without a copy; else the value.

    Its dtype is none of NumPy's, for which scikit-learn would take float64; and NumPy has no bfloat16 to ask it for.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(dtype, np.dtype) or not hasattr(value, "__array__") or on_device(value):
        return value
    if hasattr(value, "detach"):
        value = value.detach()
    if str(dtype) != "torch.bfloat16":
        return np.asarray(value)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ImportError("tensors of bfloat16 need ml_dtypes: pip install ml_dtypes") from None
    return value.view(sys.modules["torch"].int16).numpy().view(bfloat16)


def to_host(array: Any) -> np.ndarray:
    """The array in the host's memory: itself where it lies there."""
    return asarray(array).get() if on_device(array) else np.asarray(array)


def device_number(array: Any) -> int:
    """Which GPU an array lies on."""
    device = getattr(asarray(array), "device", None)
    return int(getattr(device, "id", 0))


def share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays may overlap; one on a GPU and one on the host never do."""
    if not (hasattr(a, "dtype") and hasattr(b, "dtype")) or on_device(a) != on_device(b):
        return False
    if not on_device(a):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b)
    return bool(cupy().may_share_memory(asarray(a), asarray(b)))


def address(array: Any) -> int:
    """Address of an array's first element, on whichever side."""
    if on_device(array):
        return int(array.__cuda_array_interface__["data"][0])
    return int(array.ctypes.data)


def real_of(stored: Any) -> np.dtype:
    """What rows stored as a dtype are computed in: float64, of either byte order, stays; all else is float32."""
    return np.dtype(np.float64 if stored.kind == "f" and stored.itemsize == 8 else np.float32)


class HostRows:
    """Rows of an array on a GPU as NumPy arrays, copied as they are asked for."""

    def __init__(self, array: Any):
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if not isinstance(rows, np.ndarray):
            return to_host(self.array[rows])
        xp = namespace(self.array)
        return to_host(xp.take(self.array, xp.asarray(rows), axis=0))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(to_host(self.array), dtype=dtype)
