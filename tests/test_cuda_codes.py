"""Device kernels of codes beside the compiled backend: the same bits, whatever the order of threads."""

import numpy as np
import pytest
from conftest import backend_named
from cuda_host import HostDriver
from test_codes import SCALARS, SIZES, case, needed, records, run
from test_encode import DATA, assert_same_codes, codes
from test_encode import run as encode

from fastae.backends import get_backend
from fastae.backends.cuda import CudaBackend
from fastae.plan import schema


@pytest.fixture(scope="module")
def native():
    backend = get_backend("auto")
    if backend.name != "native":
        pytest.skip("no compiled kernels to compare with")
    return backend


def device(seed, **more):
    backend_named("cuda_host")  # skips where there is no compiler
    return CudaBackend(HostDriver(seed, **more))


def assert_same(got, want, what):
    for name in want:
        if name == "entry":  # only the listed ones mean something
            total = want["start"][0, -1]
            got[name], want[name] = got[name].reshape(-1)[:total], want[name].reshape(-1)[:total]
        np.testing.assert_array_equal(got[name], want[name], err_msg=f"{what}: {name}")


def known(backend, chain):
    return all(kind in backend.kernels for kind, _, _ in chain)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_records(native, sizes, dtype, wide):
    every = case(sizes)
    backend = device(sum(sizes) + wide)
    for _, chain in records(sizes):
        if not known(backend, chain):
            continue
        arrays = needed(every, sizes, chain)
        want, values = run(native, dtype, sizes[0], chain, arrays, scalars=SCALARS, wide=wide)
        got, own = run(backend, dtype, sizes[0], chain, arrays, scalars=SCALARS, wide=wide)
        np.testing.assert_array_equal(own, values, err_msg=str(chain[-1]))
        assert_same(got, want, chain[-1])


# ---- encode ---------------------------------------------------------------------------------------------------------


def packed_for(n, p):
    return {"packed": np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)}


def encoded_by(backend, arrays, m, n, p, kind, k, path, packed, **more):
    given = arrays | codes(m, n if kind == 2 else k) | (packed_for(n, p) if packed else {})
    prepare = ("pack_encoder", "w", "packed") if packed else None
    return encode(backend, "encode", given, kind=kind, k=k, path=path, prepare=prepare, overflow=0, **more)


@pytest.mark.parametrize("make", DATA, ids=lambda f: f.__name__)
@pytest.mark.parametrize("products", ["exact", "cublas"])
@pytest.mark.parametrize("shape", [(9, 1201, 97, 7), (5, 40, 3, 4), (3, 700, 70, 64)], ids=str)
def test_encode_has_the_same_bits_on_every_path(native, make, shape, products):
    m, n, p, k = shape
    arrays = make(m, n, p)
    arrays["x"][m // 2, 0] = np.nan
    z = np.nan_to_num(arrays["x"].astype(float) @ arrays["w"].T.astype(float) + arrays["b"], posinf=1e30, neginf=-1e30)
    limits = {"threshold": np.quantile(z, 1 - k / n, axis=0, keepdims=True).astype(np.float32)}
    for kind in range(3):
        given = arrays | (limits if kind == 2 else {})
        want, expected = encoded_by(native, given, m, n, p, kind, k, 1, False, margin=0.1)
        assert want["count"][m // 2, 0] == -1
        for path, packed in ((1, False), (2, False), (2, True), (0, True)):
            backend = device(m + n + path, products=products)
            got, value = encoded_by(backend, given, m, n, p, kind, k, path, packed, margin=0.1)
            assert_same_codes(got, want)
            np.testing.assert_array_equal(value, expected)
            certified = "certify_begin" in backend.driver.launched
            assert certified == (path == 2 or (path == 0 and products == "cublas" and p >= 64 and n >= 1024))
