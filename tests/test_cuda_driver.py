"""The driver over CuPy, with CuPy's place taken by `fake_cupy`: order between streams, graphs, memory, threads."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cuda_host
import fake_cupy
import numpy as np
import pytest
from conftest import SLOW, launched_on_gpu

import fastae
from fastae.backends.cuda import CudaBackend, blocks, driver, lt, rtc, source
from fastae.backends.cuda.launches import Uses
from fastae.backends.cuda.slot import Slot
from fastae.models import base

pytestmark = pytest.mark.skipif(cuda_host.compiler() is None, reason="no C++ compiler to build the device kernels")
X = np.random.default_rng(0).standard_normal((150, 12)).astype(np.float32)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.CUPY)
    monkeypatch.setattr(driver, "why_not", lambda: None)
    monkeypatch.setattr(source, "fatbin", lambda real: None)
    monkeypatch.setattr(rtc, "kernels", lambda real, architecture: real.encode())
    monkeypatch.setattr(lt, "Products", fake_cupy.Products)
    fake_cupy.Graph.launched = 0
    fake_cupy.Products.using.clear()
    fake_cupy.STREAMS.clear()
    fake_cupy.STREAMS[0] = fake_cupy.NULL
    return fake_cupy.RUNTIME


@pytest.fixture
def in_blocks(native, monkeypatch):
    """A model on the device that takes rows in many blocks; such rows, and what the compiled backend makes of them."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(base, "_DEVICE_ROWS", 192)
    rows = np.tile(X, (20, 1))
    model = dense(native).fit(X)
    want = model.transform(rows)
    model.set_params(backend=backend())
    model._forget_compiled()
    return model, rows, want


def backend(products="exact"):
    return CudaBackend(driver.CupyDriver(0, products))


def dense(backend, **options):
    options = {"hidden_layer_sizes": (9,), "batch_size": 40, "max_iter": 3, "tol": 0, "random_state": 0} | options
    return fastae.Autoencoder(4, backend=backend, **options)


@contextmanager
def impatient_threads(n):
    """Threads that change as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(n) as pool:
            yield pool
    finally:
        sys.setswitchinterval(interval)


def assert_same(a, b):
    for (w, c), (v, d) in zip(a.weights_, b.weights_, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(c, d)


def test_fits_have_the_compiled_backends_bits_and_run_as_graphs(fake, native):
    device, host = dense(backend(), dropout=0.2).fit(X), dense(native, dropout=0.2).fit(X)
    assert_same(device, host)
    np.testing.assert_array_equal(device.transform(X), host.transform(X))
    assert {"gather", "update", "advance"} <= launched_on_gpu([device._backend()])
    assert fake_cupy.Graph.launched >= 6  # of nine steps of full batches and three others, less the first of each


@pytest.mark.parametrize("products", [pytest.param("exact", marks=pytest.mark.slow), "cublas"])
def test_sparse_fits_run_as_graphs(fake, native, products):
    """Rows on the device; updates of latents behind the check of the step's values; codes by certified products."""
    rows = np.random.default_rng(3).standard_normal((30, 64)).astype(np.float32)
    options = {"k": 4, "batch_size": 5, "max_iter": 1, "random_state": 0, "sparsity": "batch_topk"}
    host = fastae.SparseAutoencoder(1024, backend=native, **options).fit(rows)
    device = fastae.SparseAutoencoder(1024, backend=backend(products), **options).fit(fake_cupy.asarray(rows))
    np.testing.assert_array_equal(device.dictionary_, host.dictionary_)
    assert fake_cupy.Graph.launched >= 5
    names = launched_on_gpu([device._backend()])
    assert "latent_update" in names and ("certify_batch_filter" in names) == (products == "cublas")


def test_a_kernel_follows_a_product_whose_epilogue_the_library_lacks(fake, monkeypatch):
    with_it = dense(backend("cublas"), activation="relu").fit(X)
    apart = backend("cublas")
    assert apart.driver.epilogues == {"bias", "relu"}
    monkeypatch.setattr(fake_cupy.Products, "refuses", True)
    assert_same(dense(apart, activation="relu").fit(X), with_it)
    assert "dense_finish" in launched_on_gpu([apart])


def test_products_by_cublaslt_are_captured_too(fake):
    with_graphs = dense(backend("cublas")).fit(X)
    single = backend("cublas")
    single.driver.capture = lambda dtype, launches: lambda: [single.driver.launch(dtype, one) for one in launches]
    assert_same(with_graphs, dense(single).fit(X))


DEEP = {"hidden_layer_sizes": (9, 7, 5), "code_activation": "tanh"}


@pytest.mark.parametrize(
    "options",
    [
        SLOW({}),
        SLOW({"tied_weights": True}),
        {"dropout": 0.2, "normalization": "batch", "penalties": [fastae.L2(1e-3)]},
        SLOW({"batch_size": 600}),  # sums of several segments, in the memory that ops share
        {"batch_size": 1100, "penalties": [fastae.L1(1e-4), fastae.ActivityL1(1e-3)]},
    ],
    ids=str,
)
def test_gradients_of_weights_run_beside_others(fake, native, monkeypatch, options):
    """A graph's ops come in any order that leaves each behind those that it has to wait for."""
    beside, rows = count_beside(monkeypatch), np.tile(X, (8, 1))
    for seed in range(3):
        options["random_state"] = seed
        assert_same(dense(backend(), **DEEP, **options).fit(rows), dense(native, **DEEP, **options).fit(rows))
    assert beside[0] > 10


def test_products_beside_others_have_a_workspace_of_their_own(fake, monkeypatch):
    beside = count_beside(monkeypatch)
    with_graphs = dense(backend("cublas"), **DEEP, precision="bfloat16").fit(X)
    single = backend("cublas")
    single.driver.capture = lambda dtype, launches: lambda: [single.driver.launch(dtype, one) for one in launches]
    assert_same(with_graphs, dense(single, **DEEP, precision="bfloat16").fit(X))
    assert beside[0] > 10 and len(fake_cupy.Products.using) == 2 + 1  # the single launches need one


def count_beside(monkeypatch):
    found, make = [0], driver.Beside.__init__
    monkeypatch.setattr(driver.Beside, "__init__", lambda *given: (found.__setitem__(0, found[0] + 1), make(*given))[1])
    return found


def test_what_runs_beside_has_to_be_waited_for(fake, native, monkeypatch):
    """So that the tests above mean something."""
    host = dense(native, **DEEP).fit(X)
    monkeypatch.setattr(Uses, "meets", lambda self, other: False)
    device = dense(backend(), **DEEP).fit(X)
    assert any((w != v).any() for (w, _), (v, _) in zip(device.weights_, host.weights_, strict=True))


def test_a_capture_ends_with_all_that_ran_beside(fake):
    one = driver.CupyDriver()
    one.stream.begin_capture()
    event = fake_cupy.Event()
    event.record(one.stream)
    one.sides[0].wait_event(event)
    one.sides[0].push(lambda: None)
    with pytest.raises(fake_cupy.CUDARuntimeError, match="Unjoined"):
        one.stream.end_capture()


@pytest.mark.parametrize("order", ["wanted first", "wanted last", None])
def test_rows_in_blocks_are_ordered_by_events(fake, native, monkeypatch, order):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(fake, "free", 100)
    monkeypatch.setattr(fake_cupy, "ORDER", order)
    options = {"batch_size": 20, "max_iter": 2}
    assert_same(dense(backend(), **options).fit(X), dense(native, **options).fit(X))


def test_rows_do_not_wait_for_the_kernels_before_them(fake, native, monkeypatch):
    """The next block's copy to the device runs beside the kernels of the one before, also where results go back."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(base, "_DEVICE_ROWS", 192)
    monkeypatch.setattr(fake_cupy, "ORDER", "wanted first")
    rows = np.tile(X, (20, 1))
    model = dense(native).fit(X)
    model.set_params(backend=backend())
    model._forget_compiled()
    model.transform(X[:5])  # compiled
    behind, send = [], Slot.send

    def seen(self, parts):
        addresses = send(self, parts)
        self.sent.synchronize()  # needs its copy alone
        behind.append(len(self.driver.stream.queue))
        return addresses

    monkeypatch.setattr(Slot, "send", seen)
    model.transform(rows)
    assert len(behind) > 2 and behind[1] > 5, "kernels of the first block were to wait while the second one's rows went"


def test_results_of_blocks_before_one_that_found_no_memory_are_kept(fake, in_blocks, monkeypatch):
    """Their bytes wait in pinned memory, which the next block's must not take."""
    model, rows, want = in_blocks
    model.transform(X[:5])  # compiled
    whole, turns = blocks.Rows.block, []

    def scarce(self, start, stop):
        turns.append(stop - start)
        if len(turns) == 3:
            raise fake_cupy.OutOfMemoryError("no more")
        return whole(self, start, stop)

    monkeypatch.setattr(blocks.Rows, "block", scarce)
    np.testing.assert_array_equal(model.transform(rows), want)
    assert turns[3] < turns[2] == turns[1]


def test_arrays_that_the_caller_is_still_making_are_waited_for(fake, native, monkeypatch):
    monkeypatch.setattr(fake_cupy, "ORDER", "wanted first")
    device, host = dense(backend(), max_iter=1), dense(native, max_iter=1)
    assert_same(device.fit(fake_cupy.asarray(X)), host.fit(X))
    code = device.transform(fake_cupy.asarray(X))
    np.testing.assert_array_equal(code.get(), host.transform(X))


def test_threads_take_turns(fake, native, monkeypatch):
    """What one launches while another captures would become part of the other's graph."""
    begin = fake_cupy.Stream.begin_capture

    def slow(self):
        begin(self)
        time.sleep(5e-3)

    monkeypatch.setattr(fake_cupy.Stream, "begin_capture", slow)
    device = backend()
    want = [dense(native, random_state=i).fit(X) for i in range(3)]
    with impatient_threads(3) as pool:
        models = list(pool.map(lambda i: dense(device, random_state=i).fit(X), range(3)))
        codes = list(pool.map(lambda _: models[0].transform(X), range(3)))
    for model, other in zip(models, want, strict=True):
        assert_same(model, other)
    for code in codes:
        np.testing.assert_array_equal(code, want[0].transform(X))


def test_nothing_is_on_its_way_when_a_run_ends_in_an_error(fake, in_blocks, monkeypatch):
    model, rows, want = in_blocks
    block, turns = blocks.Rows.block, []

    def interrupted(self, start, stop):
        turns.append(start)
        if len(turns) == 3:
            raise KeyboardInterrupt
        return block(self, start, stop)

    monkeypatch.setattr(blocks.Rows, "block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.transform(rows)
    np.testing.assert_array_equal(model.transform(rows), want)


def test_threads_share_a_compiled_plan(fake, monkeypatch):
    """The step that runs is one place for a plan's runs, so these take turns."""
    device = backend()
    write = driver.CupyDriver.write

    def slow(self, *arguments):
        write(self, *arguments)
        time.sleep(1e-3)

    monkeypatch.setattr(driver.CupyDriver, "write", slow)
    keys = [(seed, 0, 0) for seed in range(6)]
    with impatient_threads(3) as pool:
        found = list(pool.map(lambda key: fastae.ops.dropout(X, 0.5, key, backend=device), keys))
    for key, y in zip(keys, found, strict=True):
        np.testing.assert_array_equal(y, fastae.ops.dropout(X, 0.5, key))


def test_a_graph_that_cannot_be_made_is_told_and_done_without(fake, native, monkeypatch, caplog):
    def refused(self, mode=None):
        raise fake_cupy.CUDARuntimeError("cudaErrorNotSupported")

    monkeypatch.setattr(fake_cupy.Stream, "begin_capture", refused)
    assert_same(dense(backend()).fit(X), dense(native).fit(X))
    assert "no CUDA graph could be made (cudaErrorNotSupported)" in caplog.text


def test_a_capture_refuses_what_cuda_refuses(fake):
    """So that the tests above mean something."""
    one = driver.CupyDriver()
    for wrong in (one.synchronize, lambda: one.empty(8), lambda: one.upload(X)):
        one.stream.begin_capture()
        with pytest.raises(fake_cupy.CUDARuntimeError, match="during a capture"):
            wrong()
        with pytest.raises(fake_cupy.CUDARuntimeError, match="Invalidated"):
            one.stream.end_capture()
