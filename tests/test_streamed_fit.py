"""Dense models trained on rows that come in blocks: bits, memory, what is refused."""

import functools
import subprocess
import sys

import numpy as np
import pytest
from conftest import SLOW
from scipy.sparse import csr_array

import fastae
from fastae import Autoencoder, AutoencoderClassifier, StackedAutoencoder
from fastae.models import feed
from fastae.stream import open_rows

RNG = np.random.default_rng(7)
X = (RNG.normal(size=(600, 4)) @ RNG.normal(size=(4, 12)) + 0.1 * RNG.normal(size=(600, 12))).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(feed, "_BLOCK_ELEMENTS", 12 * 200)  # of 600 rows


def model(**parameters):
    given = {"hidden_layer_sizes": (8,), "batch_size": 50, "max_iter": 3, "tol": 0.0, "random_state": 0}
    return Autoencoder(3, **(given | parameters))


def same(a, b):
    for (w, c), (v, d) in zip(a.weights_, b.weights_, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(c, d)
    assert a.loss_curve_ == b.loss_curve_ and (a.t_, a.n_iter_) == (b.t_, b.n_iter_)


class Batch:
    """As Arrow's record batches: a shape, no number of dimensions."""

    def __init__(self, rows):
        self.rows, self.shape = rows, rows.shape

    def __array__(self, dtype=None, copy=None):
        return self.rows


def test_a_list_of_whatever_numpy_makes_arrays_of():
    parts = [X[:250], X[250:]]
    same(model().fit([Batch(part) for part in parts]), model().fit(parts))


class Dataset:
    """As those of h5py and zarr."""

    shape, dtype, chunks = X.shape, X.dtype, (100, 12)

    def __getitem__(self, item):
        return X[item]


def sources(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return {
        "path": tmp_path / "x.npy",
        "shards": [X[:170], X[170:]],
        "map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "dataset": Dataset(),
        "blocks": lambda: (X[i : i + 77] for i in range(0, 600, 77)),
    }


# ---- bits ---


@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_in_order_every_source_gives_the_bits_of_the_array(tmp_path, backend, monkeypatch):
    """With dropout and noise: a row's masks belong to its place in the whole, not in its block."""
    monkeypatch.setattr(feed, "MAPPED_BYTES", 0)
    fitted = functools.partial(model, shuffle=False, backend=backend, dropout=0.3, noise=fastae.GaussianNoise(0.1))
    whole = fitted().fit(X)
    for source in sources(tmp_path).values():
        same(fitted().fit(source), whole)


def test_shuffled_the_order_depends_on_seed_and_epoch_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "MAPPED_BYTES", 0)
    given = sources(tmp_path)
    blocks = model().fit(given.pop("blocks"))  # of more rows than are mixed at a time its order is another one
    path = model().fit(given.pop("path"))
    for source in given.values():
        same(model().fit(source), path)
    same(model().fit(lambda: iter([X])), blocks)
    assert blocks.loss_curve_ != model(random_state=1).fit(lambda: iter([X])).loss_curve_
    assert blocks.loss_curve_ != model(shuffle=False).fit(lambda: iter([X])).loss_curve_
    two = model(n_jobs=2).fit(tmp_path / "x.npy")
    same(two, path)


def test_a_small_memory_map_is_an_array(tmp_path):
    np.save(tmp_path / "x.npy", X)
    same(model().fit(np.load(tmp_path / "x.npy", mmap_mode="r")), model().fit(X))


def test_sparse_blocks_and_stored_types(tmp_path):
    sparse = np.where(X > 0.5, X, 0)
    same(model(shuffle=False).fit([csr_array(sparse[:300]), csr_array(sparse[300:])]),
         model(shuffle=False).fit(csr_array(sparse)))  # fmt: skip
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    same(model(shuffle=False).fit(tmp_path / "x.npy"), model(shuffle=False).fit(X.astype(np.float16)))
    assert model(max_iter=1).fit(iter([X.astype(float)])).weights_[0][0].dtype == np.float64


def test_fit_goes_on_where_it_was(tmp_path):
    np.save(tmp_path / "x.npy", X)
    warm = model(warm_start=True, max_iter=1)
    for _ in range(3):
        warm.fit(tmp_path / "x.npy")
    whole = model().fit(tmp_path / "x.npy")
    np.testing.assert_array_equal(warm.weights_[0][0], whole.weights_[0][0])


def test_partial_fit(tmp_path):
    np.save(tmp_path / "x.npy", X)
    whole, blocks = model(shuffle=False), model(shuffle=False)
    for _ in range(2):
        whole.partial_fit(X)
        blocks.partial_fit(iter([X[:400], X[400:]]))
    same(blocks, whole)
    blocks.partial_fit(X)  # an array after blocks, and the other way round
    whole.partial_fit(tmp_path / "x.npy")
    same(blocks, whole)


# ---- what looks at data first ---


def test_pca_start_and_projector(tmp_path):
    np.save(tmp_path / "x.npy", X)
    for parameters in ({"initializer": "pca"}, {"penalties": (fastae.SVDProjector(0.1, n_components=2),)}):
        fitted = functools.partial(model, shuffle=False, **parameters)
        assert np.isfinite(fitted().fit(tmp_path / "x.npy").loss_)
    first = model(initializer="pca", hidden_layer_sizes=(), batch_size=200, max_iter=1, shuffle=False)
    same(first.fit(iter([X[:200]])), model(initializer="pca", hidden_layer_sizes=(), batch_size=200, max_iter=1,
                                           shuffle=False).fit(X[:200]))  # fmt: skip


def test_missing_entries():
    holes = np.where(RNG.random(X.shape) < 0.2, np.nan, X).astype(np.float32)
    same(model(shuffle=False, missing=np.nan).fit([holes[:300], holes[300:]]),
         model(shuffle=False, missing=np.nan).fit(holes))  # fmt: skip


def test_warnings_from_the_first_block():
    with pytest.warns(fastae.OutputRangeWarning):
        model(output_activation="sigmoid").fit([10 + X])


def test_schedules():
    falling = fastae.Cosine(1e-2)
    same(model(shuffle=False, learning_rate=falling).fit([X[:400], X[400:]]),
         model(shuffle=False, learning_rate=falling).fit(X))  # fmt: skip
    with pytest.raises(ValueError, match="depends on the length of training"):
        model(learning_rate=falling).fit(lambda: iter([X]))
    counted = open_rows(lambda: iter([X[:400], X[400:]]), n_rows=len(X))
    same(model(shuffle=False, learning_rate=falling).fit(counted), model(shuffle=False, learning_rate=falling).fit(X))
    for rate in (fastae.StepDecay(1e-2, every=1), fastae.ReduceOnPlateau(1e-2)):
        model(learning_rate=rate).fit(lambda: iter([X]))


# ---- what is refused ---


@pytest.mark.parametrize("parameters, given, match", [
    ({"early_stopping": True}, {}, "early_stopping=True needs all rows at once.*callback"),
    ({}, {"sample_weight": np.ones(600)}, "sample_weight needs all rows at once"),
    ({}, {"mask": np.ones(X.shape, bool)}, "mask needs all rows at once.*missing=np.nan"),
    ({"solver": "lbfgs"}, {}, "solver='lbfgs' needs all rows at once.*solver='adam'"),
    ({"penalties": (fastae.Laplacian(5, 0.1),)}, {}, "the Laplacian penalty needs all rows at once"),
])  # fmt: skip
def test_what_needs_all_rows(parameters, given, match):
    m = model(**parameters)
    with pytest.raises(ValueError, match=match):
        m.fit([X[:300], X[300:]], **given)
    assert not hasattr(m, "n_features_in_")


def test_tasks():
    with pytest.raises(TypeError, match=r"rows and labels as arrays.*partial_fit"):
        AutoencoderClassifier(hidden_layer_sizes=(4,)).fit([X], np.arange(600) % 2)
    stacked = StackedAutoencoder(3, hidden_layer_sizes=(8,), max_iter=1, random_state=0)
    with pytest.raises(ValueError, match="pretraining=None"):
        stacked.fit([X])
    assert stacked.set_params(pretraining=None).fit([X]).t_ == 3


def test_iterators_that_end():
    with pytest.raises(ValueError, match="max_iter=3 passes over an iterator that gives its rows once; set max_iter=1"):
        model().fit(iter([X]))
    used = iter([X])
    with pytest.raises(ValueError, match=r"a second pass over the source gave no rows; .* fresh iterator"):
        model().fit(lambda: used)


def test_blocks_that_do_not_fit():
    for bad, match in (
        ([X[:300], X[300:, :5]], "features"),
        ([X[:300], X[300:].astype(float)], "dtype"),
        (lambda: iter([X[0]]), "2 dimensions"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            model().fit(bad)
    m = model().fit(X)
    with pytest.raises(ValueError, match="the source has 5 features; wanted 12"):
        m.partial_fit([X[:, :5]])
    with pytest.raises(FileNotFoundError):
        m.fit("nowhere.npy")


def test_nan_in_a_later_block_names_the_row_and_keeps_good_weights():
    bad = X.copy()
    bad[450, 3] = np.nan
    m = model(shuffle=False)
    with pytest.raises(ValueError, match="row 450 of the source has nan in column 3"):
        m.fit([bad])
    assert np.isfinite(m.transform(X)).all()
    with pytest.raises(ValueError, match="row 450 of the source has inf"):
        model(missing=np.nan).fit([np.where(np.isnan(bad), np.inf, bad)])


def test_values_that_a_loss_cannot_take():
    unit = np.clip(np.abs(X) / 10, 0, 1)
    unit[500, 0] = 1.5
    with pytest.raises(ValueError, match="wants \\[0, 1\\]"):
        model(loss="binary_cross_entropy", shuffle=False).fit([unit])


def test_a_loss_that_is_not_finite_puts_the_epoch_s_start_back():
    m = model(solver="sgd", learning_rate=1e30, shuffle=False)
    with pytest.raises(fastae.NonFiniteLossError, match="epoch 1, batch 2 of 12"):
        m.fit([X])
    same_start = model(max_iter=1, learning_rate=1e-30, solver="sgd", shuffle=False).fit(X)
    np.testing.assert_allclose(m.weights_[0][0], same_start.weights_[0][0])
    with pytest.raises(fastae.NonFiniteLossError, match="epoch 1, batch 2; the weights"):
        m.fit(lambda: iter([X]))


def test_verbose(capsys):
    model(verbose=1, max_iter=2).fit(lambda: iter([X[:300], X[300:]]))
    assert "epoch" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [X, lambda: iter([X[:300], X[300:]])], ids=["array", "iterable"])
def test_the_bar_names_the_epoch_that_its_loss_is_of(rows, capsys):
    for fitted in (model(verbose=1, max_iter=2), fastae.SparseAutoencoder(8, k=2, max_iter=2, verbose=1)):
        loss = fitted.fit(rows).loss_curve_[-1]
        last = capsys.readouterr().err.rpartition("\r")[2]
        assert "epoch 2: " in last and f"loss={loss:.4g}"[:8] in last and "epoch 3" not in last, last
        assert "1.20k" in last


def test_the_bar_of_a_training_that_goes_on(tmp_path, capsys):
    def once(verbose, callbacks=()):
        m = fastae.SparseAutoencoder(8, k=2, max_iter=3, random_state=0, verbose=verbose, callbacks=callbacks)
        return m.fit(X, checkpoint=tmp_path / "c.safetensors", checkpoint_every=7, resume=True)

    def stop(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(0, stop)
    once(1)
    assert "0.00/1.80k" not in capsys.readouterr().err


# ---- memory ---

MEMORY = """
import resource, sys
import numpy as np
import fastae
from fastae.models import feed
path, mapped = sys.argv[1], sys.argv[2] == "map"
feed.MAPPED_BYTES = 0
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
model = fastae.Autoencoder(4, max_iter=1, batch_size=1024, random_state=0, n_jobs=1)
model.fit(np.ones((4096, 256), np.float32))
before = peak()
model.fit(np.load(path, mmap_mode="r") if mapped else path)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [SLOW("map"), "path"])
def test_resident_memory_is_bounded(tmp_path, how):
    """A file of 768 MB, all holes, through a process that may take a quarter of it."""
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (768 * 1024, 256))
    run = subprocess.run([sys.executable, "-c", MEMORY, str(path), how], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200
