"""Encoding into files: whole, in pieces, killed, resumed; always the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SLOW
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError

import fastae
import fastae.encode
from fastae.encode import encode_to, open_codes, read_manifest

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1003, 12)).astype(np.float32)
W = RNG.normal(size=(30, 12)).astype(np.float32)


def pre(block):
    """Row by row, so that bits do not depend on the block."""
    return (block[:, None, :] * W).sum(axis=2)


def fixed(block):
    z = pre(block)
    indices = np.sort(np.argsort(-z, axis=1, kind="stable")[:, :5], axis=1)
    return np.maximum(np.take_along_axis(z, indices, axis=1), 0), indices.astype(np.int32)


def ragged(block):
    z = pre(block)
    return csr_array(np.where(z > 4, z, 0))


KINDS = {"fixed": fixed, "csr": ragged, "dense": pre}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def as_dense(codes):
    if isinstance(codes, tuple):
        out = np.zeros((len(codes[0]), 30), codes[0].dtype)
        np.put_along_axis(out, codes[1], codes[0], axis=1)
        return out
    return codes.toarray() if hasattr(codes, "toarray") else np.asarray(codes)


def expected(kind):
    code = KINDS[kind](X)
    return as_dense(code)


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_the_codes_however_the_rows_came(kind, tmp_path):
    sources = {"array": X, "iterator": (X[i : i + 17] for i in range(0, 1003, 17)), "parts": [X[:500], X[500:]]}
    files = []
    for i, (name, source) in enumerate(sources.items()):
        manifest = encode_to(KINDS[kind], tmp_path / name, source, block_rows=(1, 64, 5000)[i], n_components=30)
        assert manifest["complete"] and manifest["rows"] == 1003 and manifest["kind"] == kind
        assert manifest == read_manifest(tmp_path / name)
        np.testing.assert_array_equal(as_dense(open_codes(tmp_path / name)), expected(kind))
        files.append(contents(tmp_path / name))
    assert files[0] == files[1] == files[2]
    for name in files[0]:  # plain files for everyone
        assert np.load(tmp_path / "array" / name).flags.c_contiguous
    if kind == "csr":
        open_codes(tmp_path / "array").check_format(full_check=True)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files")
def test_data_are_on_the_disk_before_the_manifest_says_so(tmp_path, monkeypatch):
    synced = []

    def record(descriptor, ordinary=os.fsync):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append("manifest" if "manifest" in name else name)
        ordinary(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(fastae.encode, "CHECKPOINT_SECONDS", 0.0)
    encode_to(fixed, tmp_path / "out", X, block_rows=500)
    names = ["manifest", "out"] + ["values.npy", "indices.npy", "manifest", "out"] * 4
    assert synced == names


def interrupted(encode, rows, error=KeyboardInterrupt):
    done = 0

    def wrapped(block):
        nonlocal done
        done += len(block)
        if done > rows:
            raise error
        return encode(block)

    return wrapped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 100, 1000])
def test_an_interrupted_encoding_goes_on(kind, rows, tmp_path):
    encode_to(KINDS[kind], tmp_path / "whole", X, model="m")
    with pytest.raises(KeyboardInterrupt):
        encode_to(interrupted(KINDS[kind], rows), tmp_path / "cut", X, block_rows=50, model="m")
    if rows:
        assert read_manifest(tmp_path / "cut")["rows"] == rows
        with pytest.raises(ValueError, match="and has not ended"):
            open_codes(tmp_path / "cut")
        np.testing.assert_array_equal(as_dense(open_codes(tmp_path / "cut", partial=True)), expected(kind)[:rows])
        for path in (tmp_path / "cut").glob("*.npy"):  # what a crash leaves behind the last checkpoint
            path.write_bytes(path.read_bytes() + b"half a row")
    seen = []
    encode_to(KINDS[kind], tmp_path / "cut", (X[i : i + 9] for i in range(0, 1003, 9)) if rows == 0 else X,
              block_rows=77, model="m", progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen[0][0] == rows + min(77, 1003 - rows) and seen[-1][0] == 1003
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")

    def never(block):
        raise AssertionError("it was complete")

    if rows:
        assert encode_to(never, tmp_path / "cut", X, model="m")["complete"]


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}]
import fastae.encode
import test_encode_to as t
fastae.encode.CHECKPOINT_SECONDS = 0.01
def slow(block):
    time.sleep(0.004)
    return t.KINDS[sys.argv[1]](block)
fastae.encode.encode_to(slow, sys.argv[2], t.X, block_rows=5, model="m")
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize("kind", ["fixed", SLOW("csr")])
def test_killed_at_any_moment_it_goes_on(kind, tmp_path):
    encode_to(KINDS[kind], tmp_path / "whole", X, model="m")
    out, kills, rows = tmp_path / "out", 0, -1
    code = KILLED.format(tests=os.path.dirname(__file__))
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, kind, str(out)])
        begin = time.monotonic()
        while time.monotonic() - begin < 30:
            try:
                if json.loads((out / "manifest.json").read_text())["rows"] > rows + 50:
                    break
            except (OSError, ValueError):
                pass
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        done = read_manifest(out)["rows"]
        assert rows < done < 1003
        np.testing.assert_array_equal(as_dense(open_codes(out, partial=True)), expected(kind)[:done])
        rows = done
    assert kills == 2
    first = []
    encode_to(KINDS[kind], out, X, model="m", block_rows=1, progress=lambda done, _: first.append(done))
    assert first[0] == rows + 1
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "b"}, "model 'a', now 'b'"),
        ({"source": X[:900]}, "'n_rows': 1003"),
        ({"source": X.astype(np.float64)}, "'dtype': 'float32'"),
        *(({"source": np.where(np.arange(1003)[:, None] == row, 0, X)}, "'digest': ") for row in (0, 501, 1002)),
        ({"dtype": "float16"}, "dtype 'float32', now 'float16'"),
        ({"k": 6}, "k 5, now 6"),
        ({"n_components": 31}, "n_components 30, now 31"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_codes_of_something_else_are_not_continued(change, message, complete, tmp_path):
    settings = {"model": "a", "source": X, "n_components": 30}
    try:
        encode_to(fixed if complete else interrupted(fixed, 100), tmp_path, block_rows=50, **settings)
    except KeyboardInterrupt:
        assert not complete
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message + ".*resume=False"):
        encode_to(fixed, tmp_path, **settings | change)
    assert contents(tmp_path) == before
    assert encode_to(fixed, tmp_path, **settings, resume=False)["rows"] == 1003


def test_an_iterable_of_other_rows_is_not_continued(tmp_path):
    def blocks(X, size):
        return (X[i : i + size] for i in range(0, len(X), size))

    with pytest.raises(KeyboardInterrupt):
        encode_to(interrupted(fixed, 100), tmp_path, blocks(X, 30), block_rows=50, model="m")
    with pytest.raises(ValueError, match=r"'digest': .*resume=False"):
        encode_to(fixed, tmp_path, blocks(X[::-1].copy(), 30), model="m")
    assert encode_to(fixed, tmp_path, blocks(X, 17), model="m")["rows"] == 1003  # however it is cut
    np.testing.assert_array_equal(as_dense(open_codes(tmp_path)), expected("fixed"))


def test_another_k_is_found_out_late_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode_to(interrupted(fixed, 100), tmp_path, X, block_rows=50, model="m")
    with pytest.raises(ValueError, match="encode gave k 4, wanted 5"):
        encode_to(lambda block: tuple(part[:, :4] for part in fixed(block)), tmp_path, X, model="m")
    with pytest.raises(ValueError, match="encode gave kind 'dense', wanted 'fixed'"):
        encode_to(pre, tmp_path, X, model="m")
    assert read_manifest(tmp_path)["rows"] == 100


@pytest.mark.parametrize(
    "encode, message",
    [
        (lambda b: (b, b), "the indices integers"),
        (lambda b: (b[:, :3], np.zeros((len(b), 4), int)), r"wanted both \(rows, k\)"),
        (lambda b: (b, np.full(b.shape, 30)), r"indices from 30 to 30; wanted \[0, n_components=30\)"),
        (lambda b: (b, np.full(b.shape, -1)), "indices from -1"),
        (lambda b: b[0], r"shape \(12,\)"),
        (lambda b: b[:3], r"n_components 12, wanted 30"),
        (lambda b: fixed(b[:3]), "3 codes of 50 rows"),
    ],
)
def test_codes_that_do_not_fit_are_refused(encode, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode_to(encode, tmp_path, X, n_components=30, block_rows=50)


def test_float16_and_what_does_not_fit_it(tmp_path):
    encode_to(fixed, tmp_path / "a", X, dtype="float16")
    values, indices = open_codes(tmp_path / "a")
    assert values.dtype == np.float16 and indices.dtype == np.int32
    np.testing.assert_array_equal(values, fixed(X)[0].astype(np.float16))
    with pytest.raises(ValueError, match="too large for dtype='float16'"):
        encode_to(fixed, tmp_path / "b", X * 1e5, dtype="float16")
    with pytest.raises(ValueError, match="dtype='int8' must be"):
        encode_to(fixed, tmp_path / "c", X, dtype="int8")


def test_the_row_that_is_not_finite_is_named(tmp_path):
    bad = X.copy()
    bad[407, 2] = np.nan

    def strict(block):
        if not np.isfinite(block).all():
            raise ValueError("Input contains NaN.")
        return fixed(block)

    with pytest.raises(ValueError, match="row 407 of the source has nan in column 2"):
        encode_to(strict, tmp_path, bad, block_rows=100)
    assert read_manifest(tmp_path)["rows"] == 400


def test_folders_of_others_are_left_alone(tmp_path):
    np.save(tmp_path / "values.npy", X)
    with pytest.raises(ValueError, match=r"has values\.npy but no manifest"):
        encode_to(fixed, tmp_path, X)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), X)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        encode_to(fixed, tmp_path, X)
    encode_to(fixed, tmp_path, X, resume=False)
    (tmp_path / "values.npy").write_bytes((tmp_path / "values.npy").read_bytes()[:-1])
    manifest = read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(ValueError, match="its manifest speaks of 1003 rows"):
        encode_to(fixed, tmp_path, X, model="")


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_one_writer_at_a_time(tmp_path):
    def second(block):
        encode_to(fixed, tmp_path, X)

    with pytest.raises(ValueError, match="another process writes"):
        encode_to(second, tmp_path, X)


def test_a_full_disk_keeps_what_was_done(tmp_path, monkeypatch):
    def fails(self, array, ordinary=fastae.encode._GrowingFile.append):
        if self.rows >= 300 and self.dtype == np.int32:
            raise OSError(28, "No space left on device")
        ordinary(self, array)

    with monkeypatch.context() as patch:
        patch.setattr(fastae.encode._GrowingFile, "append", fails)
        with pytest.raises(OSError, match="No space left"):
            encode_to(fixed, tmp_path / "a", X, block_rows=100)
    assert read_manifest(tmp_path / "a")["rows"] == 300
    encode_to(fixed, tmp_path / "a", X, model="")
    encode_to(fixed, tmp_path / "b", X)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# ---- what encodes ---------------------------------------------------------------------------------------------------


def small(seed=0, **parameters):
    return fastae.Autoencoder(3, max_iter=1, random_state=seed, **parameters).fit(X)


def dictionary(seed=0):
    return fastae.SparseAutoencoder(24, k=3, max_iter=1, random_state=seed).fit(X)


OTHERS = {
    "weights": lambda: (small().transform, small(1).transform),
    "options": lambda: (small(activation="relu").transform, small(activation="tanh").transform),
    "method": lambda: (small().transform, small().reconstruct),
    "norms": lambda: (small(hidden_layer_sizes=(5,), normalization="batch").transform, changed_norm().transform),
    "encoder": lambda: (small().encoder(), small(1).encoder()),
    "output": lambda: (small().encoder(), small().encoder(output="float16")),
    "precision": lambda: (small().encoder(), small().encoder("bfloat16")),
    "sparse": lambda: (dictionary().encode, dictionary(1).encode),
    "sparse method": lambda: (dictionary().encode, dictionary().transform),
}


def changed_norm():
    model = small(hidden_layer_sizes=(5,), normalization="batch")
    model.norms_[0]["mean"][:] += 1
    return model


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("rows", [100, 2000])
def test_models_are_told_apart(which, rows, tmp_path):
    one, other = OTHERS[which]()
    seen = []

    def stop(done, total):
        seen.append(done)
        if done > rows:
            raise KeyboardInterrupt

    try:
        encode_to(one, tmp_path, X, block_rows=100, progress=stop)
    except KeyboardInterrupt:
        assert rows < 1003
    with pytest.raises(ValueError, match=r"model 'sha256:.*', now 'sha256:.*resume=False"):
        encode_to(other, tmp_path, X)
    same = OTHERS[which]()[0]  # another object, as after a crash
    seen.clear()
    assert encode_to(same, tmp_path, X, block_rows=100, progress=lambda done, _: seen.append(done))["complete"]
    assert seen[:1] == ([] if rows > 1003 else [300])


def test_a_model_after_loading_is_the_same(tmp_path):
    model = small()
    model.save(tmp_path / "m.safetensors")
    first = encode_to(model.transform, tmp_path / "codes", X)
    assert encode_to(fastae.load(tmp_path / "m.safetensors").transform, tmp_path / "codes", X) == first
    with pytest.raises(NotFittedError):
        encode_to(fastae.Autoencoder(3).transform, tmp_path / "other", X)
    assert not (tmp_path / "other").exists()


class Doubled(fastae.Autoencoder):
    factor = 2.0

    def transform(self, X, out=None):
        return self.factor * super().transform(X, out)


@pytest.mark.parametrize("rows", [100, 2000])
def test_codes_of_functions_without_a_name_are_not_taken_for_this_ones(rows, tmp_path):
    model = Doubled(3, max_iter=1, random_state=0).fit(X)
    for i, encode in enumerate((fixed, lambda block: fixed(block), model.transform)):  # not fastae's own transform
        folder = tmp_path / str(i)
        try:
            encode_to(interrupted(encode, rows), folder, X, block_rows=50)
        except KeyboardInterrupt:
            assert rows < 1003
        before = contents(folder)
        with pytest.raises(ValueError, match=r"nothing says whether they are .*model='' .*resume=False"):
            encode_to(encode, folder, X)
        assert contents(folder) == before
        assert encode_to(encode, folder, X, model="")["rows"] == 1003
        with pytest.raises(ValueError, match="model '', now 'sha256:"):
            encode_to(small().transform, folder, X)


def test_values_keep_their_dtype(tmp_path):
    model = small()
    codes = {"float16": model.encoder(output="float16"), "float64": lambda b: model.transform(b.astype(float)),
             "float32": lambda b: np.ones((len(b), 2), int)}  # fmt: skip
    for dtype, encode in codes.items():
        assert encode_to(encode, tmp_path / dtype, X)["dtype"] == dtype
        assert open_codes(tmp_path / dtype).dtype == dtype
        np.testing.assert_array_equal(open_codes(tmp_path / dtype), encode(X))
    with pytest.raises(KeyboardInterrupt):
        encode_to(interrupted(pre, 100), tmp_path / "cut", X, block_rows=50, dtype="float16", model="m")
    with pytest.raises(ValueError, match="dtype 'float32', wanted 'float16'"):
        encode_to(pre, tmp_path / "cut", X, model="m")


def test_codes_of_8_bits_are_refused(tmp_path):
    encoder = small().encoder(output="int8", sample=X)
    with pytest.raises(ValueError, match=r"int8 codes with a scale for each row.*output='float16'"):
        encode_to(encoder, tmp_path, X)
