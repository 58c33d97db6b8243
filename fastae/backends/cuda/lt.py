"""Matrix products by cuBLASLt, through a binding of our own that opens the library at run time.

CuPy exposes no cuBLASLt, and its cuBLAS calls refuse to run while a stream is captured. Prototypes and numbers are
those of cublasLt.h (12 and 13). Matrices are row-major here: a row-major (r, c) array is the library's column-major
(c, r).
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, byref, c_double, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import nvidia

_log = logging.getLogger("fastae")
WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for Hopper; of our own, so that results don't depend on other users

# cudaDataType, cublasComputeType_t
REAL32, REAL64, FLOAT16, BFLOAT16 = 0, 1, 2, 14
COMPUTE32, COMPUTE_TF32, COMPUTE64 = 68, 77, 70
# attributes of cublasLtMatmulDesc_t, cublasLtMatmulPreference_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
MAX_WORKSPACE, MIN_ALIGNMENT_A = 1, 5

RELU, BIAS = 2, 4  # cublasLtEpilogue_t, by bits: what is done to a product before it is stored

# what is multiplied → element type of the operands, compute type, type of the result and the scales
KINDS = {
    "float32": (REAL32, COMPUTE32, REAL32),
    "tf32": (REAL32, COMPUTE_TF32, REAL32),
    "float16": (FLOAT16, COMPUTE32, REAL32),
    "bfloat16": (BFLOAT16, COMPUTE32, REAL32),
    "float64": (REAL64, COMPUTE64, REAL64),
}


@dataclass(frozen=True)
class Matrix:
    """Where an operand lies: address, distance of its rows in elements, and whether it is stored transposed."""

    address: int
    ld: int
    transposed: bool = False


@dataclass(frozen=True)
class Product:
    """out (rows, columns) = left (rows, depth) right (depth, columns) [+ out].

    bias : address of a number for each column that is added, 0 for none; relu : whether max(0, …) follows. Both not of
    float64, nor where ``add``
    instead : the launch that does both, where the library has no algorithm that does
    """

    kind: str
    left: Matrix
    right: Matrix
    out: Matrix
    rows: int
    columns: int
    depth: int
    add: bool = False
    bias: int = 0
    relu: bool = False
    instead: Any = None

    @property
    def plain(self) -> Product:
        """The product alone."""
        return replace(self, bias=0, relu=False, instead=None)

    @property
    def epilogue(self) -> int:
        return RELU * self.relu | BIAS * (self.bias != 0)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algo", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


_PROTOTYPES: nvidia.Prototypes = {
    "cublasLtCreate": [POINTER(c_void_p)],
    "cublasLtDestroy": [c_void_p],
    "cublasLtMatmulDescCreate": [POINTER(c_void_p), c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulDescDestroy": [c_void_p],
    "cublasLtMatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutDestroy": [c_void_p],
    "cublasLtMatmulPreferenceCreate": [POINTER(c_void_p)],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, POINTER(_Heuristic), POINTER(c_int)
    ],
    "cublasLtMatmul": [
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p, c_void_p, c_void_p, c_size_t, c_void_p
    ],
}  # fmt: skip


def open_library() -> ctypes.CDLL:
    """cuBLASLt of the CUDA version that CuPy was built for, with its prototypes. Raises ImportError without it."""
    return nvidia.open_library("cublasLt", "cuBLASLt", _PROTOTYPES, "cublasLtGetStatusString")


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    return nvidia.declare(library, _PROTOTYPES, "cublasLtGetStatusString")


def alignment(*sizes: int) -> int:
    """The largest power of two, at most 256, that divides all of the numbers."""
    together = 256
    for size in sizes:
        together |= size
    return together & -together


class Descriptors:
    """What the library wants to know of a product: made without a GPU, given back when the object goes."""

    def __init__(self, library: ctypes.CDLL, product: Product):
        self.library = library
        element, compute, real = KINDS[product.kind]
        self.operation = self._make("cublasLtMatmulDescCreate", compute, real)
        # column-major: outT (columns, rows) = rightT leftT
        self._set("MatmulDesc", self.operation, TRANSA, c_int(int(product.right.transposed)))
        self._set("MatmulDesc", self.operation, TRANSB, c_int(int(product.left.transposed)))
        if product.epilogue:
            self._set("MatmulDesc", self.operation, EPILOGUE, c_uint32(product.epilogue))
            self.place_bias(product.bias)  # its alignment counts for the choice of an algorithm
        self.right = self._layout(element, product.right, product.depth, product.columns)
        self.left = self._layout(element, product.left, product.rows, product.depth)
        self.out = self._layout(real, product.out, product.rows, product.columns)
        self.preference = self._make("cublasLtMatmulPreferenceCreate")
        self._set("MatmulPreference", self.preference, MAX_WORKSPACE, c_uint64(WORKSPACE_BYTES))
        size, out_size = {REAL32: 4, REAL64: 8, FLOAT16: 2, BFLOAT16: 2}[element], 8 if real == REAL64 else 4
        for i, (matrix, item) in enumerate(((product.right, size), (product.left, size), (product.out, out_size),
                                            (product.out, out_size))):  # fmt: skip
            bytes_ = c_uint32(alignment(matrix.address, matrix.ld * item))
            self._set("MatmulPreference", self.preference, MIN_ALIGNMENT_A + i, bytes_)

    def place_bias(self, address: int) -> None:
        """Where a product finds its bias."""
        if address:
            self._set("MatmulDesc", self.operation, BIAS_POINTER, c_void_p(address))

    def check(self, status: int, what: str) -> None:
        if status:
            reason = self.library.cublasLtGetStatusString(status).decode()
            raise RuntimeError(f"cuBLASLt: {what} failed: {reason} (status {status})")

    def _make(self, function: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self.check(getattr(self.library, function)(byref(made), *arguments), function)
        return made

    def _set(self, kind: str, of: c_void_p, attribute: int, value: Any) -> None:
        function = f"cublasLt{kind}SetAttribute"
        self.check(getattr(self.library, function)(of, attribute, byref(value), ctypes.sizeof(value)), function)

    def _layout(self, element: int, matrix: Matrix, rows: int, columns: int) -> c_void_p:
        """Row-major (rows, columns), or (columns, rows) where it is stored transposed, as column-major."""
        if matrix.transposed:
            rows, columns = columns, rows
        return self._make("cublasLtMatrixLayoutCreate", element, columns, rows, max(matrix.ld, 1))

    def __del__(self) -> None:
        for name, kind in (("operation", "MatmulDesc"), ("right", "MatrixLayout"), ("left", "MatrixLayout"),
                           ("out", "MatrixLayout"), ("preference", "MatmulPreference")):  # fmt: skip
            made = self.__dict__.get(name)
            if made is not None:
                getattr(self.library, f"cublasLt{kind}Destroy")(made)


class Products:
    """Runs products on a device; algorithms are chosen once for each shape."""

    def __init__(self) -> None:
        self.library = open_library()
        self.handle = c_void_p()
        status = self.library.cublasLtCreate(byref(self.handle))
        if status:
            raise ImportError(f"cuBLASLt has no handle: {self.library.cublasLtGetStatusString(status).decode()}")
        self.chosen: dict[tuple, tuple[Descriptors, Any]] = {}
        self.refused: set[tuple] = set()

    @staticmethod
    def _key(product: Product) -> tuple:
        places = tuple((alignment(m.address), m.ld, m.transposed) for m in (product.left, product.right, product.out))
        how = (product.kind, product.add, product.epilogue, alignment(product.bias))
        return (*how, product.rows, product.columns, product.depth, *places)

    def choose(self, product: Product) -> tuple[Descriptors, Any]:
        """Descriptors and algorithm of a product; RuntimeError where the library has none."""
        key = self._key(product)
        if key not in self.chosen:
            d = Descriptors(self.library, product)
            found, count = _Heuristic(), c_int()
            d.check(self.library.cublasLtMatmulAlgoGetHeuristic(
                self.handle, d.operation, d.right, d.left, d.out, d.out, d.preference, 1, byref(found), byref(count)),
                f"choosing an algorithm for {product}")  # fmt: skip
            if not count.value or found.state:
                raise RuntimeError(f"cuBLASLt has no algorithm for {product}")
            self.chosen[key] = (d, found.algo)
        return self.chosen[key]

    def knows(self, product: Product) -> bool:
        """Whether there is an algorithm for a product with what follows it."""
        if product.epilogue and self._key(product) not in self.chosen and self._key(product) not in self.refused:
            try:
                self.choose(product)
            except RuntimeError as error:
                _log.info("%s; a kernel follows the product instead", error)
                self.refused.add(self._key(product))
        return self._key(product) not in self.refused

    def __call__(self, product: Product, stream: int, workspace: int) -> None:
        """workspace : address of `WORKSPACE_BYTES` on the device, which nothing else uses meanwhile"""
        d, algorithm = self.choose(product)
        real = c_double if product.kind == "float64" else c_float
        one, beta = real(1), real(1 if product.add else 0)
        out = product.out.address
        d.place_bias(product.bias)
        d.check(self.library.cublasLtMatmul(
            self.handle, d.operation, byref(one), product.right.address, d.right, product.left.address, d.left,
            byref(beta), out, d.out, out, d.out, byref(algorithm), workspace, WORKSPACE_BYTES, stream),
            f"{product}")  # fmt: skip


def keeps_nan(driver: Any) -> bool:
    """Whether NaN stays NaN in max(0, …) of this library's products: else a loss that is not finite would hide."""
    n = 64
    ones, bias = np.ones((n, n), np.float32), driver.upload(np.ones(n, np.float32))
    wrong = ones.copy()
    wrong[3] = np.nan
    result, found = driver.empty(4 * n * n), np.empty((n, n), np.float32)
    for kind in ("float32", "tf32", "bfloat16"):
        given = [(a.view(np.uint32) >> 16).astype(np.uint16) if kind == "bfloat16" else a for a in (wrong, ones)]
        left, right = (driver.upload(a) for a in given)
        a, b, out = (Matrix(driver.address(buffer), n) for buffer in (left, right, result))
        product = Product(kind, a, b, out, n, n, n, bias=driver.address(bias), relu=True)
        try:
            driver.launch(np.dtype(np.float32), product)
        except RuntimeError as error:
            _log.info("%s; kernels take max(0, …) instead", error)
            return False
        driver.download(result, found)
        if not np.isnan(found[3]).all() or not (np.delete(found, 3, 0) == n + 1).all():
            return False
    return True
