"""The sparse autoencoder: every architecture fits, encodes, travels; streams, checkpoints, bad input."""

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import backend_named, named
from scipy.sparse import csr_array

import fastae
from fastae import SparseAutoencoder
from fastae.stream import open_rows

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(400, 12))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def rows(n=600, seed=1, directions=40):
    """Two or three of 40 directions in each row, and an offset."""
    rng = np.random.default_rng(seed)
    code = rng.exponential(size=(n, directions)) * (rng.random((n, directions)) < 2.4 / directions)
    return (code @ DIRECTIONS[:directions] + 0.5).astype(np.float32)


X = rows()
KINDS = {
    "topk": "topk",
    "abs_topk": "abs_topk",
    "batch_topk": "batch_topk",
    "multi": fastae.TopK(multi=fastae.MultiTopK(2)),
    "annealed": fastae.TopK(k_start=12, k_anneal=0.5),
    "matryoshka": "matryoshka",
    "matryoshka over topk": fastae.Matryoshka((16, 16, 32), fastae.TopK()),
    "relu": fastae.ReLUCode(0.05),
    "jumprelu": fastae.JumpReLU(0.02, bandwidth=0.2, threshold=0.05),
    "gated": fastae.Gated(0.05),
}
RANKED = ("topk", "abs_topk", "multi", "annealed", "matryoshka over topk")


def model(kind="topk", **changes):
    parameters = {"k": 4, "sparsity": KINDS.get(kind, kind), "random_state": 0, "max_iter": 8, "learning_rate": 0.01,
                  "batch_size": 64, **changes}  # fmt: skip
    return SparseAutoencoder(64, **parameters)


@pytest.fixture(scope="module")
def fitted():
    return {kind: model(kind).fit(X) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_learns_and_codes_are_consistent(fitted, kind):
    m = fitted[kind]
    assert m.fvu_curve_[-1] < 0.5 * m.fvu_curve_[0] or m.fvu_curve_[-1] < 0.1
    code = m.transform(X)
    assert isinstance(code, csr_array) and code.shape == (600, 64) and code.data.all()
    np.testing.assert_allclose(m.inverse_transform(code), m.reconstruct(X), atol=2e-5)
    np.testing.assert_allclose(m.score(X), -((X - m.reconstruct(X)) ** 2).mean(), rtol=1e-4)
    encoded = m.encode(X)
    if kind in RANKED:
        values, indices = encoded
        assert values.shape == indices.shape == (600, 4) and (np.diff(indices, axis=1) > 0).all()
        dense = np.zeros((600, 64), np.float32)
        np.put_along_axis(dense, indices.astype(np.int64), values, axis=1)
        np.testing.assert_array_equal(dense, code.toarray())
        np.testing.assert_array_equal(m.decode(values, indices), m.reconstruct(X))
    else:
        np.testing.assert_array_equal(encoded.toarray(), code.toarray())
    for name in ("loss_curve_", "l0_curve_", "dead_curve_"):
        assert len(getattr(m, name)) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_has_the_code_that_it_has_in_a_batch(fitted, kind):
    code = fitted[kind].transform(X).toarray()
    for i in (0, 17, 599):
        np.testing.assert_array_equal(fitted[kind].transform(X[i : i + 1]).toarray()[0], code[i])


@pytest.mark.parametrize("kind", KINDS)
def test_files_pickles_and_clones(fitted, kind, tmp_path):
    m = fitted[kind]
    m.save(tmp_path / "model.safetensors")
    for other in (fastae.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(m))):
        np.testing.assert_array_equal(other.transform(X).toarray(), m.transform(X).toarray())
        np.testing.assert_array_equal(other.rows_since_fired_, m.rows_since_fired_)
        assert other.fvu_curve_ == m.fvu_curve_ and str(other.sparsity) == str(m.sparsity)
        assert other.partial_fit(X).t_ == m.t_ + 10
    np.testing.assert_array_equal(fastae.load(tmp_path / "model.safetensors").partial_fit(X).arrays_["decoder"],
                                  pickle.loads(pickle.dumps(m)).partial_fit(X).arrays_["decoder"])  # fmt: skip


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jumprelu"])
def test_threads_change_no_bit(kind):
    first = model(kind, n_jobs=1, max_iter=2).fit(X)
    for threads in (2, 3, 4):
        other = model(kind, n_jobs=threads, max_iter=2).fit(X)
        for name, array in first.arrays_.items():
            np.testing.assert_array_equal(array, other.arrays_[name])


def test_decoder_rows_have_unit_norm(fitted):
    for m in fitted.values():
        np.testing.assert_allclose(np.linalg.norm(m.dictionary_, axis=1), 1.0, atol=1e-6)


def test_the_first_loss_is_near_the_variance():
    for kind in ("topk", "relu", "gated", "jumprelu", "matryoshka"):
        m = model(kind, max_iter=1, learning_rate=1e-9).fit(X)
        assert m.fvu_curve_[0] < 1.5, kind


# ---- k and prefix at inference, other models from this one ---


def test_k_at_inference(fitted):
    m = fitted["topk"]
    few, many = m.encode(X, k=2), m.encode(X, k=9)
    assert few[0].shape == (600, 2) and many[0].shape == (600, 9)
    assert set(few[1][5]) <= set(many[1][5])
    assert fitted["batch_topk"].encode(X, k=3)[0].shape == (600, 3)
    with pytest.raises(ValueError, match="has no k; leave it out"):
        fitted["relu"].encode(X, k=3)
    with pytest.raises(ValueError, match=r"k=65 must be <= n_components=64"):
        m.encode(X, k=65)


def test_prefix_at_inference(fitted):
    m = fitted["matryoshka over topk"]
    values, indices = m.encode(X, prefix=16)
    assert indices.max() < 16
    z = (X - m.arrays_["decoder_bias"]) @ m.arrays_["encoder"][:16].T + m.arrays_["encoder_bias"][:16]
    np.testing.assert_allclose(np.sort(values, axis=1), np.sort(np.maximum(np.sort(z, axis=1)[:, -4:], 0)), atol=1e-5)
    np.testing.assert_array_equal(m.reconstruct(X, prefix=16), m.prefix(16).reconstruct(X))


def test_calibrated_threshold(fitted):
    held_out = rows(400, seed=2)
    for kind in ("topk", "batch_topk", "relu"):
        m = fitted[kind].calibrate(held_out, 3.0)
        assert m.transform(held_out).nnz / 400 == pytest.approx(3.0, abs=0.01)
        assert m.sparsity.name == "jumprelu"
    # rounding in another way finds the same latents: no pre-activation is the threshold itself
    all_values, _ = fitted["topk"].encode(held_out, k=64)
    assert (all_values != fitted["topk"].calibrate(held_out, 3.0).threshold_[0]).all()
    with pytest.raises(ValueError, match="has no threshold"):
        fitted["gated"].calibrate(X, 3.0)


def test_scale_of_the_input_folds_into_the_weights():
    m = model(normalization="scale").fit(X * 30)
    folded = m.fold()
    assert folded.normalization is None and m.input_scale_ < 0.2
    np.testing.assert_allclose(folded.reconstruct(X * 30), m.reconstruct(X * 30), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="nothing to fold"):
        folded.fold()


def test_from_arrays_takes_tensors(fitted):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    a = fitted["topk"].arrays_
    w, b, d = (torch.nn.Parameter(torch.tensor(a[name])) for name in ("encoder", "encoder_bias", "decoder"))
    made = SparseAutoencoder.from_arrays(w, b, d, torch.tensor(a["decoder_bias"]).bfloat16(), k=4)
    assert made.dictionary_.dtype == np.float32
    np.testing.assert_array_equal(made.dictionary_, a["decoder"])
    np.testing.assert_array_equal(made.arrays_["encoder_bias"], a["encoder_bias"])


def test_from_arrays(fitted):
    m = fitted["topk"]
    a = m.arrays_
    made = SparseAutoencoder.from_arrays(a["encoder"], a["encoder_bias"], a["decoder"], a["decoder_bias"], k=4)
    np.testing.assert_array_equal(made.transform(X).toarray(), m.transform(X).toarray())
    assert made.partial_fit(X).t_ > 0
    np.testing.assert_array_equal(a["encoder"], m.arrays_["encoder"])
    with pytest.raises(ValueError, match=r"encoder_bias has shape \(63,\); wanted \(64,\)"):
        SparseAutoencoder.from_arrays(a["encoder"], a["encoder_bias"][1:], a["decoder"], a["decoder_bias"])
    with pytest.raises(ValueError, match="one row per latent in both"):
        SparseAutoencoder.from_arrays(a["encoder"], None, a["decoder"][1:], None)
    with pytest.raises(ValueError, match="threshold was given"):
        SparseAutoencoder.from_arrays(a["encoder"], None, a["decoder"], None, k=3, threshold=1.0)
    with pytest.raises(ValueError, match="batch_topk one for all"):
        SparseAutoencoder.from_arrays(a["encoder"], None, a["decoder"], None, sparsity="batch_topk", k=3,
                                      threshold=np.arange(64))  # fmt: skip
    with pytest.raises(ValueError, match="gate_bias was given"):
        SparseAutoencoder.from_arrays(a["encoder"], None, a["decoder"], None, k=3, gate_bias=np.zeros(64))
    with pytest.raises(ValueError, match="encoder has NaN"):
        SparseAutoencoder.from_arrays(a["encoder"] * np.nan, None, a["decoder"], None, k=3)


# ---- transcoders, crosscoders, tricks ---


@pytest.mark.parametrize("sparsity", ["topk", "relu", "jumprelu"])
def test_the_loss_of_a_transcoder_is_that_of_its_targets(sparsity):
    """A row goes through decoding, error and gradient at once, while targets of others are still to be read."""
    Y = np.random.default_rng(3).standard_normal((8, 32)).astype(np.float32)
    options = {"transcoder": True, "pre_bias": False, "max_iter": 2, "random_state": 0}
    models = [SparseAutoencoder(8, k=2, sparsity=sparsity, backend=backend, **options).fit(X[:8, :1], Y)
              for backend in ("auto", "reference")]  # fmt: skip
    np.testing.assert_allclose(models[0].loss_curve_, models[1].loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(models[0].dictionary_, models[1].dictionary_, atol=1e-4)


def test_transcoder():
    Y = (X @ RNG.normal(size=(12, 5))).astype(np.float32)
    m = model(transcoder=True, pre_bias=False, max_iter=20).fit(X, Y)
    assert m.reconstruct(X).shape == (600, 5) and m.fvu_curve_[-1] < 0.3
    skipping = model("relu", transcoder=True, pre_bias=False, skip=True).fit(X, Y)
    assert skipping.arrays_["skip"].shape == (5, 12)
    np.testing.assert_allclose(m.score(X, Y), -((Y - m.reconstruct(X)) ** 2).mean(), rtol=1e-4)
    with pytest.raises(ValueError, match=r"give fit\(X, Y\)"):
        model(transcoder=True, pre_bias=False).fit(X)
    for blocks in ((X, lambda: iter([Y])), (lambda: iter([X]), Y)):
        with pytest.raises(ValueError, match="X and y are shuffled alike only where both"):
            model(transcoder=True, pre_bias=False).fit(*blocks)
    with pytest.raises(ValueError, match="y has 599 rows, X 600"):
        model(transcoder=True, pre_bias=False).fit(X, Y[1:])
    with pytest.raises(ValueError, match="pre_bias=False"):
        model(transcoder=True).fit(X, Y)
    with pytest.raises(ValueError, match="skip=True goes with transcoder=True"):
        model(skip=True).fit(X)


def test_crosscoder():
    both = np.concatenate([X, X @ RNG.normal(size=(12, 12))], axis=1).astype(np.float32)
    m = model(fastae.ReLUCode(0.05), spaces=(12, 12)).fit(both)
    assert m.fvu_curve_[-1] < 0.2
    with pytest.raises(ValueError, match="equal widths that sum to the 24 columns"):
        model("relu", spaces=(12, 13)).fit(both)


def half_dead(**parameters):
    """The dead part of a model half of whose latents are kept out by their biases, on rows that need all of them."""
    many = rows(600, 3, 400)
    a = model(max_iter=2).fit(many).arrays_
    bias = np.where(np.arange(64) % 2, -1.0, 0.0)
    m = SparseAutoencoder.from_arrays(a["encoder"], bias, a["decoder"], a["decoder_bias"], dead_after=300,
                                      batch_size=64, random_state=0, learning_rate=0.003, **parameters)  # fmt: skip
    for _ in range(10):
        m.partial_fit(many)
    return m.dead_curve_[-1]


def test_dead_latents_are_revived():
    dead = half_dead(sparsity=fastae.TopK(4, aux=None))
    assert dead > 0.2  # else the test shows nothing
    aux = half_dead(sparsity=fastae.TopK(4, aux=fastae.AuxK(16, 1.0)))
    resample = half_dead(sparsity=fastae.TopK(4, aux=None), resample=fastae.Resample(every=5, until=1.0))
    print(dead, aux, resample)
    assert aux < 0.7 * dead and resample < 0.7 * dead


def test_averaged_weights():
    m = model(ema=0.9).fit(X)
    assert np.abs(m.arrays_["encoder"] - model().fit(X).arrays_["encoder"]).max() > 0
    assert m._state.raw is not None


@pytest.mark.parametrize("library, sparsity", [
    ("openai", "topk"), ("sparsify", "topk"), *[(library, kind) for library in ("dictionary_learning", "saelens")
     for kind in ("topk", "batch_topk", "matryoshka", "jumprelu", "gated", "relu")],
])  # fmt: skip
def test_presets_train(library, sparsity):
    m = SparseAutoencoder.preset(library, 64, sparsity=sparsity, k=4, random_state=0, max_iter=2).fit(X)
    assert np.isfinite(m.loss_curve_).all()
    with pytest.raises(ValueError, match="choose from"):
        SparseAutoencoder.preset(library, sparsity="top")
    with pytest.raises(ValueError, match="choose from dictionary_learning, openai, saelens, sparsify"):
        SparseAutoencoder.preset("sae", 64)


def test_groups_are_a_tuple_whatever_they_came_as():
    wanted = fastae.Matryoshka((16, 48))
    assert fastae.Matryoshka([16, 48]) == fastae.Matryoshka(np.array([16, 48])) == wanted
    assert hash(fastae.Matryoshka([16, 48])) == hash(wanted)


def test_presets_average_thresholds_as_the_libraries_do():
    for library, decay in (("dictionary_learning", 0.999), ("saelens", 0.99)):
        for kind in ("batch_topk", "matryoshka"):
            sparsity = SparseAutoencoder.preset(library, 64, sparsity=kind).sparsity
            assert getattr(sparsity, "over", sparsity).threshold_decay == decay


@pytest.mark.parametrize("library", ["openai", "sparsify", "dictionary_learning", "saelens"])
def test_presets_of_transcoders_leave_the_input_alone(library):
    Y = X[:, :5]
    m = SparseAutoencoder.preset(library, 64, transcoder=True, k=4, random_state=0, max_iter=1, normalization=None)
    assert not m.fit(X, Y).network_.pre_bias
    assert SparseAutoencoder.preset(library, 64, transcoder=True, pre_bias=True).pre_bias


# ---- published checkpoints ---


def test_parameters_go_before_the_checkpoints(fitted, tmp_path):
    fitted["topk"].save_pretrained(tmp_path)
    same, other = (SparseAutoencoder.from_pretrained(tmp_path, **known) for known in ({}, {"k": 2}))
    assert same.k == 4 and same.encode(X)[0].shape == (600, 4)
    np.testing.assert_array_equal(other.encode(X)[1], fitted["topk"].encode(X, k=2)[1])


def test_a_transcoder_with_a_pre_bias_is_written_without(tmp_path):
    m = model(transcoder=True).fit(X, X[:, ::-1])
    m.save_pretrained(tmp_path, "sparsify")
    same = SparseAutoencoder.from_pretrained(tmp_path)
    assert m.pre_bias and not same.pre_bias
    np.testing.assert_allclose(same.reconstruct(X), m.reconstruct(X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="own file can hold it"):
        model("gated", transcoder=True).fit(X, X).save_pretrained(tmp_path / "other")


# ---- streams ---


def test_every_source_gives_the_same_bits(tmp_path):
    np.save(tmp_path / "x.npy", X)
    reference = model(max_iter=2).fit(X).arrays_["encoder"]
    sources = (tmp_path / "x.npy", np.load(tmp_path / "x.npy", mmap_mode="r"), [X[:100], X[100:]], csr_array(X))
    for source in sources:
        np.testing.assert_array_equal(model(max_iter=2).fit(source).arrays_["encoder"], reference)


def test_iterators_of_blocks():
    cut = model(max_iter=2).fit(lambda: (X[i : i + 50] for i in range(0, 600, 50)))
    whole = model(max_iter=2).fit(lambda: iter([X]))
    np.testing.assert_array_equal(cut.arrays_["encoder"], whole.arrays_["encoder"])
    assert cut.t_ == 20
    model(max_iter=1).fit(iter([X[:300], X[300:]]))
    with pytest.raises(ValueError, match="an iterator that gives its rows once"):
        model(max_iter=2).fit(iter([X]))
    with pytest.raises(ValueError, match="depends on the length of training"):
        model("annealed").fit(lambda: iter([X]))


def test_what_goes_by_the_whole_training_on_an_iterable_whose_rows_are_counted(tmp_path):
    options = {"shuffle": False, "learning_rate": fastae.Cosine(0.01), "resample": fastae.Resample(every=9)}
    whole = model("annealed", **options).fit(X)
    counted = open_rows(lambda: iter(np.split(X, 6)), n_rows=len(X))
    path = tmp_path / "c.safetensors"
    same = model("annealed", **options).fit(counted, checkpoint=path)
    assert same.loss_curve_ == whole.loss_curve_
    assert model("annealed", **options).fit(counted, checkpoint=path, resume=True).t_ == whole.t_
    for name, array in whole.arrays_.items():
        np.testing.assert_array_equal(same.arrays_[name], array)
    for n_rows, told in ((599, "more rows than n_rows=599"), (601, "ended after 600 rows of n_rows=601")):
        with pytest.raises(ValueError, match=told):
            model().fit(open_rows(lambda: iter(np.split(X, 6)), n_rows=n_rows))


def test_half_precision_rows_are_read_as_they_are():
    half = X.astype(np.float16)
    a = model(max_iter=2).fit(half).arrays_["encoder"]
    np.testing.assert_array_equal(a, model(max_iter=2).fit(half.astype(np.float32)).arrays_["encoder"])


def test_partial_fit():
    m = model()
    for part in np.split(X, 3):
        m.partial_fit(part)
    assert m.t_ == 3 * 4 and m.n_iter_ == 3
    assert m.fit(X).t_ == 80


@pytest.mark.parametrize("anew", [False, True])
def test_a_pass_that_broke_off_is_no_part_of_the_next(anew, monkeypatch):
    from fastae.models import feed

    monkeypatch.setattr(feed, "_BLOCK_ELEMENTS", 1)  # blocks of a batch

    def broken():
        yield 3 * X[:300]
        raise RuntimeError("gone")

    def passes(*sources):
        m = model(batch_size=50, shuffle=False, learning_rate=1e-30)
        for source in sources:
            try:
                m.partial_fit(source)
            except RuntimeError:
                assert m.t_ > 12 and m.n_iter_ == 1
            m = pickle.loads(pickle.dumps(m)) if anew else m
        return m.loss_curve_, m.l0_curve_, m.fvu_curve_

    assert passes(X, broken, X[:100]) == passes(X, X[:100])


def test_steps_count_that_were_done_before_ctrl_c(monkeypatch):
    from fastae.models import sparse_fitting

    monkeypatch.setattr(sparse_fitting, "SAMPLE_ROWS", 100)  # so that both begin alike
    m = model(batch_size=16, max_iter=1, shuffle=False)
    backend = type(m._backend())
    run = backend.run

    def interrupted(self, handle, job):
        if job.values is None:
            return run(self, handle, job)
        assert run(self, handle, dataclasses.replace(job, n_steps=20)) == 20 < job.n_steps
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            m.fit(X)
    assert m.t_ == 20
    same = model(batch_size=16, max_iter=1, shuffle=False).fit(X[: 16 * 20])
    np.testing.assert_array_equal(m.arrays_["encoder"], same.arrays_["encoder"])


def test_a_target_that_was_missed_is_said():
    far = fastae.JumpReLU(penalty_kind="quadratic", target_l0=3)  # log θ hardly moves in so few steps
    said = r"latents a row .* where target_l0=3 was wanted, after 100 steps"
    with pytest.warns(fastae.ModelWarning, match=said) as seen:
        model(far, max_iter=10).fit(X)
    assert seen[0].filename == __file__
    near = fastae.JumpReLU(penalty_kind="quadratic", target_l0=8, bandwidth=1.0, threshold=0.3, logarithm=False)
    near = model(near, max_iter=30).fit(X)  # warnings are errors here
    assert 4 < near.l0_curve_[-1] < 16
    with pytest.warns(fastae.ModelWarning, match="penalty_kind='step' does not look at it; take 'quadratic'"):
        model(fastae.JumpReLU(target_l0=3), max_iter=10).fit(X)


@pytest.mark.parametrize("rate", [1e2, 1e60])
def test_resampling_leaves_a_loss_that_explodes_to_its_error(rate):
    m = model(k=2, solver="sgd", learning_rate=rate, unit_norm=False, dead_after=3,
              resample=fastae.Resample(2, until=1.0))  # fmt: skip
    with pytest.raises(fastae.NonFiniteLossError):
        m.fit(X.astype(float))
    assert np.isfinite(m.arrays_["encoder"]).all()


@pytest.mark.parametrize("name", ["pre_bias", "unit_norm", "transcoder", "skip", "shuffle"])
def test_what_is_no_flag_is_not_taken_for_one(name):
    with pytest.raises(TypeError, match=f"{name}='False' must be True or False"):
        model(**{name: "False"}).fit(X, X)
    assert model(max_iter=1, shuffle=0, unit_norm=np.True_).fit(X).t_ == 10


# ---- checkpoints ---


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_a_threshold_after_few_steps_is_that_of_the_last(kind):
    """Its average has forgotten where it began; the same bits on every backend that has those of the steps."""
    thresholds = set()
    for name in ("avx2", "cuda_host"):
        options = {"batch_size": 120, "max_iter": 1, "learning_rate": 3e-3, "random_state": 0}
        model = SparseAutoencoder(64, k=4, sparsity=kind, backend=backend_named(name), **options).fit(X)
        assert len(X) / 120 == 5 and 3.4 < model.transform(X).nnz / len(X) < 4.6
        thresholds.add(model.batch_threshold_)
    assert len(thresholds) == 1
    reference = model.set_params(backend="reference").fit(X)
    assert reference.batch_threshold_ == pytest.approx(thresholds.pop(), rel=1e-4)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jumprelu", "annealed"])
def test_resumed_training_has_the_same_bits(kind, tmp_path):
    whole = model(kind, max_iter=4, ema=0.99).fit(X)
    path = tmp_path / "checkpoint.safetensors"

    class Stop(Exception):
        pass

    def stop(info):
        if info.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        model(kind, max_iter=4, ema=0.99, callbacks=stop).fit(X, checkpoint=path, checkpoint_every=7)
    assert fastae.load(path).t_ == 14
    resumed = model(kind, max_iter=4, ema=0.99).fit(X, checkpoint=path, checkpoint_every=7, resume=True)
    for name, array in whole.arrays_.items():
        np.testing.assert_array_equal(resumed.arrays_[name], array)
    assert resumed.loss_curve_ == whole.loss_curve_ and resumed.t_ == whole.t_ == 40
    again = model(kind, max_iter=4, ema=0.99).fit(X, checkpoint=path, resume=True)
    np.testing.assert_array_equal(again.arrays_["encoder"], whole.arrays_["encoder"])


@pytest.mark.parametrize("rate", [1e-3, fastae.ExponentialDecay(1e-3, 0.5), fastae.Cosine(1e-3, restart=1.5)])
def test_a_training_that_was_done_goes_on_for_more_epochs(tmp_path, rate):
    path, options = tmp_path / "c.safetensors", {"learning_rate": rate, "ema": 0.99}
    model(max_iter=2, **options).fit(X, checkpoint=path)
    longer = model(max_iter=5, **options).fit(X, checkpoint=path, resume=True)
    whole = model(max_iter=5, **options).fit(X)
    for name, array in whole.arrays_.items():
        np.testing.assert_array_equal(longer.arrays_[name], array)
    assert longer.loss_curve_ == whole.loss_curve_ and fastae.load(path).n_iter_ == 5
    with pytest.raises(ValueError, match="was made with max_iter=5, now it is 4; set it back"):
        model(max_iter=4, **options).fit(X, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"learning_rate": fastae.Cosine(1e-3)}, "learning_rate=Cosine"),
        ({"learning_rate": fastae.LinearWarmup(1e-3)}, "learning_rate=LinearWarmup"),
        ({"learning_rate": fastae.OneCycle(1e-3)}, "learning_rate=OneCycle"),
        ({"sparsity": fastae.TopK(4, k_start=20)}, "k_start"),
        ({"sparsity": fastae.ReLUCode(warmup=0.5)}, "warmup"),
        ({"resample": fastae.Resample(every=5)}, "resample"),
    ],
)
def test_what_goes_by_the_whole_training_cannot_become_longer(tmp_path, options, name):
    path = tmp_path / "c.safetensors"
    model(max_iter=2, **options).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match=rf"max_iter=2, now it is 3; {name}.* goes by the whole training"):
        model(max_iter=3, **options).fit(X, checkpoint=path, resume=True)


def test_an_iterator_that_ends_before_the_checkpoint(tmp_path):
    path, half = tmp_path / "c.safetensors", model(max_iter=1, batch_size=50)
    save = half.save

    def once(name):
        save(name)
        raise KeyboardInterrupt

    half.save = once
    with pytest.raises(KeyboardInterrupt):
        half.fit(iter(np.split(X, 6)), checkpoint=path, checkpoint_every=7)
    with pytest.raises(ValueError, match="X ended after 300 rows, before step 7"):
        model(max_iter=1, batch_size=50).fit(iter([X[:300]]), checkpoint=path, resume=True)
    assert model(max_iter=1, batch_size=50).fit(iter([X[:301]]), checkpoint=path, resume=True).t_ == 7


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model(max_iter=1).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match="was made with k=4, now it is 5"):
        model(max_iter=1, k=5).fit(X, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="give the same data"):
        model(max_iter=1).fit(X[1:], checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="needs checkpoint"):
        model().fit(X, resume=True)
    with pytest.raises(FileNotFoundError, match="make its folder first"):
        model().fit(X, checkpoint=tmp_path / "nowhere" / "c.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; give a file in it"):
        model().fit(X, checkpoint=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_training_goes_on_with_the_same_bits(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
        from test_sparse_autoencoder import X, model
        model(max_iter=400).fit(X, checkpoint={str(tmp_path / "c.safetensors")!r}, checkpoint_every=7, resume=True)
    """)
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", script])
        begin = time.time()
        seen = (tmp_path / "c.safetensors").stat().st_mtime if (tmp_path / "c.safetensors").exists() else 0
        while time.time() - begin < 60 and child.poll() is None:
            if (tmp_path / "c.safetensors").exists() and (tmp_path / "c.safetensors").stat().st_mtime > seen:
                break
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0)
    assert fastae.load(tmp_path / "c.safetensors").t_ < 4000  # killed before it was done
    resumed = model(max_iter=400).fit(X, checkpoint=tmp_path / "c.safetensors", resume=True)
    np.testing.assert_array_equal(resumed.arrays_["encoder"], model(max_iter=400).fit(X).arrays_["encoder"])


# ---- bad input ---


@pytest.mark.parametrize("parameters, message", [
    ({"k": 65}, "k=65 must be <= n_components=64; lower k or raise n_components"),
    ({"k": 0}, r"k=0 must be in \[1"),
    ({"k": 2.5}, "k=2.5 must be an integer"),
    ({"sparsity": "top"}, "did you mean 'topk'"),
    ({"sparsity": fastae.TopK(multi=fastae.MultiTopK(20))}, r"k·MultiTopK\.factor=80 must be <= n_components=64"),
    ({"sparsity": fastae.Matryoshka((3, 4))}, r"sum to 7; wanted n_components=64"),
    ({"precision": "float16"}, "precision='float16'"),
    ({"normalization": "rows"}, "normalization='rows' is unknown"),
    ({"initializer": "zeros"}, "initializer='zeros' is unknown"),
    ({"learning_rate": "fast"}, "must be 'auto', a number or a schedule"),
    ({"resample": 3}, r"must be fastae\.Resample"),
    ({"solver": "lbfgs"}, "solver='lbfgs' is unknown"),
])  # fmt: skip
def test_bad_parameters(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model(**parameters).fit(X)


def test_bad_rows(fitted):
    bad = X.copy()
    bad[7, 3] = np.nan
    for source in (bad, [bad], lambda: iter([bad])):
        with pytest.raises(ValueError, match=r"NaN|nan"):
            model().fit(source)
    for call in (fitted["topk"].encode, fitted["relu"].transform, fitted["topk"].reconstruct):
        with pytest.raises(ValueError, match=r"contains NaN\. Leave such rows out, or fill these entries in\.$"):
            call(bad)
    with pytest.raises(ValueError, match="features"):
        fitted["topk"].encode(X[:, 1:])
    with pytest.raises(ValueError, match=r"indices has values outside 0\.\.63"):
        fitted["topk"].decode(np.ones((1, 2)), np.array([[0, 64]]))
    with pytest.raises(ValueError, match=r"^values of out has shape \(600, 3\) .* wanted \(600, 4\)"):
        fitted["topk"].encode(X, out=(np.empty((600, 3), np.float32), np.empty((600, 4), np.int32)))
    with pytest.raises(TypeError, match="pair of arrays"):
        fitted["topk"].encode(X, out=np.empty((600, 4)))


def test_rows_with_fewer_than_k_positive():
    w, rng = -np.abs(RNG.normal(size=(20, 12))).astype(np.float32), np.random.default_rng(3)
    m = SparseAutoencoder.from_arrays(w, None, w, None, k=5)
    values, indices = m.encode(np.abs(rng.normal(size=(30, 12))).astype(np.float32))
    assert (values == 0).all() and (np.diff(indices, axis=1) > 0).all()
    assert m.transform(np.ones((2, 12), np.float32)).nnz == 0


def test_no_nan_in_silence():
    with pytest.raises(fastae.NonFiniteLossError, match="lower learning_rate"):
        model(learning_rate=1e30, unit_norm=False).fit(X * 1e10)


def test_float64_is_computed_in_float64():
    m = model(max_iter=2).fit(X.astype(np.float64))
    assert m.arrays_["encoder"].dtype == np.float64 and m.transform(X.astype(np.float64)).dtype == np.float64
    assert m.transform(X).dtype == np.float32


@pytest.mark.parametrize("normalization", [None, "layer", "scale"])
@pytest.mark.parametrize("kind", ["topk", "relu", "transcoder"])
def test_callers_rows_are_never_altered(kind, normalization, backend):
    """In order, rows of the right dtype are read where they lie."""
    a, b = X.copy(), X[:, ::-1].copy()
    options = {"transcoder": True, "pre_bias": False, "skip": True} if kind == "transcoder" else {}
    m = model("topk" if kind == "transcoder" else kind, normalization=normalization, shuffle=False, max_iter=2,
              backend=named(backend), **options)  # fmt: skip
    y = (b,) if options else ()
    for call in (m.fit, m.partial_fit, m.score):
        call(a, *y)
    for call in (m.transform, m.encode, m.reconstruct):
        call(a)
    np.testing.assert_array_equal(a, X)
    np.testing.assert_array_equal(b, X[:, ::-1])


def test_layer_norm_of_a_transcoder():
    """The encoder sees rows of deviation 1, the skip connection and the target are as they are."""
    x = X[:200] * np.linspace(0.5, 2, 200, dtype=np.float32)[:, None]
    y = x[:, :5] * 3 + 7
    m = SparseAutoencoder(
        64, sparsity=fastae.ReLUCode(0.01), transcoder=True, skip=True, pre_bias=False, normalization="layer",
        max_iter=200, learning_rate=0.01, batch_size=50, random_state=0,
    ).fit(x, y)  # fmt: skip
    assert m.score(x, y) > -0.02 * y.var()
    x = x.astype(np.float64)
    z = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    code = np.maximum(z @ m.arrays_["encoder"].T + m.arrays_["encoder_bias"], 0)
    wanted = code @ m.dictionary_ + m.arrays_["decoder_bias"] + x @ m.arrays_["skip"].T
    np.testing.assert_allclose(m.reconstruct(x.astype(np.float32)), wanted, rtol=1e-4, atol=1e-4)


# ---- files of codes, reports ---


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_encode_to_files(fitted, kind, tmp_path):
    m = fitted[kind]
    manifest = m.encode_to(tmp_path / "codes", X, block_rows=100)
    assert manifest["complete"] and manifest["rows"] == 600
    code = fastae.open_codes(tmp_path / "codes")
    expected = m.encode(X)
    if kind == "topk":
        np.testing.assert_array_equal(np.load(tmp_path / "codes" / "values.npy"), expected[0])
        np.testing.assert_array_equal(np.load(tmp_path / "codes" / "indices.npy"), expected[1])
        with pytest.raises(ValueError, match="another"):
            m.encode_to(tmp_path / "codes", X, k=3)
    else:
        np.testing.assert_array_equal(code.toarray(), expected.toarray())
    with pytest.raises(ValueError, match="another"):
        fitted["abs_topk" if kind == "topk" else "gated"].encode_to(tmp_path / "codes", X)


@pytest.mark.parametrize("options", [
    {}, {"normalization": "layer"}, {"normalization": "scale"}, {"sparsity": fastae.TopK(4, multi=fastae.MultiTopK())},
    {"sparsity": fastae.Matryoshka()}, {"sparsity": fastae.Matryoshka(reduction="sum")},
])  # fmt: skip
def test_unexplained_part_is_a_part_of_the_variance_whatever_the_loss(options):
    options = {"learning_rate": 1e-12, "random_state": 0, "max_iter": 1, "k": 4, "batch_size": 100} | options
    plain, normalized = (SparseAutoencoder(64, loss=loss, **options).fit(X).fvu_curve_[0]
                         for loss in ("squared_error", "normalized"))  # fmt: skip
    assert 0.05 < plain < 1 and normalized == pytest.approx(plain, rel=1e-4)


def test_unexplained_part_of_rows_that_are_all_the_same():
    same = np.full((200, 5), 3.0)
    exact = SparseAutoencoder(8, k=2, max_iter=2, random_state=0).fit(same)  # the decoder's bias begins as the row
    assert exact.fvu_curve_ == [0.0, 0.0]
    poor = SparseAutoencoder(8, k=2, max_iter=2, bias_initializer="zeros", random_state=0).fit(same)
    assert poor.fvu_curve_ == [1.0, 1.0] and poor.loss_curve_[0] > 0
    for loss in ("cosine", "normalized"):
        blind = SparseAutoencoder(8, k=2, max_iter=1, loss=loss, bias_initializer="zeros", random_state=0).fit(same)
        assert np.isnan(blind.fvu_curve_).all()


def test_narrower_spaces_are_filled_up():
    x = np.random.default_rng(0).normal(size=(2000, 3)) @ np.random.default_rng(1).normal(size=(3, 6))
    options = {"sparsity": fastae.ReLUCode(0.01), "max_iter": 60, "learning_rate": 0.01, "random_state": 0}
    with pytest.raises(ValueError, match=r"spaces=\(4, 2\) must be equal widths .* columns of zeros"):
        SparseAutoencoder(12, spaces=(4, 2), **options).fit(x)
    m = SparseAutoencoder(12, spaces=(4, 4), **options).fit(np.hstack([x, np.zeros((2000, 2))]))
    size = np.abs(m.dictionary_[m.rows_since_fired_ == 0]).mean(axis=0)
    assert m.fvu_curve_[-1] < 0.02 and size[6:].max() < 0.05 * size[:6].min()


@pytest.mark.parametrize("kind", KINDS)
def test_report_of_a_model(fitted, kind):
    from fastae.metrics import SparseReport

    m = fitted[kind]
    report = SparseReport.of(m, X, rows_per_block=128)
    made = m.reconstruct(X).astype(np.float64)
    assert report.fvu == pytest.approx(((X - made) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum(), rel=1e-4)
    assert report.l0 == pytest.approx(m.transform(X).nnz / 600)


def test_command_line_encodes_with_a_sparse_model(fitted, tmp_path):
    fitted["topk"].save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-m", "fastae.cli", "encode", str(tmp_path / "m.safetensors"), str(tmp_path / "x.npy"),
               str(tmp_path / "out"), "--k", "3"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "600 rows encoded" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "indices.npy"), fitted["topk"].encode(X, k=3)[1])


def test_weights_that_were_good_are_put_back():
    m = model(unit_norm=False).fit(X)
    good = m.arrays_["encoder"].copy()
    m.set_params(learning_rate=1e38)
    with pytest.raises(fastae.NonFiniteLossError, match="lower learning_rate"):
        m.partial_fit(X)
    np.testing.assert_array_equal(m.arrays_["encoder"], good)
    assert m.set_params(learning_rate=0.01).partial_fit(X).t_ == 10


@pytest.mark.parametrize("name", ["reference", "avx2", "cuda_host"])
def test_counters_are_no_numbers_that_must_be_finite(name):
    m = model(batch_size=600, sparsity=fastae.TopK(aux=None), backend=backend_named(name)).partial_fit(X[:64])
    m.rows_since_fired_[:] = 0x7FC00000  # NaN, read as a float32
    m.partial_fit(X[:64])
    assert np.isfinite(m.dictionary_).all() and (m.rows_since_fired_ > 0x7FC00000).any()


def test_partial_fits_are_the_same_with_memory_kept_and_anew():
    kept, anew = model().partial_fit(X), model().partial_fit(X)
    for _ in range(3):
        kept.partial_fit(X)
        anew = pickle.loads(pickle.dumps(anew)).partial_fit(X)
    np.testing.assert_array_equal(kept.arrays_["encoder"], anew.arrays_["encoder"])
    kept.set_params(batch_size=100).partial_fit(X)
    assert kept.t_ == 46


# ---- what a review found ---


@pytest.mark.parametrize("kind", ["topk", "abs_topk", "multi"])
def test_more_latents_a_row_after_fit(kind):
    m = model(kind).fit(X)
    m.set_params(k=40 if kind != "multi" else 20, sparsity=model(kind).sparsity).partial_fit(X)
    assert m.l0_curve_[-1] > 10
    assert m.encode(X)[0].shape[1] == m.k


@pytest.mark.parametrize("every", [3, 7])
def test_resumed_resampling_has_the_same_bits(every, tmp_path):
    options = {"resample": fastae.Resample(every=5, until=1.0), "dead_after": 100, "max_iter": 4, "initializer": "data"}
    whole = model(**options).fit(X)

    class Stop(Exception):
        pass

    part = model(**options)
    save = part.save

    def save_and_stop(path):
        save(path)
        raise Stop

    part.save = save_and_stop
    for _ in range(2):
        with pytest.raises(Stop):
            part.fit(X, checkpoint=tmp_path / "c.safetensors", checkpoint_every=every, resume=True)
    resumed = model(**options).fit(X, checkpoint=tmp_path / "c.safetensors", resume=True)
    np.testing.assert_array_equal(resumed.dictionary_, whole.dictionary_)


def test_a_training_that_a_callback_ended_stays_ended(tmp_path):
    m = model(max_iter=5, callbacks=lambda info: info.epoch == 2)
    m.fit(X, checkpoint=tmp_path / "c.safetensors")
    again = model(max_iter=5, callbacks=lambda info: info.epoch == 2)
    assert again.fit(X, checkpoint=tmp_path / "c.safetensors", resume=True).n_iter_ == m.n_iter_ == 2
    with pytest.raises(ValueError, match="give the same data"):
        model(max_iter=5).fit(X[::-1].copy(), checkpoint=tmp_path / "c.safetensors", resume=True)


def test_codes_of_the_caller_are_not_rewritten(fitted):
    code = csr_array((np.float32([3, 1, 2]), np.int32([7, 2, 7]), np.int32([0, 3])), shape=(1, 64))
    for array in (code.data, code.indices, code.indptr):
        array.flags.writeable = False
    once = fitted["topk"].inverse_transform(code)
    np.testing.assert_allclose(once, fitted["topk"].decode([[1.0, 5.0]], [[2, 7]]), rtol=1e-5)
    np.testing.assert_array_equal(code.indices, [7, 2, 7])


def test_a_code_of_which_a_part_was_never_written_is_refused(backend):
    """All latents but the first are NaN for this row."""
    if backend.name == "reference":
        pytest.skip("whose sums are float64's, of which none overflows")
    w = np.where(np.arange(12) % 2, 1e3, -1e3) * np.ones((64, 1))
    w[0] = 1e-30
    m = SparseAutoencoder.from_arrays(w.astype(np.float32), None, w.astype(np.float32), None, k=3, backend=backend)
    for n in (1, 40):
        row, out = np.full((n, 12), 3e38, np.float32), (np.full((n, 3), 7, np.float32), np.zeros((n, 3), np.int32))
        with pytest.raises(ValueError, match=r"of row 0 overflow float32"):
            m.encode(row, out=out)


@pytest.mark.parametrize("normalization", [None, "layer", "scale"])
def test_rows_that_overflow_are_refused(normalization, backend):
    huge = RNG.normal(size=(100, 8)) * 1e200
    with pytest.raises((fastae.NonFiniteLossError, ValueError), match=r"scale X|finite|1e-30 to 1e30|learning_rate"):
        model(normalization=normalization, backend=named(backend)).fit(huge)
    m = model(normalization=normalization, backend=named(backend), max_iter=1).fit(X)
    row = np.full((3, 12), 3e38, np.float32)
    row[0] = 1.0
    row *= np.linspace(-1, 1, 12, dtype=np.float32)
    for call in (m.encode, m.transform, m.reconstruct):
        try:
            made = call(row)
        except ValueError as error:
            assert "overflow float32" in str(error)
        else:
            assert np.isfinite(made[0] if isinstance(made, tuple) else made.sum(dtype=float)).all()
    if normalization is None:
        m.arrays_["encoder"][...] *= 1e3
        m._forget_compiled()
        for call in (m.encode, m.score_samples):
            with pytest.raises(ValueError, match=r"of row [01] overflow float32"):
                call(row)
        plain = SparseAutoencoder.from_arrays(m.arrays_["encoder"], None, m.dictionary_, None, sparsity="relu",
                                              backend=named(backend))  # fmt: skip
        with pytest.raises(ValueError, match=r"of row [01] overflow float32"):
            plain.transform(row)


def test_files_are_of_one_model(fitted, tmp_path):
    m = pickle.loads(pickle.dumps(fitted["topk"]))
    for change in ({"k": 3}, {"normalization": "layer"}, {"n_components": 60}, {"sparsity": "relu"}):
        other = pickle.loads(pickle.dumps(m)).set_params(**change)
        with pytest.raises(ValueError, match="describe another network"):
            other.save(tmp_path / "m.safetensors")
    m.set_params(learning_rate=0.1).save(tmp_path / "m.safetensors")


def test_damaged_files_are_refused(fitted, tmp_path):
    from fastae.io import model_file

    tensors, state = fitted["topk"]._get_model_state()
    parameters = {name: model_file.encode(value) for name, value in fitted["topk"].get_params().items()
                  if name not in ("callbacks", "random_state")}  # fmt: skip
    bad = tensors["encoder"].copy()
    bad[0, 0] = np.nan
    o = state["optimizer"]
    cases = [
        ({"encoder": bad}, {}), ({"encoder": tensors["encoder"].astype(np.int32)}, {}), ({}, {"dtype": "int8"}),
        ({}, {"input_scale": float("nan")}), ({}, {"optimizer": o | {"capacity": 2**40}}),
        ({}, {"optimizer": o | {"step": -5}}), ({}, {"optimizer": o | {"epochs": 2**70}}),
        ({}, {"optimizer": o | {"totals": o["totals"] | {"rows": "x"}}}),
        ({"optimizer": tensors["optimizer"][:-8]}, {}), ({"encoder": tensors["encoder"][:-1]}, {}),
    ]  # fmt: skip
    for i, (changed, said) in enumerate(cases):
        path = tmp_path / f"{i}.safetensors"
        model_file.save(path, tensors | changed, {"class": "SparseAutoencoder", "parameters": parameters,
                                                  "state": state | said})  # fmt: skip
        with pytest.raises(fastae.ModelFileError):
            fastae.load(path)


def test_decode_checks_its_output(fitted):
    values, indices = fitted["topk"].encode(X)
    out = np.empty((600, 12), np.float32)
    out.flags.writeable = False
    for bad, message in ((out, "C-contiguous and writeable"), (np.empty((600, 11), np.float32), r"wanted \(600, 12\)")):
        with pytest.raises(ValueError, match=f"^out .*{message}"):
            fitted["topk"].decode(values, indices, out=bad)
        with pytest.raises(ValueError, match=f"^out .*{message}"):
            fitted["topk"].reconstruct(X, out=bad)
    with pytest.raises(TypeError, match="out is a list"):
        fitted["topk"].decode(values, indices, out=[])


@pytest.mark.parametrize("kind", ["multi", "annealed", "batch_topk", "matryoshka", "relu", "gated", "jumprelu"])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_prefixes_of_every_kind(fitted, kind, n):
    code = fitted[kind].transform(X).toarray() if kind in ("relu", "gated", "jumprelu", "batch_topk") else None
    got = fitted[kind].prefix(n).transform(X).toarray()
    assert got.shape == (600, n)
    if code is not None:
        np.testing.assert_array_equal(got, code[:, :n])


def test_an_l0_that_cannot_be_reached(fitted):
    with pytest.raises(ValueError, match="l0=64 cannot be reached"):
        fitted["topk"].calibrate(X, 64)
    with pytest.raises(TypeError, match="spaces=2 must be a sequence"):
        model("relu", spaces=2).fit(X)


def test_many_threads_on_a_model_that_was_not_used_yet(fitted):
    from concurrent.futures import ThreadPoolExecutor

    expected = fitted["topk"].encode(X)
    for _ in range(5):
        m = pickle.loads(pickle.dumps(fitted["topk"]))
        with ThreadPoolExecutor(6) as pool:
            for rows in (X, X[:1], X[:20]):
                for values, indices in pool.map(m.encode, [rows] * 12):
                    np.testing.assert_array_equal(values, expected[0][: len(rows)])
                    np.testing.assert_array_equal(indices, expected[1][: len(rows)])


def test_a_few_rows_take_a_short_way_to_the_same_codes(fitted):
    m = fitted["topk"]
    whole = m.encode(X)
    for dtype in (np.float32, np.float64, np.float16):
        rows = X[:7].astype(dtype)
        out = np.empty((7, 4), m.encode(rows)[0].dtype), np.empty((7, 4), np.int32)
        got = m.encode(rows, out=out)
        assert got[0] is out[0] and got[1] is out[1]
        np.testing.assert_array_equal(got[0], m.encode(np.asfortranarray(rows))[0])
    np.testing.assert_array_equal(m.encode(X[3:4])[1], whole[1][3:4])
    with pytest.raises(ValueError, match="NaN"):
        m.encode(np.full((1, 12), np.nan, np.float32))
    with pytest.raises(ValueError, match="features"):
        m.encode(X[:1, :5].copy())
    assert m.set_params(k=4).encode(X[:1], k=2)[0].shape == (1, 2)


def test_one_pass_over_an_iterator_whatever_max_iter_is():
    m = model(max_iter=9).partial_fit(iter([X[:300], X[300:]]))
    assert m.t_ == 10 and m.partial_fit(iter([X])).t_ == 20


def test_callbacks_are_told_the_seconds_of_an_epoch():
    told = []
    model(max_iter=2, callbacks=lambda info: told.append(info)).fit(X)
    assert len(told) == 2 and all(0 < info.seconds < 60 for info in told)
    with pytest.raises(ValueError, match="watches the loss of dense models"):
        model(learning_rate=fastae.ReduceOnPlateau(1e-3)).fit(X)


def test_arrays_changed_by_hand_count_in_what_follows():
    model = fastae.SparseAutoencoder(64, k=4, max_iter=1, random_state=0).fit(X)
    for rows in (1, 8, len(X)):
        model.encode(X[:rows])
        model.arrays_["encoder"][:] *= -1
        values, indices = model.encode(X[:rows])
        wanted = copy.deepcopy(model).encode(X[:rows])
        np.testing.assert_array_equal(indices, wanted[1])
        np.testing.assert_array_equal(values, wanted[0])
    model.dictionary_[:] = 0
    np.testing.assert_array_equal(model.reconstruct(X)[0], model.reconstruct(X)[1])


def test_partial_fit_warns_at_a_schedules_end():
    model = fastae.SparseAutoencoder(32, k=2, learning_rate=fastae.Cosine(1e-3), max_iter=2, random_state=0)
    for _ in range(2):
        model.partial_fit(X)
    with pytest.warns(fastae.ModelWarning, match="came to its end after max_iter=2 epochs"):
        model.partial_fit(X)
