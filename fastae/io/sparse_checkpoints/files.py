"""Files of checkpoints: JSON configs and named arrays, of which every key is accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...exceptions import ModelFileError
from ..model_file import write_atomically
from ..torch_archive import widen_bfloat16

MAX_JSON_BYTES = 16 << 20
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_MISSING = object()


def folder_of(path: Any) -> Path:
    """The folder that a path names, itself or by one of its files."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {str(path)!r}; give a local folder (nothing is downloaded)")
    return path if path.is_dir() else path.parent


def existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{str(path.parent)!r} lacks {path.name!r} ({what})")
    return path


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    existing(path, "the config")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFileError(f"{str(path)!r} has more than {MAX_JSON_BYTES} bytes; that is no config")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{str(path)!r} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{str(path)!r} holds a {type(value).__name__}, wanted an object with named settings")
    return value


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file, mapped and not copied; bfloat16 as float32."""
    from safetensors import SafetensorError, safe_open

    existing(path, "the weights")
    try:
        with safe_open(str(path), framework="numpy") as file:  # checks header, offsets and length
            names = list(file.keys())
        with open(path, "rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{str(path)!r} is not a readable safetensors file ({error}); fetch it again") from error
    empty = path.stat().st_size == 8 + length
    data = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r", offset=8 + length)
    arrays = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] not in _SAFETENSORS:
            known = ", ".join(_SAFETENSORS)
            raise ModelFileError(f"{str(path)!r}: tensor {name!r} is {entry['dtype']}; {known} are read")
        start, end = entry["data_offsets"]
        values = np.asarray(data[start:end]).view(_SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = widen_bfloat16(values) if entry["dtype"] == "BF16" else values
    return arrays


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata={"format": "pt"})
    write_atomically(path, lambda file: file.write(data))


def write_json(path: Path, value: dict) -> None:
    data = (json.dumps(value, indent=2) + "\n").encode()
    write_atomically(path, lambda file: file.write(data))


def folder_for(path: Any) -> Path:
    """The folder to write, made where it is missing."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{str(path)!r} is a file; a checkpoint is a folder, give another path")
    path.mkdir(parents=True, exist_ok=True)
    return path


def to_precision(array: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Values rounded to what a config names as its dtype, as float32 or float64."""
    name = dtype.removeprefix("torch.")
    if name == "float64":
        return array.astype(np.float64)
    values = array.astype(np.float32)
    if name == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if name == "bfloat16":  # to nearest, ties to even, in the upper 16 bits; NaN and infinity are refused elsewhere
        bits = values.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.where(np.isfinite(values), (rounded & np.uint32(0xFFFF0000)).view(np.float32), values)
    if name != "float32":
        raise ModelFileError(f"{where}: dtype {dtype!r}; float64, float32, float16 and bfloat16 are read")
    return values


class Tensors:
    """Named arrays of a file, taken one by one; what is left at the end is an error."""

    def __init__(self, path: Path, arrays: dict[str, Any]):
        self.path, self.left = path, dict(arrays)
        self.names = sorted(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """Shape of a tensor that stays."""
        if name not in self.left:
            raise ModelFileError(f"{str(self.path)!r} lacks the tensor {name!r}; it has {self.names[:20]}")
        value = self.left[name]
        if not isinstance(value, np.ndarray) or value.ndim != ndim:
            got = value.shape if isinstance(value, np.ndarray) else type(value).__name__
            raise ModelFileError(f"{str(self.path)!r}: {name!r} has shape {got}, wanted {ndim} dimensions")
        return value.shape

    def raw(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor as it lies, of any dtype."""
        got = self.shape(name, len(shape))
        if got != shape:
            raise ModelFileError(f"{str(self.path)!r}: tensor {name!r} has shape {got}, wanted {shape} from the config")
        return self.left.pop(name)

    def take(self, name: str, shape: tuple[int, ...], dtype: str | None = None, finite: bool = True) -> np.ndarray:
        """A copy of a tensor of floats as float32 (float64 stays); rounded to ``dtype`` where the config names one."""
        values = self.raw(name, shape)
        if values.dtype.kind != "f":
            raise ModelFileError(f"{str(self.path)!r}: tensor {name!r} is {values.dtype}, wanted floating point")
        if finite and not np.isfinite(values).all():
            raise ModelFileError(f"{str(self.path)!r}: tensor {name!r} has NaN or infinite values; it is unusable")
        if dtype is not None:
            values = to_precision(values, dtype, str(self.path))
            if finite and not np.isfinite(values).all():
                raise ModelFileError(f"{str(self.path)!r}: tensor {name!r} overflows the config's {dtype}")
        return np.array(values, np.float64 if values.dtype == np.float64 else np.float32, order="C")

    def integer(self, name: str) -> int:
        """A tensor of one integer."""
        value = self.raw(name, ())
        if value.dtype.kind not in "iu":
            raise ModelFileError(f"{str(self.path)!r}: tensor {name!r} is {value.dtype}, wanted an integer")
        return int(value)

    def drop(self, names: Iterable[str]) -> None:
        """Statistics of training that no code depends on."""
        for name in names:
            self.left.pop(name, None)

    def finish(self, what: str) -> None:
        if self.left:
            name = sorted(self.left)[0]
            raise ModelFileError(
                f"{str(self.path)!r} has a tensor {name!r} that {what} does not know; it is not ignored"
            )


class Config:
    """Settings of a file, taken one by one; what is left at the end is an error or goes to the metadata."""

    def __init__(self, path: Path, values: dict):
        self.path, self.left = path, dict(values)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        if key not in self.left:
            if default is _MISSING:
                raise ModelFileError(f"{str(self.path)!r} lacks {key!r}")
            return default
        value = self.left.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise ModelFileError(f"{str(self.path)!r}: {key}={_short(value)} must be of type {names}")
        return value

    def size(self, key: str, default: Any = _MISSING) -> int:
        value = self.take(key, int, default)
        if value is not default and not 1 <= value < 2**31:
            raise ModelFileError(f"{str(self.path)!r}: {key}={_short(value)} must be from 1 to 2^31 − 1")
        return value

    def choice(self, key: str, allowed: tuple[Any, ...], default: Any = _MISSING, why: str = "fastae reads") -> Any:
        if key not in self.left and default is not _MISSING:
            return default
        value = self.take(key, (str, bool, type(None)))
        if value not in allowed:
            words = ", ".join(map(repr, allowed))
            raise ModelFileError(f"{str(self.path)!r}: {key}={_short(value)} is not supported; {why} {words}")
        return value

    def finish(self, ignored: Iterable[str] = (), lenient: bool = False) -> dict:
        """What is left, for the metadata: only keys in ``ignored`` may be, or all where ``lenient``."""
        if not lenient and (unknown := sorted(set(self.left) - set(ignored))):
            raise ModelFileError(
                f"{str(self.path)!r} has a setting {unknown[0]!r}={_short(self.left[unknown[0]])} that is not known; "
                "it may change the codes, so it is not ignored"
            )
        return self.left

    def error(self, what: str) -> ModelFileError:
        return ModelFileError(f"{str(self.path)!r}: {what}")


def _short(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 80 else json.dumps(value, default=str)[:80]


def not_negative(threshold: np.ndarray) -> np.ndarray:
    """max(θ, 0): packages apply a relu too, so a negative threshold is zero."""
    return np.maximum(threshold, 0)


def transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T)
