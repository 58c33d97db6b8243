"""Device kernels of codes beside the compiled backend: the same bits, whatever the order of threads."""

import numpy as np
import pytest
from conftest import backend_named
from cuda_host import HostDriver
from test_codes import SCALARS, SIZES, case, needed, records, run

from fastae.backends import get_backend
from fastae.backends.cuda import CudaBackend


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
