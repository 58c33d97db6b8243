"""Whole models on the device's kernels, compiled for the host: the compiled backend's bits, whatever way rows take."""

import numpy as np
import pytest
from cuda_host import HostDriver, OutOfMemory, compiler
from scipy.sparse import csr_array

import fastae
from fastae import arrays, ops
from fastae.backends.cuda import CudaBackend, binder, blocks, latents
from fastae.backends.cuda.memory import DeviceSpaces
from fastae.exceptions import NonFiniteLossError
from fastae.models import base, feed, sparse_fitting

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler to build the device kernels for the host")
X = np.random.default_rng(0).standard_normal((150, 12)).astype(np.float32)


def assert_same(a, b):
    for (w, c), (v, d) in zip(a.weights_, b.weights_, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(c, d)


def dense(backend, **options):
    options = {"hidden_layer_sizes": (9,), "batch_size": 40, "max_iter": 2, "tol": 0, "random_state": 0} | options
    return fastae.Autoencoder(options.pop("n_components", 4), backend=backend, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu", "dropout": 0.3},
        {"noise": fastae.MaskingNoise(0.2), "penalties": (fastae.L1(1e-3),), "solver": "sgd"},
        {"normalization": "batch", "solver": fastae.Adam(clip_norm=0.1)},
        {"loss": "huber", "tied_weights": True, "constraints": (fastae.MaxNorm(1.0),)},
        {
            "precision": "float64",
            "early_stopping": True,
            "activation": "sigmoid",
            "code_activation": "sigmoid",
            "penalties": (fastae.KLSparsity(0.05, 0.1),),
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_fits_have_the_compiled_backends_bits(cuda, native, options):
    device, host = dense(cuda, **options).fit(X), dense(native, **options).fit(X)
    assert_same(device, host)
    np.testing.assert_array_equal(device.transform(X), host.transform(X))
    np.testing.assert_allclose(device.loss_curve_, host.loss_curve_, rtol=1e-12)
    assert device.device_ == "cuda:0"


def test_partial_fit_goes_on_from_the_same_state(cuda, native):
    device, host = dense(cuda), dense(native)
    for _ in range(3):
        device.partial_fit(X)
        host.partial_fit(X)
    assert_same(device, host)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_do_not_fit_go_through_in_blocks(cuda, native, monkeypatch, sparse, weighted):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    cuda.driver.free = 100  # nothing stays on the device
    rows = csr_array(np.where(X > 0.5, X, 0)) if sparse else X
    weight = np.linspace(0.5, 2, len(X)) if weighted else None
    device, host = (dense(b).fit(rows, sample_weight=weight) for b in (cuda, native))
    assert_same(device, host)
    assert cuda.driver.launched["enter_block"] > 2
    np.testing.assert_array_equal(device.transform(rows), host.transform(rows))


def test_rows_held_out_go_to_the_device_once_with_the_others(cuda, native, monkeypatch):
    sent, upload = [], HostDriver.upload

    def seen(self, array, **options):
        sent.append(array.nbytes)
        return upload(self, array, **options)

    options = {"early_stopping": True, "validation_fraction": 0.2, "max_iter": 4}
    want = dense(native, **options).fit(X)
    monkeypatch.setattr(HostDriver, "upload", seen)
    model = dense(cuda, **options).fit(X)
    # and a second time for the look at the fitted model
    assert [n_bytes for n_bytes in sent if n_bytes >= 0.2 * X.nbytes] == 2 * [X.nbytes]
    assert_same(model, want)
    assert model.validation_scores_ == want.validation_scores_


def test_out_of_memory_halves_the_block_of_an_encoding_and_ends_training(cuda, native, monkeypatch):
    monkeypatch.setattr(base, "_DEVICE_ROWS", 192)
    rows = np.tile(X, (20, 1))
    model = dense(native).fit(X)
    want = model.transform(rows)
    model.set_params(backend=cuda)
    model._forget_compiled()
    sent, refused = HostDriver.empty, []

    def scarce(self, n_bytes):
        if n_bytes > 20_000:
            refused.append(n_bytes)
            raise OutOfMemory("no more")
        return sent(self, n_bytes)

    assert model._compile("encode", np.dtype(np.float32)).plan.batch * 4 * 4 < 20_000
    monkeypatch.setattr(HostDriver, "empty", scarce)
    np.testing.assert_array_equal(model.transform(rows), want)
    assert refused
    with pytest.raises(MemoryError, match=r"takes \d+ bytes"):
        dense(cuda, hidden_layer_sizes=(500,)).fit(X)


def test_a_block_that_finds_no_memory_for_its_last_rows_has_run_no_step(cuda, native, monkeypatch):
    """Operands in bfloat16 have places of their own where rows are few, and take more memory than of many rows."""
    monkeypatch.setattr(base, "_DEVICE_ROWS", 192)
    monkeypatch.setattr(binder, "FEW_ROWS", 100)
    cuda.driver.products = "cublas"
    rows = np.tile(X, (5, 1))[: 3 * 192 + 100]
    model = dense(native, hidden_layer_sizes=(40,) * 14, precision="bfloat16", max_iter=1).fit(X)
    model.set_params(backend=cuda)
    model._forget_compiled()
    asked, refused, most, empty = [], [], None, HostDriver.empty

    def scarce(self, n_bytes):
        asked.append(n_bytes)
        if n_bytes == most and not refused:
            refused.append(n_bytes)
            raise OutOfMemory("no more")
        return empty(self, n_bytes)

    monkeypatch.setattr(HostDriver, "empty", scarce)
    model.transform(X[:5])  # compiled
    asked.clear()
    want = model.transform(rows)
    most = max(asked)  # of the last rows
    model._forget_compiled()
    model.transform(X[:5])
    np.testing.assert_array_equal(model.transform(rows), want)
    assert refused


def test_a_step_of_inference_has_enough_rows_to_keep_a_gpu_busy(cuda, native):
    model = dense(native).fit(X)
    assert model._compile("encode", np.dtype(np.float32)).plan.batch == 192
    model.set_params(backend=cuda)
    assert model._compile("encode", np.dtype(np.float32)).plan.batch == 8192
    sparse = fastae.SparseAutoencoder(40, k=3, max_iter=1, backend=cuda, random_state=0).fit(X)
    assert sparse._compile("encode", np.dtype(np.float32), 3).plan.batch == 8192
    assert base.inference_rows(cuda, 192, 40_000) == (1 << 25) // 40_000  # memory for activations is bounded


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(cuda, native):
    options = {"solver": "sgd", "learning_rate": 1e30, "max_iter": 3, "batch_size": 10}
    models = []
    for backend in (cuda, native):
        model = dense(backend, **options)
        with pytest.raises(NonFiniteLossError, match="batch"):
            model.fit(X)
        models.append(model)
    assert_same(*models)


def test_memory_on_the_device_is_copied_only_where_it_is_looked_at():
    driver = HostDriver()
    spaces = DeviceSpaces(driver, (64, 128, 0, 0))
    spaces[1][:] = 7
    address = spaces.address(1)
    assert (driver_bytes(driver, spaces, 1) == 7).all()
    saved = spaces.snapshot(1)
    spaces[1][:] = 9
    assert spaces.address(1) == address and (driver_bytes(driver, spaces, 1) == 9).all()
    spaces.restore(1, saved)
    assert (spaces[1] == 7).all()
    spaces.zero(1)
    assert not spaces[1].any()


@pytest.mark.parametrize("make", ["dense", "sparse"])
def test_the_optimisers_state_goes_to_the_device_once(cuda, native, monkeypatch, make):
    written, write = [], HostDriver.write

    def seen(self, buffer, array, offset=0):
        written.append(array)
        write(self, buffer, array, offset)

    monkeypatch.setattr(HostDriver, "write", seen)
    models = [globals()[make](backend).partial_fit(X) for backend in (cuda, native)]
    for _ in range(2):
        written.clear()
        for model in models:
            model.partial_fit(X)
        assert not any(np.shares_memory(array, models[0]._state.memory) for array in written)
    np.testing.assert_array_equal(models[0].transform(X).data, models[1].transform(X).data)
    np.testing.assert_array_equal(models[0]._state.memory, models[1]._state.memory)


def driver_bytes(driver, spaces, i):
    out = np.empty(spaces.sizes[i], np.uint8)
    driver.download(spaces.device[i], out)
    return out


class OnDevice(np.ndarray):
    """An array that says that it lies on a device; where the host is the device, it does."""

    @property
    def __cuda_array_interface__(self):
        return self.__array_interface__

    def get(self):
        return np.array(self)


class Cupy:
    """As much of CuPy as is asked for, over `OnDevice`."""

    ndarray = OnDevice
    entered: list[int] = []

    class cuda:
        class runtime:
            getDevice = staticmethod(lambda: 0)

        class Device:
            def __init__(self, number):
                self.number = number

            def __enter__(self):
                Cupy.entered.append(self.number)

            def __exit__(self, *_):
                pass

    def asarray(self, value):
        return value if isinstance(value, OnDevice) else np.asarray(value).view(OnDevice)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            out = getattr(np, name)(*args, **kwargs)
            kind = type(args[0]) if args and isinstance(args[0], OnDevice) else OnDevice
            return out.view(kind) if isinstance(out, np.ndarray) else out

        return call


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setattr(arrays, "cupy", Cupy)
    return Cupy()


def test_arrays_on_the_device_give_arrays_on_the_device(cuda, native, cupy):
    w = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    y = ops.dense(X.view(OnDevice), w, activation="relu", backend=cuda)
    assert isinstance(y, OnDevice)
    np.testing.assert_array_equal(y, ops.dense(X, w, activation="relu", backend=native))
    with pytest.raises(ValueError, match="lies on a GPU"):
        ops.dense(X.view(OnDevice), w, backend="native")
    model = dense(cuda).fit(X.view(OnDevice))
    assert_same(model, dense(native).fit(X))
    code = model.transform(X.view(OnDevice))
    assert isinstance(code, OnDevice)
    np.testing.assert_array_equal(code, model.transform(X))
    assert type(model.transform(X)) is np.ndarray
    assert isinstance(model.score(X.view(OnDevice)), float)


def sparse(backend, **options):
    options = {"k": 3, "batch_size": 32, "max_iter": 2, "random_state": 0} | options
    return fastae.SparseAutoencoder(24, backend=backend, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": False},
        {"resample": fastae.Resample(every=2), "dead_after": 20},
        {"transcoder": True, "pre_bias": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_sparse_fit_reads_rows_where_they_lie(cuda, native, cupy, monkeypatch, options):
    """The bits of an array on the host, of which but a sample and a batch to resample from are looked at there."""
    monkeypatch.setattr(sparse_fitting, "SAMPLE_ROWS", 20)
    monkeypatch.setattr(feed, "BUFFER_ELEMENTS", 600)  # some buffers a pass
    monkeypatch.setattr(feed, "CHUNK_ELEMENTS", 100)
    targets = X[:, :5] if "transcoder" in options else None
    want = sparse(native, **options).fit(X, targets)
    looked_at, get = [], OnDevice.get

    def seen(self):
        looked_at.append(len(self))
        return get(self)

    monkeypatch.setattr(OnDevice, "get", seen)
    there = None if targets is None else np.ascontiguousarray(targets).view(OnDevice)
    model = sparse(cuda, **options).fit(X.view(OnDevice), there)
    for name, array in want.arrays_.items():
        np.testing.assert_array_equal(model.arrays_[name], array)
    assert model.loss_curve_ == want.loss_curve_
    assert max(looked_at) <= 32
    if targets is not None:  # one here, one there
        mixed = sparse(cuda, **options).fit(X.view(OnDevice), targets)
        np.testing.assert_array_equal(mixed.dictionary_, want.dictionary_)


def assert_same_arrays(model, want):
    for name, array in want.arrays_.items():
        np.testing.assert_array_equal(model.arrays_[name], array, err_msg=name)


def test_rows_that_are_not_whole_parts_are_updated_afterwards(cuda, native):
    options = {"transcoder": True, "skip": True, "pre_bias": False}
    want, model = (sparse(backend, **options).fit(X, X[:, :5]) for backend in (native, cuda))
    assert_same_arrays(model, want)
    launched = cuda.driver.launched
    assert launched["latent_update"] == launched["latent_grad"] == 10  # the encoder's; the decoder's, of 20 bytes a row


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"unit_norm": False, "solver": "sgd"}, marks=pytest.mark.slow),
        {"sparsity": fastae.TopK(aux=fastae.AuxK(4)), "dead_after": 20, "ema": 0.9},
        {"sparsity": "relu", "unit_norm": False},
        pytest.param({"sparsity": "gated"}, marks=pytest.mark.slow),
        pytest.param({"sparsity": "jumprelu", "solver": "adagrad"}, marks=pytest.mark.slow),
        {"sparsity": fastae.Matryoshka(groups=(6, 18)), "precision": "float64"},
        pytest.param({"transcoder": True, "skip": True, "pre_bias": False}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_weights_of_latents_are_updated_as_their_gradients_are_made(cuda, native, options, monkeypatch):
    targets = X[:, :4] if "transcoder" in options else None
    want = sparse(native, **options).fit(X, targets)
    model = sparse(cuda, **options).fit(X, targets)
    assert_same_arrays(model, want)
    launched = cuda.driver.launched
    assert launched["latent_update"] == 20  # two of each of ten steps
    assert "latent_grad" not in launched and "project_unit" not in launched
    monkeypatch.setattr(latents, "MOST_OF_A_ROW", 0)  # rows that a block's registers don't hold
    apart = CudaBackend(HostDriver())
    again = sparse(apart, **options).fit(X, targets)
    np.testing.assert_array_equal(again.dictionary_, model.dictionary_)
    assert "latent_grad" in apart.driver.launched and "latent_update" not in apart.driver.launched


def test_rows_of_latents_wider_than_a_warp(cuda, native):
    rows = np.random.default_rng(2).standard_normal((48, 300)).astype(np.float32)
    for sparsity in ("topk", "relu"):
        models = [sparse(b, sparsity=sparsity, batch_size=16, max_iter=1).fit(rows) for b in (cuda, native)]
        np.testing.assert_array_equal(*(model.dictionary_ for model in models))
        np.testing.assert_array_equal(*(model.arrays_["encoder"] for model in models))


def test_a_step_that_is_not_finite_updates_no_latent(cuda, native):
    models = []
    for backend in (cuda, native):
        model = sparse(backend, solver="sgd", learning_rate=1e30, max_iter=3)
        with pytest.raises(NonFiniteLossError):
            model.fit(X)
        models.append(model.dictionary_)
    np.testing.assert_array_equal(*models)


def test_a_sparse_fit_goes_on_from_a_checkpoint_where_rows_lie_elsewhere(cuda, native, cupy, tmp_path):
    path = tmp_path / "c.safetensors"
    want = sparse(native).fit(X)

    def stop(info):
        return info.epoch == 1

    sparse(native, callbacks=stop).fit(X, checkpoint=path)
    model = fastae.load(path)
    model._stopped = False
    model.save(path)
    resumed = sparse(cuda).fit(X.view(OnDevice), checkpoint=path, resume=True)
    np.testing.assert_array_equal(resumed.dictionary_, want.dictionary_)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_on_a_device_is_looked_at_by_its_bits(cuda, native, cupy, monkeypatch, name):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name, name))
    rows = X.astype(dtype)
    monkeypatch.setattr(Cupy, "isfinite", None, raising=False)
    model = dense(native).fit(X)
    want = model.transform(rows)
    model.set_params(backend=cuda)
    np.testing.assert_array_equal(model.transform(rows.view(OnDevice)), want)
    for wrong in (np.nan, np.inf, -np.inf):
        rows[7, 3] = wrong
        with pytest.raises(ValueError, match="NaN or infinity"):
            model.transform(rows.view(OnDevice))


class Tensor:
    """Of another library, whose array interface cannot say what DLPack can."""

    __cuda_array_interface__ = {"typestr": "<f2", "shape": (1, 1), "data": (0, False), "version": 3}

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise NotImplementedError


def test_dlpack_goes_before_the_array_interface(cupy, monkeypatch):
    tensor, given = Tensor(), X.view(OnDevice)
    monkeypatch.setattr(Cupy, "from_dlpack", lambda self, value: given if value is tensor else None, raising=False)
    assert arrays.on_device(tensor) and arrays.asarray(tensor) is given
    assert arrays.asarray(given) is given


class Elsewhere(OnDevice):
    """On another GPU."""

    device = type("Device", (), {"id": 1})()


def test_arrays_are_made_where_those_given_lie(cupy):
    """CuPy allocates and launches on the current GPU, whichever its arguments are on."""
    Cupy.entered.clear()
    assert arrays.namespace(X) is np
    arrays.namespace(X.view(OnDevice)).empty((3, 4), np.float32)
    assert Cupy.entered == []
    arrays.namespace(None, X, X.view(Elsewhere)).empty((3, 4), np.float32)
    assert Cupy.entered == [1]
    np.testing.assert_array_equal(arrays.HostRows(X.view(Elsewhere))[np.array([3, 1])], X[[3, 1]])
    assert Cupy.entered == [1, 1, 1]  # the indices, and what they take


def test_arrays_on_another_gpu_are_an_error(cuda, cupy):
    there, w = X.view(Elsewhere), np.ones((5, 12), np.float32).view(OnDevice)
    with pytest.raises(ValueError, match=r"X lies on cuda:1 .* runs on cuda:0; copy X there, or set device='cuda:1'"):
        dense(cuda).fit(there)
    with pytest.raises(ValueError, match=r"several GPUs \(x on cuda:1, w on cuda:0"):
        ops.dense(there, w, backend=cuda)


def test_what_is_only_read_does_not_come_back(cuda, monkeypatch):
    x, w = X.copy(), np.ones((5, 12), np.float32)
    came, download = [], HostDriver.download

    def seen(self, buffer, array, offset=0):
        came.append(array)
        download(self, buffer, array, offset)

    monkeypatch.setattr(HostDriver, "download", seen)
    y = ops.dense(x, w, backend=cuda)
    assert any(np.shares_memory(array, y) for array in came)
    assert not any(np.shares_memory(array, given) for array in came for given in (x, w))
    assert ops.dropout(x, 0.5, (0, 0, 0), out=x, backend=cuda) is x  # one array may be both
    assert any(np.shares_memory(array, x) for array in came)


def test_rows_on_a_device_and_a_model_on_the_cpu_is_an_error(native, cupy):
    with pytest.raises(TypeError, match="device='cuda'"):
        dense(native).fit(X.view(OnDevice))


@pytest.mark.parametrize(
    "rows, message",
    [(X[:, :5], "5 features"), (X[0], "shape"), (np.where(X > 2, np.nan, X), "NaN or infinity")],
)
def test_bad_rows_on_a_device_are_named(cuda, cupy, rows, message):
    model = dense(cuda).fit(X)
    with pytest.raises(ValueError, match=message):
        model.transform(np.ascontiguousarray(rows).view(OnDevice))


def test_a_model_moves_between_devices(cuda, native, tmp_path):
    model = dense(cuda).fit(X)
    want = model.transform(X)
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(fastae.load(tmp_path / "m.safetensors").transform(X), want)
    moved = model.to("cpu")
    assert moved is model and model.device_ == "cpu" and model.backend == "auto"
    np.testing.assert_array_equal(model.transform(X), want)


def test_a_graph_serves_many_runs(cuda):
    captured = []
    capture = HostDriver.capture
    cuda.driver.capture = lambda dtype, launches: (captured.append(1), capture(cuda.driver, dtype, launches))[1]
    dense(cuda, max_iter=4).fit(X)
    assert len(captured) == 2  # full batches and the last one
