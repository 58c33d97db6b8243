"""The device kernels on the CPU: csrc/cuda compiled for the host by the shim, as a driver of the CUDA backend."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from fastae.backends.cuda.launches import Beside, Launch, Wait
from fastae.backends.cuda.lt import Matrix, Product
from fastae.backends.cuda.record import LAUNCH, STEP
from fastae.backends.cuda.user import scalar_function

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
FLAGS = ["-std=c++17", "-DFASTAE_DEVICE", "-O1", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC",
         "-shared", "-Wno-unknown-pragmas", "-Wno-subobject-linkage"]  # fmt: skip
# What `make asan` asks for: also for arrays in shared memory.
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize=vptr",
             "-fsanitize-sections=fastae_shared", "-fno-sanitize-recover=undefined"]  # fmt: skip
FUNCTIONS: dict[tuple, object] = {}  # Python functions of formulas, whose addresses plans hold
ONE_AT_A_TIME = threading.Lock()  # the shim has one device
LAUNCHED: Counter[str] = Counter()  # kernels that ran in this process


def _flags() -> list[str]:
    """With fused multiply-adds as instructions where the processor has them: the C library's are slow."""
    flags = [*FLAGS, *(SANITIZED if os.environ.get("FASTAE_SANITIZE") == "address" else ())]
    try:
        return [*flags, "-mfma"] if " fma " in Path("/proc/cpuinfo").read_text() else flags
    except OSError:
        return flags


@cache
def compiler() -> str | None:
    """The C++ compiler's command, None without one."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def library(real: str, *extra: str, sources: Path = SOURCES) -> ctypes.CDLL:
    """The kernels for ``float`` or ``double``, compiled once per state of the sources."""
    command = [os.environ.get("CXX", "g++"), *_flags(), *extra, f"-DFASTAE_REAL={real}"]
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted([*sources.glob("*.h"), *sources.glob("cuda/**/*.[ch]*")]):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"fastae-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{digest.hexdigest()[:24]}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.tmp")
        # a sanitizer preloaded into this process must not reach the compiler
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        subprocess.run([*command, f"-I{sources}", str(sources / "cuda" / "host" / "shim.cpp"), "-o", str(part)],
                       env=environment, check=True)  # fmt: skip
        os.replace(part, target)
    shim = ctypes.CDLL(str(target))
    shim.fastae_host_launch.restype = ctypes.c_char_p
    for name, dtype in (("launch", LAUNCH), ("step", STEP)):
        size = getattr(shim, f"fastae_{name}_bytes")
        size.restype = ctypes.c_size_t
        assert size() == dtype.itemsize, f"{name} has {size()} bytes in C++ and {dtype.itemsize} in Python"
    return shim


@cache
def most_threads(sources: Path = SOURCES) -> dict[str, int]:
    """Kernel → the threads of a block that it is compiled for: a device launches no more."""
    text = "\n".join(path.read_text() for path in sorted(sources.glob("cuda/*.cuh")))
    constants = dict(re.findall(r"^constexpr int (k\w+) = ([\w *]+);", text, re.MULTILINE))

    def number(product: str) -> int:
        return math.prod(int(word) if word.isdigit() else number(constants[word]) for word in product.split(" * "))

    return {name: number(most) for name, most in re.findall(r"^FASTAE_KERNEL\((\w+), (\w+)", text, re.MULTILINE)}


def _array(at: Matrix, rows: int, columns: int, dtype: type) -> np.ndarray:
    """An operand as it lies in memory, (rows, columns) after a transposition where it says so."""
    if at.transposed:
        return _array(Matrix(at.address, at.ld), columns, rows, dtype).T
    size = ((rows - 1) * at.ld + columns) * np.dtype(dtype).itemsize if rows and columns else 0
    raw = np.frombuffer((ctypes.c_char * size).from_address(at.address), dtype)
    return np.lib.stride_tricks.as_strided(raw, (rows, columns), (at.ld * raw.itemsize, raw.itemsize))


def multiply(product: Product) -> None:
    """What cuBLASLt does, by NumPy."""
    kind = {"float64": np.float64, "float16": np.float16, "bfloat16": np.uint16}.get(product.kind, np.float32)
    out = _array(product.out, product.rows, product.columns, np.float64 if product.kind == "float64" else np.float32)
    left = _array(product.left, product.rows, product.depth, kind)
    right = _array(product.right, product.depth, product.columns, kind)
    if product.kind == "bfloat16":
        left, right = ((a.astype(np.uint32) << 16).view(np.float32) for a in (left, right))
    elif product.kind == "float16":
        left, right = (a.astype(np.float32) for a in (left, right))
    with np.errstate(all="ignore"):
        value = left @ right
        if product.bias:
            value = value + _array(Matrix(product.bias, product.columns), 1, product.columns, out.dtype.type)
        if product.relu:
            value = np.maximum(value, 0)  # NaN stays
    out[...] = out + value if product.add else value


class OutOfMemory(Exception):
    """What a driver says when there is no memory left; tests raise it."""


class HostDriver:
    """Memory and launches for the CUDA backend on the CPU.

    seed : of the order in which threads and blocks run
    products : "exact" for the device's own kernels, "cublas" for NumPy in the place of cuBLASLt
    sources : folder of the kernels' sources, for others than the repository's
    """

    n_multiprocessors = 4
    tensor_cores = True
    number = 0
    free = 1 << 40  # bytes that `place` may count on
    OutOfMemory = OutOfMemory

    def __init__(self, seed: int = 1, *flags: str, products: str = "exact", sources: Path = SOURCES):
        self.seed, self.flags, self.products, self.sources = seed, flags, products, sources
        self.launched: dict[str, int] = {}
        self.epilogues = frozenset(("bias", "relu") if products == "cublas" else ())

    def __repr__(self) -> str:
        return f"HostDriver(seed={self.seed})"

    def empty(self, n_bytes: int) -> np.ndarray:
        return np.full(n_bytes, 0xA5, np.uint8)

    def size(self, buffer: np.ndarray) -> int:
        return buffer.nbytes

    def address(self, buffer: np.ndarray) -> int:
        return buffer.ctypes.data

    def upload(self, array: np.ndarray, *, aside: bool = False) -> np.ndarray:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()

    def write(self, buffer: np.ndarray, array: np.ndarray, offset: int = 0) -> None:
        buffer[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, buffer: np.ndarray, array: np.ndarray, offset: int = 0) -> None:
        array[...] = buffer[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)

    def copy(self, to: np.ndarray, buffer: np.ndarray, n_bytes: int | None = None) -> None:
        to[:n_bytes] = buffer[:n_bytes]

    def view(self, buffer: np.ndarray, n_bytes: int, dtype: np.dtype) -> np.ndarray:
        return buffer[:n_bytes].view(dtype)

    def fill(self, buffer: np.ndarray, byte: int) -> None:
        buffer[:] = byte

    def launch(self, dtype: np.dtype, launch: Launch | Product | Beside | Wait) -> None:
        if isinstance(launch, Wait):
            return
        if isinstance(launch, Beside):
            for one in launch.launches:
                self.launch(dtype, one)
            return
        if isinstance(launch, Product):
            multiply(launch)
            return
        shim = library("float" if dtype == np.float32 else "double", *self.flags, sources=self.sources)
        kernel = ctypes.cast(getattr(shim, f"fastae_{launch.kernel}"), ctypes.c_void_p)
        triple = ctypes.c_uint * 3
        threads, most = math.prod(launch.block), most_threads(self.sources)[launch.kernel]
        if threads > most:
            raise RuntimeError(
                f"kernel {launch.kernel}: a block of {threads} threads, of the {most} it is compiled for"
            )
        self.seed += 1
        self.launched[launch.kernel] = self.launched.get(launch.kernel, 0) + 1
        LAUNCHED[launch.kernel] += 1
        with ONE_AT_A_TIME:
            error = shim.fastae_host_launch(
                kernel, triple(*launch.grid), triple(*launch.block), ctypes.c_size_t(launch.shared),
                ctypes.c_void_p(launch.record.ctypes.data), ctypes.c_uint64(self.seed),
            )  # fmt: skip
        if error:
            raise RuntimeError(f"kernel {launch.kernel}: {error.decode()}")

    def user_function(self, formula, suffix: str, dtype: np.dtype) -> int:
        """Address of a formula's Python function as a C function of scalars."""
        key = formula.index, suffix, dtype.name
        if key not in FUNCTIONS:
            from numba import cfunc, njit, types

            real = types.float64 if dtype == np.float64 else types.float32
            compiler = cfunc(real(real, real, real, real), error_model="numpy")
            FUNCTIONS[key] = compiler(scalar_function(formula, suffix, dtype, njit(error_model="numpy")))
        return FUNCTIONS[key].address

    def capture(self, dtype: np.dtype, launches: list):
        """What may run beside others runs at once or as late as it may."""

        def replay():
            late = []
            for launch in launches:
                if isinstance(launch, Beside) and self.seed % 3:
                    self.seed += 1
                    late.append(launch)
                elif isinstance(launch, Wait):
                    for one in launch.ended:
                        if one in late:
                            late.remove(one)
                            self.launch(dtype, one)
                else:
                    self.launch(dtype, launch)
            assert not late, "a step ended before what ran beside"

        return replay

    def synchronize(self) -> None:
        pass

    join = settle = synchronize

    def free_bytes(self) -> int:
        return self.free

    def slot(self) -> HostSlot:
        return HostSlot(self)


class HostSlot:
    """The way of rows to the device and back, without overlap."""

    def __init__(self, driver: HostDriver):
        self.driver = driver

    def send(self, parts: list) -> list[int]:
        self.held = [None if part is None else self.driver.upload(part) for part in parts]
        return [0 if part is None else self.driver.address(part) for part in self.held]

    def used(self) -> None:
        self.held = [None if part is None else part.fill(0xA5) for part in self.held]

    def fetch(self, pairs: list) -> None:
        for buffer, array in pairs:
            self.driver.download(buffer, array)

    def retire(self) -> None:
        pass
