"""NVRTC through a binding of our own: the kernels compiled at a GPU's first use, and kept on disk.

Not CuPy's `RawModule`: it compiles with ``-ftz=true``, which nothing that it is given can undo, and denormal numbers
would become 0 where the CPU and the kernels that nvcc compiled keep them. Works without a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from . import nvidia, source

_PROTOTYPES: nvidia.Prototypes = {
    "nvrtcVersion": [POINTER(c_int), POINTER(c_int)],
    "nvrtcGetNumSupportedArchs": [POINTER(c_int)],
    "nvrtcGetSupportedArchs": [POINTER(c_int)],
    "nvrtcCreateProgram": [POINTER(c_void_p), c_char_p, c_char_p, c_int, c_void_p, c_void_p],
    "nvrtcCompileProgram": [c_void_p, c_int, POINTER(c_char_p)],
    "nvrtcDestroyProgram": [POINTER(c_void_p)],
    **{f"nvrtcGet{what}Size": [c_void_p, POINTER(c_size_t)] for what in ("CUBIN", "PTX", "LTOIR", "ProgramLog")},
    **{f"nvrtcGet{what}": [c_void_p, c_char_p] for what in ("CUBIN", "PTX", "LTOIR", "ProgramLog")},
}


@cache
def open_library() -> ctypes.CDLL:
    """NVRTC of the CUDA version that CuPy was built for, with its prototypes. Raises ImportError without it."""
    return nvidia.open_library("nvrtc", "NVRTC", _PROTOTYPES, "nvrtcGetErrorString")


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    return nvidia.declare(library, _PROTOTYPES, "nvrtcGetErrorString")


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        raise RuntimeError(f"{name} failed: {library.nvrtcGetErrorString(status).decode()}")


def version(library: Any) -> tuple[int, int]:
    major, minor = c_int(), c_int()
    _call(library, "nvrtcVersion", byref(major), byref(minor))
    return major.value, minor.value


def target(library: Any, architecture: int) -> tuple[str, str]:
    """The option for a GPU's architecture, and what is made: code for it, or PTX where it is newer than the compiler.

    architecture : 90 for compute capability 9.0
    """
    count = c_int()
    _call(library, "nvrtcGetNumSupportedArchs", byref(count))
    known = (c_int * count.value)()
    _call(library, "nvrtcGetSupportedArchs", known)
    if architecture in known:
        return f"-arch=sm_{architecture}", "CUBIN"
    return f"-arch=compute_{max((a for a in known if a <= architecture), default=min(known))}", "PTX"


def compile_text(library: Any, text: str, options: Sequence[str], kind: str) -> bytes:
    """A source compiled. kind : "CUBIN", "PTX" or "LTOIR". Raises RuntimeError with what the compiler says."""
    program = c_void_p()

    def result(what: str) -> bytes:
        size = c_size_t()
        _call(library, f"nvrtcGet{what}Size", program, byref(size))
        out = ctypes.create_string_buffer(size.value)
        _call(library, f"nvrtcGet{what}", program, out)
        return out.raw

    _call(library, "nvrtcCreateProgram", byref(program), text.encode(), b"kernels.cu", 0, None, None)
    try:
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        try:
            _call(library, "nvrtcCompileProgram", program, len(options), given)
        except RuntimeError as error:
            log = result("ProgramLog").decode(errors="replace").strip("\0\n ")
            raise RuntimeError(f"NVRTC {'.'.join(map(str, version(library)))}: {error}: {log}") from None
        return result(kind)
    finally:
        library.nvrtcDestroyProgram(byref(program))


def kernels(real: str, architecture: int, *options: str, lto: bool = False) -> bytes:
    """All kernels for ``float`` or ``double``: code that a module is loaded from, or intermediate code to be linked."""
    library = open_library()
    arch, kind = (f"-arch=sm_{architecture}", "LTOIR") if lto else target(library, architecture)
    flags = (*source.NVRTC_OPTIONS, f"-DFASTAE_REAL={real}", *options, *(("-dlto",) if lto else ()), arch)
    text = source.kernels()
    return cached((text, flags, version(library)), lambda: compile_text(library, text, flags, kind), kind.lower())


def cached(key: tuple, make: Callable[[], bytes], suffix: str) -> bytes:
    """What was made before on this machine, in the user's cache folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastae"
    path = root / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.{suffix}"
    try:
        return path.read_bytes()
    except OSError:
        made = make()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, delete=False) as file:
            file.write(made)
        os.replace(file.name, path)
    except OSError:
        pass  # a folder that cannot be written to: compiled again next time
    return made
