"""The same seed gives the same bits: threads, processes, copies, batches."""

import os
import pickle
from hashlib import md5

import numpy as np
import pytest
from sklearn.base import clone

import fastae

X = np.random.default_rng(0).uniform(size=(700, 37)).astype(np.float32)


def model(backend="auto", **parameters):
    settings = {"hidden_layer_sizes": (65, 17), "dropout": 0.2, "noise": "masking", "max_iter": 2, "batch_size": 300,
                "penalties": [fastae.L1(1e-4), fastae.ActivityL1(1e-3)], "solver": fastae.Adam(clip_norm=1.0),
                "random_state": 5}  # fmt: skip
    return fastae.Autoencoder(6, backend=backend, **settings | parameters)


def bits(fitted):
    return b"".join(w.tobytes() + b.tobytes() for w, b in fitted.weights_)


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
def test_threads(native_backend, threads):
    one = model(native_backend, n_jobs=1).fit(X)
    many = model(native_backend, n_jobs=threads).fit(X)
    assert bits(one) == bits(many)
    np.testing.assert_array_equal(one.transform(X), many.transform(X))
    np.testing.assert_array_equal(one.score_samples(X), many.score_samples(X))


def test_wide_layers_with_threads(native_backend):
    wide = np.random.default_rng(1).normal(size=(520, 300)).astype(np.float32)
    fitted = [model(native_backend, hidden_layer_sizes=(260,), batch_size=520, n_jobs=n).fit(wide) for n in (1, 2, 5)]
    assert bits(fitted[0]) == bits(fitted[1]) == bits(fitted[2])


def test_a_row_alone_and_in_a_batch(native_backend):
    fitted = model(native_backend).fit(X)
    together = fitted.transform(X)
    for start, stop in ((0, 1), (5, 6), (3, 40), (690, 700)):
        np.testing.assert_array_equal(fitted.transform(X[start:stop]), together[start:stop])


@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_again_clone_pickle_and_file(backend, tmp_path):
    if backend == "native":
        pytest.importorskip("fastae._core")
    first = model(backend).fit(X)
    codes = first.transform(X)
    assert bits(first) == bits(model(backend).fit(X)) == bits(clone(first).fit(X))
    first.save(tmp_path / "m.safetensors")
    for copy in (
        pickle.loads(pickle.dumps(first)),
        fastae.load(tmp_path / "m.safetensors").set_params(backend=backend),
    ):
        np.testing.assert_array_equal(copy.transform(X), codes)
        # training goes on from the same optimiser state
        continued = pickle.loads(pickle.dumps(first)).partial_fit(X)
        assert bits(copy.partial_fit(X)) == bits(continued)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_gives_the_same_bits_in_the_child():
    expected = bits(model(n_jobs=2).fit(X))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, md5(bits(model(n_jobs=2).fit(X))).digest())
        finally:
            os._exit(0)
    os.close(writer)
    digest = os.read(reader, 64)
    os.waitpid(child, 0)
    assert digest == md5(expected).digest()


def test_shuffling_depends_on_seed_and_epoch_only():
    a = model(noise=None, dropout=0.0, max_iter=4, tol=0).fit(X)
    b = model(noise=None, dropout=0.0, max_iter=1, tol=0).fit(X)
    for _ in range(3):
        b.partial_fit(X)
    assert bits(a) == bits(b)


def test_different_seeds_differ():
    assert bits(model(random_state=1).fit(X)) != bits(model(random_state=2).fit(X))


@pytest.mark.parametrize("seed", [0, None])
def test_the_global_generators_are_left_alone(seed):
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    fitted = model(random_state=seed).fit(X)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2] == after[2]
    assert bits(model(random_state=fitted.seed_).fit(X)) == bits(fitted)
    if seed is None:
        assert model(random_state=None).fit(X).seed_ != fitted.seed_


@pytest.mark.parametrize("seed", [2**63 + 1, 2**64 - 2])
def test_seeds_of_64_bits_differ_in_the_last(seed):
    start = {"max_iter": 1, "learning_rate": 1e-30}  # which leaves the initial weights as they are
    one, other = (model(random_state=n, **start).fit(X).weights_[0][0] for n in (seed, seed + 1))
    assert not np.allclose(one, other)


def test_concurrent_threads_encode_alike():
    from concurrent.futures import ThreadPoolExecutor

    fitted = model(n_jobs=2).fit(X)
    expected = fitted.transform(X)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: fitted.transform(X), range(64)):
            np.testing.assert_array_equal(result, expected)
