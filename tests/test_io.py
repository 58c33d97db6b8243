"""Model files: nothing is lost, and a bad file is one exception."""

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import fastae
from fastae.io import model_file

X = np.random.default_rng(0).uniform(size=(60, 7)).astype(np.float32)


@pytest.fixture
def fitted():
    return fastae.Autoencoder(
        3, hidden_layer_sizes=(5,), activation=fastae.LeakyReLU(0.2), loss=fastae.Huber(0.7), noise="swap", max_iter=2,
        penalties=(fastae.L1(1e-3), fastae.ActivityL1(1e-3)), constraints=[fastae.MaxNorm(2)], random_state=0,
        solver=fastae.AdamW(clip_norm=1.0), learning_rate=fastae.Cosine(1e-3),
    ).fit(X)  # fmt: skip


def test_round_trip(fitted, tmp_path):
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    loaded = fastae.load(path)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))
    wanted, got = fitted.get_params(), loaded.get_params()
    for name in set(wanted) - set(model_file._LEFT_OUT):
        assert got[name] == wanted[name], name
    assert loaded.random_state == 0
    np.testing.assert_array_equal(fastae.load(path).fit(X).transform(X), fitted.transform(X))
    assert (loaded.loss_curve_, loaded.t_, loaded.seed_) == (fitted.loss_curve_, fitted.t_, fitted.seed_)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_ranges_keep_their_step():
    for value in (range(3), range(1, 7, 2), range(5, 0, -1)):
        assert model_file.decode(json.loads(json.dumps(model_file.encode(value)))) == value


@pytest.mark.parametrize(
    "model, precision",
    [
        (fastae.Autoencoder(4, max_iter=1), "tf32"),
        (fastae.SparseAutoencoder(4, k=2, max_iter=1), "auto"),
        (fastae.StackedAutoencoder(max_iter=1), "auto"),
        (fastae.AutoencoderDetector(max_iter=1), "tf32"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else value,
)
def test_files_know_no_device(model, precision, tmp_path):
    wanted = model.fit(X).score_samples(X)
    model.set_params(device="cuda:1", precision=precision).save(tmp_path / "m")
    loaded = fastae.load(tmp_path / "m")
    assert loaded.device == "auto"
    np.testing.assert_array_equal(loaded.score_samples(X), wanted)


def test_classes_that_could_not_be_loaded_are_not_saved(tmp_path):
    for base in (fastae.Autoencoder, fastae.AutoencoderDetector):
        for name in ("Mine", base.__name__):
            with pytest.raises(TypeError, match=f"{name} is a class of your own"):
                type(name, (base,), {})(max_iter=1).fit(X).save(tmp_path / "model")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("seed, kept", [(np.uint64(2**64 - 1), 2**64 - 1), (np.random.default_rng(0), None)])
def test_seeds_that_are_stored(seed, kept, tmp_path):
    fitted = fastae.Autoencoder(2, max_iter=1, random_state=seed).fit(X)
    fitted.save(tmp_path / "m")
    loaded = fastae.load(tmp_path / "m")
    assert loaded.random_state == kept and loaded.seed_ == fitted.seed_


def test_unfitted_models_are_not_saved(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        fastae.Autoencoder().save(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="no folder"):
        fastae.Autoencoder(2, max_iter=1).fit(X).save(tmp_path / "nowhere" / "m")
    with pytest.raises(FileNotFoundError, match="no model file"):
        fastae.load(tmp_path / "m")


def test_truncated_anywhere(fitted, tmp_path):
    path = tmp_path / "m"
    fitted.save(path)
    data = path.read_bytes()
    for n in {0, 1, 7, 8, 9, 100, *range(0, len(data), max(1, len(data) // 60)), len(data) - 1}:
        path.write_bytes(data[:n])
        with pytest.raises(fastae.ModelFileError):
            fastae.load(path)


def test_flipped_bytes_never_crash(fitted, tmp_path):
    path = tmp_path / "m"
    fitted.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(data)
        for position in rng.integers(0, min(len(data), 3000), 3):
            bad[position] = rng.integers(256)
        path.write_bytes(bytes(bad))
        try:
            fastae.load(path)
        except fastae.ModelFileError:
            pass


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format_version=99), "format version 99"),
        (lambda d: d.update({"class": "Pickle"}), "holds a 'Pickle'"),
        (lambda d: d.update({"class": ["Autoencoder"]}), r"holds a \['Autoencoder'\]"),
        (lambda d: d["parameters"].update(loss={"option": "os.system", "fields": {}}), "os.system"),
        (
            lambda d: d["parameters"].update(hidden_layer_sizes={"range": [1, 10**12]}),
            "a range of 999999999999 numbers",
        ),
        (lambda d: d["parameters"].update(n_components=4), "does not fit together"),
        (lambda d: d["parameters"].update(banana=4), "does not fit together"),
        (lambda d: d.pop("state"), "does not fit together"),
        (lambda d: d["state"].update(n_features=-3), "does not fit together"),
    ],
)
def test_descriptions_that_do_not_fit(fitted, tmp_path, change, message):
    fitted.save(tmp_path / "m")
    tensors, description = model_file.read(tmp_path / "m")
    change(description)
    version = description.pop("format_version")
    from safetensors.numpy import save_file

    metadata = {"fastae": json.dumps({"format_version": version, **description})}
    save_file(tensors, tmp_path / "bad", metadata=metadata)
    with pytest.raises(fastae.ModelFileError, match=message):
        fastae.load(tmp_path / "bad")


def test_foreign_files(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(fastae.ModelFileError, match="not fastae's"):
        fastae.load(tmp_path / "foreign")
    (tmp_path / "huge").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(fastae.ModelFileError):
        fastae.load(tmp_path / "huge")


def test_a_failed_write_keeps_the_old_file(fitted, tmp_path):
    path = tmp_path / "m"
    fitted.save(path)
    before = path.read_bytes()

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        model_file.write_atomically(path, fail)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m"]


def test_disk_limit_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    code = textwrap.dedent("""
        import numpy as np, resource, signal, sys, fastae
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = fastae.Autoencoder(64, max_iter=1).fit(np.zeros((4, 300), np.float32))
        model.save(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            model.save(sys.argv[1])
        except OSError as error:
            print("refused", error.errno)
    """)
    assert resource
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert "refused" in done.stdout
    fastae.load(tmp_path / "m")


def _kill_while_saving(tmp_path, times):
    path = tmp_path / "m"
    code = textwrap.dedent("""
        import numpy as np, sys, fastae
        model = fastae.Autoencoder(64, max_iter=1).fit(np.zeros((4, 300), np.float32))
        model.save(sys.argv[1])
        print("ready", flush=True)
        while True:
            model.save(sys.argv[1])
    """)
    rng = np.random.default_rng(0)
    rounds = 0
    while rounds < times:
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.03))
        child.kill()
        child.wait()
        child.stdout.close()
        fastae.load(path)
        rounds += 1
    leftovers = [name for name in os.listdir(tmp_path) if name != "m"]
    for name in leftovers:
        os.utime(tmp_path / name, (0, 0))
    fastae.load(path).save(path)
    assert os.listdir(tmp_path) == ["m"]  # old leftovers are swept


def test_killed_while_saving(tmp_path):
    _kill_while_saving(tmp_path, 3)


@pytest.mark.slow
def test_killed_while_saving_often(tmp_path):
    _kill_while_saving(tmp_path, 60)
