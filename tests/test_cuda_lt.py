"""cuBLASLt's descriptors, which are made without a GPU, where the library is."""

import ctypes
import itertools
import os

import pytest

from fastae.backends.cuda import lt

# attributes of cublasLtMatmulDesc_t and cublasLtMatrixLayout_t, as cublasLt.h numbers them
COMPUTE, SCALE, TYPE, ORDER, ROWS, COLS, LD = 0, 1, 0, 1, 2, 3, 4
DEFAULT = 1  # cublasLtEpilogue_t
ROWS_, COLUMNS, DEPTH = 33, 7, 130


@pytest.fixture(scope="module")
def library():
    """The library that CuPy would use, or the one that FASTAE_CUBLASLT names."""
    path = os.environ.get("FASTAE_CUBLASLT")
    try:
        return lt.declare(ctypes.CDLL(path)) if path else lt.open_library()
    except (ImportError, OSError) as error:
        pytest.skip(f"no cuBLASLt: {error}")


def attribute(library, kind, of, number, type_=ctypes.c_int32):
    value, written = type_(), ctypes.c_size_t()
    get = getattr(library, f"cublasLt{kind}GetAttribute")
    get.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)]
    status = get(of, number, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(written))
    assert status == 0 and written.value == ctypes.sizeof(value)
    return value.value


def layout(library, of):
    wide = {number: attribute(library, "MatrixLayout", of, number, ctypes.c_uint64) for number in (ROWS, COLS)}
    return (
        attribute(library, "MatrixLayout", of, TYPE),
        wide[ROWS],
        wide[COLS],
        attribute(library, "MatrixLayout", of, LD, ctypes.c_int64),
    )


@pytest.mark.parametrize("kind", lt.KINDS)
@pytest.mark.parametrize("left_t, right_t, wider", list(itertools.product((False, True), (False, True), (0, 5))))
def test_descriptors(library, kind, left_t, right_t, wider):
    """What the library holds is the row-major product as column-major: outT = rightT leftT."""
    left = lt.Matrix(4096, (ROWS_ if left_t else DEPTH) + wider, left_t)
    right = lt.Matrix(8192, (DEPTH if right_t else COLUMNS) + wider, right_t)
    out = lt.Matrix(1 << 16, COLUMNS + wider)
    made = lt.Descriptors(library, lt.Product(kind, left, right, out, ROWS_, COLUMNS, DEPTH))
    element, compute, real = lt.KINDS[kind]

    def of(number):
        return attribute(library, "MatmulDesc", made.operation, number)

    assert (of(COMPUTE), of(SCALE)) == (compute, real)
    assert (of(lt.TRANSA), of(lt.TRANSB)) == (right_t, left_t)
    stored = (DEPTH, COLUMNS) if right_t else (COLUMNS, DEPTH)  # column-major: rows are what lies side by side
    assert layout(library, made.right) == (element, *stored, right.ld)
    stored = (ROWS_, DEPTH) if left_t else (DEPTH, ROWS_)
    assert layout(library, made.left) == (element, *stored, left.ld)
    assert layout(library, made.out) == (real, COLUMNS, ROWS_, out.ld)
    # op(A) (columns, depth) op(B) (depth, rows)
    a = layout(library, made.right)[1:3][:: -1 if right_t else 1]
    b = layout(library, made.left)[1:3][:: -1 if left_t else 1]
    assert (a, b) == ((COLUMNS, DEPTH), (DEPTH, ROWS_))


@pytest.mark.parametrize("bias, relu", list(itertools.product((0, 1 << 12), (False, True))))
def test_epilogues(library, bias, relu):
    """CUBLASLT_EPILOGUE_RELU is 2, …_BIAS 4, …_RELU_BIAS 6; what is broadcast has as many numbers as D has rows."""
    shape = (lt.Matrix(4096, DEPTH), lt.Matrix(8192, COLUMNS), lt.Matrix(1 << 16, COLUMNS), ROWS_, COLUMNS, DEPTH)
    made = lt.Descriptors(library, lt.Product("float32", *shape, bias=bias, relu=relu))

    def of(number, type_=ctypes.c_uint32):
        return attribute(library, "MatmulDesc", made.operation, number, type_)

    assert of(lt.EPILOGUE) == (2 * relu + 4 * (bias > 0) or DEFAULT)
    assert of(lt.BIAS_POINTER, ctypes.c_void_p) == (bias or None)
    assert layout(library, made.out)[1] == COLUMNS
    if bias:
        made.place_bias(bias + 64)  # the same descriptors serve wherever the bias lies
        assert of(lt.BIAS_POINTER, ctypes.c_void_p) == bias + 64


def test_preference(library):
    """The workspace is our own, and no alignment is promised that operands lack."""
    product = lt.Product("float32", lt.Matrix(4096 + 4, 130), lt.Matrix(8192, 8), lt.Matrix(16384, 7), 33, 7, 130)
    made = lt.Descriptors(library, product)

    def of(number, type_=ctypes.c_uint32):
        return attribute(library, "MatmulPreference", made.preference, number, type_)

    assert of(lt.MAX_WORKSPACE, ctypes.c_uint64) == lt.WORKSPACE_BYTES
    # A is the right operand: rows of 32 bytes; B the left one, at 4 bytes; C and D have rows of 28
    assert [of(lt.MIN_ALIGNMENT_A + i) for i in range(4)] == [32, 4, 4, 4]


def test_what_the_library_refuses_is_told(library):
    made = lt.Descriptors(library, lt.Product("float32", *[lt.Matrix(256, 8)] * 3, 8, 8, 8))
    with pytest.raises(RuntimeError, match=r"cuBLASLt: cublasLtMatmulDescSetAttribute failed: \w+"):
        made._set("MatmulDesc", made.operation, 9999, ctypes.c_int(1))


def test_alignment():
    assert [lt.alignment(*sizes) for sizes in ((0,), (256, 512), (4096, 12), (1,), (8, 16))] == [256, 256, 4, 1, 8]


@pytest.mark.parametrize("hides", [None, "bfloat16"])
def test_a_rectifier_that_hides_nan_is_not_used(monkeypatch, hides):
    import cuda_host
    import numpy as np

    multiply = cuda_host.multiply

    def seen(product):
        multiply(product)
        if product.kind == hides and product.relu:
            out = cuda_host._array(product.out, product.rows, product.columns, np.float32)
            out[np.isnan(out)] = 0

    monkeypatch.setattr(cuda_host, "multiply", seen)
    driver = cuda_host.HostDriver(products="cublas")
    assert lt.keeps_nan(driver) == (hides is None)

    def refused(product):
        raise RuntimeError("cuBLASLt has no algorithm")

    monkeypatch.setattr(cuda_host, "multiply", refused)
    assert not lt.keeps_nan(driver)


def test_a_refused_epilogue_is_asked_for_once(monkeypatch, caplog):
    asked = []

    def refuse(self, product):
        asked.append(product)
        raise RuntimeError("cuBLASLt has no algorithm")

    monkeypatch.setattr(lt.Products, "choose", refuse)
    products = lt.Products.__new__(lt.Products)
    products.chosen, products.refused = {}, set()
    product = lt.Product("float32", *[lt.Matrix(256, 8)] * 3, 8, 8, 8, bias=512, relu=True, instead="a launch")
    with caplog.at_level("INFO", "fastae"):
        assert [products.knows(product) for _ in range(3)] == [False] * 3
    assert len(asked) == 1 and "no algorithm" in caplog.text
    assert products.knows(product.plain) and not product.plain.epilogue
