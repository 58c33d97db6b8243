"""fastae's own model file: one .safetensors file, tensors plus a JSON description in its metadata.

Written to a temporary name in the same folder, synced, renamed, and the folder synced: whatever happens, the path
holds either the old file or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import tempfile
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..exceptions import ModelFileError
from ..spec.options import Option

FORMAT_VERSION = 1
MAX_RANGE = 1 << 20  # numbers that a few bytes of a file may stand for
_PREFIX = ".fastae-"
_SUFFIX = ".partial"
# estimator classes that files may name, and where they live
ESTIMATORS = {
    "Autoencoder": "models.autoencoder",
    "SparseAutoencoder": "models.sparse",
    "StackedAutoencoder": "models.stacked",
    "AutoencoderClassifier": "tasks.classifier",
    "AutoencoderDetector": "tasks.detector",
}
# modules whose option classes may stand in a file's parameters
_OPTION_MODULES = ("spec.options", "spec.heads", "spec.sparse", "spec.pretraining", "schedules", "initializers")


def write_atomically(path: Any, write: Any) -> None:
    """Calls ``write(file)`` on a temporary file, then puts it in the place of ``path``; OSError leaves the old one."""
    path = Path(path)
    folder = path.parent if str(path.parent) else Path(".")
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot save to {str(path)!r}: there is no folder {str(folder)!r}; make it first")
    _sweep(folder, path.name)
    handle, name = tempfile.mkstemp(prefix=f"{_PREFIX}{path.name}-", suffix=_SUFFIX, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sweep(folder: Path, name: str) -> None:
    """Removes what a killed writer of the same file left behind an hour ago or more."""
    import time

    for leftover in folder.glob(f"{_PREFIX}{name}-*{_SUFFIX}"):
        try:
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
        except OSError:
            continue  # another process was quicker


def save(path: Any, tensors: dict[str, np.ndarray], description: dict) -> None:
    """Writes tensors and a JSON-able description."""
    from safetensors.numpy import save as serialise

    metadata = {"fastae": json.dumps({"format_version": FORMAT_VERSION, "library": __version__, **description})}
    data = serialise({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata)
    write_atomically(path, lambda file: file.write(data))


def read(path: Any) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors and description of a file; every bad file raises `ModelFileError`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {str(path)!r}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        raise ModelFileError(f"{str(path)!r} is not a readable model file ({error}); save the model again") from error
    if "fastae" not in metadata:
        raise ModelFileError(f"{str(path)!r} is a safetensors file but not fastae's; it has no 'fastae' description")
    try:
        description = json.loads(metadata["fastae"])
        version = description["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{str(path)!r} has a damaged description ({error}); save the model again") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"{str(path)!r} has format version {version!r}; this fastae {__version__} reads up to {FORMAT_VERSION}; "
            "upgrade fastae"
        )
    return tensors, description


# ---- parameters as JSON ---


def _option_name(option: Any) -> str:
    """Class of an option; of a registered formula its kind and name."""
    from ..registry import FORMULAS

    formula = FORMULAS.get(getattr(option, "_index", -1))
    return type(option).__name__ if formula is None else f"{formula.kind} {formula.row.name}"


def _option_class(name: str) -> type:
    if " " in name:
        from ..catalog import INDEX
        from ..registry import CLASSES

        kind, _, formula = name.partition(" ")
        if INDEX.get(kind, {}).get(formula, -1) in CLASSES:
            return CLASSES[INDEX[kind][formula]]
        raise ModelFileError(f"the file names the {kind} {formula!r}, but does not describe it; save the model again")
    for module in _OPTION_MODULES:
        found = vars(importlib.import_module(f"..{module}", __package__)).get(name)
        if dataclasses.is_dataclass(found) and isinstance(found, type):
            return found
    raise ModelFileError(f"the file names an option {name!r} that this fastae does not have; upgrade fastae")


def encode(value: Any) -> Any:
    """An estimator's parameter as JSON: options as {"option": class, fields}, arrays as lists, dicts as pairs."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no word for it
    if isinstance(value, (type(None), bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = value.stored() if isinstance(value, Option) else {f.name: getattr(value, f.name) for f in
                                                                 dataclasses.fields(value)}  # fmt: skip
        fields = {name: encode(item) for name, item in kept.items()}
        return {"option": _option_name(value), "fields": fields}
    raise TypeError(f"{value!r} cannot be stored in a model file")


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"tuple"}:
            return tuple(decode(item) for item in value["tuple"])
        if set(value) == {"range"}:
            if len(found := range(*value["range"])) > MAX_RANGE:
                raise ModelFileError(f"the file has a range of {len(found)} numbers; at most {MAX_RANGE} are read")
            return found
        if set(value) == {"float"}:
            return float(value["float"])
        if set(value) == {"dict"}:
            return {decode(key): decode(item) for key, item in value["dict"]}
        if set(value) == {"option", "fields"}:
            return _option_class(value["option"])(**{k: decode(v) for k, v in value["fields"].items()})
        raise ModelFileError(f"the file has a parameter of unknown form with keys {sorted(value)}")
    return value


# what belongs to a process, not to a model: but for the name of an initializer and a seed that is a number
_LEFT_OUT = {
    "callbacks": (), "random_state": None, "initializer": "auto", "backend": "auto", "n_jobs": None, "device": "auto",
}  # fmt: skip
_KEPT: dict[str, Any] = {"initializer": str, "random_state": Integral}


def _estimator_class(name: str) -> Any:
    return getattr(importlib.import_module(f"..{ESTIMATORS[name]}", __package__), name)


def save_estimator(estimator: Any, path: Any) -> None:
    """Writes a fitted estimator."""
    from ..registry.travel import used

    name = type(estimator).__name__
    if name not in ESTIMATORS or type(estimator) is not _estimator_class(name):
        raise TypeError(f"{name} is a class of your own, which a model file cannot bring back; pickle it")
    tensors, state = estimator._get_model_state()
    kept = {name: value for name, value in estimator.get_params(deep=False).items()
            if name not in _LEFT_OUT or isinstance(value, _KEPT.get(name, ()))}  # fmt: skip
    if kept.get("precision") == "tf32":  # a GPU's way to multiply float32
        kept["precision"] = "float32"
    description = {"class": name, "parameters": {k: encode(v) for k, v in kept.items()}}
    formulas = used(getattr(estimator, "autoencoder_", estimator).network_, kept)
    save(path, tensors, description | ({"formulas": formulas} if formulas else {}) | {"state": state})


def load(path: Any) -> Any:
    """The fitted estimator in a file that ``save`` wrote; formulas registered as text come with it.

    path : of the file, str or PathLike
    Raises ModelFileError for a file that is damaged, of another kind, or of a newer format; FileNotFoundError when
    there is none. A formula that was a Python function must be registered before. ``callbacks``, ``backend``,
    ``device``, ``n_jobs``, a ``random_state`` that is no number and an ``initializer`` that is more than a name are not
    stored, nor is ``precision="tf32"``, which becomes "float32": the model is on the CPU; ``to("cuda")`` moves it.
    """
    from ..registry.travel import MAX_FORMULAS, UnregisteredError, restoring

    tensors, description = read(path)
    name = description.get("class")
    if not isinstance(name, str) or name not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise ModelFileError(f"{str(path)!r} holds a {name!r}; this fastae reads {known}; upgrade fastae")
    cls = _estimator_class(name)
    try:
        with restoring(list(description.get("formulas", ()))[:MAX_FORMULAS]):
            estimator = cls(**{key: decode(value) for key, value in description["parameters"].items()})
            estimator._set_model_state(tensors, description["state"])
    except ModelFileError:
        raise
    except UnregisteredError as error:
        raise ModelFileError(f"{str(path)!r} needs a formula of its author's: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ArithmeticError) as error:
        raise ModelFileError(
            f"{str(path)!r} does not fit together ({type(error).__name__}: {error}); save the model again"
        ) from error
    return estimator
