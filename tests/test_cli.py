"""The command line, as a user types it."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastae
from fastae.cli import main

X = np.random.default_rng(0).uniform(size=(150, 8)).astype(np.float32)


def test_train_encode_info(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    x, model, out = (str(tmp_path / name) for name in ("x.npy", "m.safetensors", "codes.npy"))
    assert main(["train", x, model, "--n-components", "3", "--hidden", "5", "--epochs", "2", "--quiet",
                 "--set", "dropout=0.1"]) == 0  # fmt: skip
    assert main(["encode", model, x, out]) == 0
    np.testing.assert_array_equal(np.load(out), fastae.load(model).transform(X))
    assert main(["info", model]) == 0
    assert "8 features, code of 3" in capsys.readouterr().out


def test_as_a_module():
    told = subprocess.run([sys.executable, "-m", "fastae", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"fastae {fastae.__version__}\n"


def test_train_of_several_files(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    np.save(paths[0], X[:70])
    np.save(paths[1], X[70:])
    assert main(["train", *paths, str(tmp_path / "m"), "--epochs", "2", "--quiet"]) == 0
    same = fastae.Autoencoder(max_iter=2, random_state=0).fit(paths)
    np.testing.assert_array_equal(fastae.load(tmp_path / "m").transform(X), same.transform(X))


def test_train_a_sparse_autoencoder(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    x, model = str(tmp_path / "x.npy"), str(tmp_path / "m.safetensors")
    command = ["train", "--sparse", x, model, "--n-components", "32", "--set", "k=3", "--quiet"]
    assert main([*command, "--epochs", "2", "--checkpoint-every", "1"]) == 0
    assert re.search(r"2 epochs, last loss .* 3 latents a row, FVU .* % dead, backend", capsys.readouterr().out)
    assert main([*command, "--epochs", "4", "--resume"]) == 0
    whole = fastae.SparseAutoencoder(32, k=3, max_iter=4, random_state=0).fit(X)
    np.testing.assert_array_equal(fastae.load(model).arrays_["encoder"], whole.arrays_["encoder"])
    with pytest.raises(SystemExit, match="--hidden goes with dense models"):
        main([*command, "--hidden", "5"])
    with pytest.raises(SystemExit, match="go with --sparse"):
        main(["train", x, model, "--resume"])


def test_encode_into_a_folder(tmp_path, capsys, monkeypatch):
    from fastae.encode import open_codes, read_manifest

    np.save(tmp_path / "a.npy", X[:70])
    np.save(tmp_path / "b.npy", X[70:])
    model, out = str(tmp_path / "m.safetensors"), str(tmp_path / "out")
    fitted = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(X)
    fitted.save(model)
    command = ["encode", model, str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), out, "--block-rows", "40"]
    assert main([*command, "--threads", "1"]) == 0
    assert "150 rows encoded to" in capsys.readouterr().out
    np.testing.assert_array_equal(open_codes(out), fitted.transform(X))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "codes.npy"), fitted.transform(X))
    assert read_manifest(out)["model"].startswith("sha256:")
    monkeypatch.setattr(fastae.Autoencoder, "_compile", None)
    assert main(command) == 0  # complete: nothing is encoded again
    monkeypatch.undo()
    fastae.Autoencoder(3, max_iter=1, random_state=1).fit(X).save(model)
    assert main(command) == 2
    assert re.search("holds other codes: model .* --no-resume to", capsys.readouterr().err)
    assert main([*command, "--no-resume", "--dtype", "float16"]) == 0
    codes = open_codes(out)
    assert codes.dtype == np.float16
    np.testing.assert_array_equal(codes, fastae.load(model).transform(X).astype(np.float16))
    with pytest.raises(SystemExit, match="--k goes with models whose encode takes k"):
        main([*command, "--k", "3"])


def test_encode_sparse_codes(tmp_path, capsys, monkeypatch):
    from fastae.encode import open_codes

    fitted = fastae.SparseAutoencoder(8, k=2, max_iter=2, random_state=0).fit(X)
    fitted.save(tmp_path / "m")
    np.save(tmp_path / "x.npy", X)
    command = ["encode", str(tmp_path / "m"), str(tmp_path / "x.npy"), str(tmp_path / "out")]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    # a clock of the command line's own: backends read time's as they please
    monkeypatch.setattr("fastae.cli.time", SimpleNamespace(perf_counter=iter(range(1000)).__next__))
    assert main([*command, "--block-rows", "50"]) == 0
    text = capsys.readouterr()
    assert "150 rows" in text.out and "2 of 8 float32, 50 rows/s" in text.out
    assert "100 rows of 150, 1 s left, 50 rows/s" in text.err
    for got, wanted in zip(open_codes(tmp_path / "out"), fitted.encode(X), strict=True):
        np.testing.assert_array_equal(got, wanted)
    # the estimator's own method knows the folder again, and the other way round
    assert fitted.encode_to(tmp_path / "out", tmp_path / "x.npy")["complete"]
    fitted.encode_to(tmp_path / "other", X)
    assert main([*command[:-1], str(tmp_path / "other")]) == 0
    assert main([*command, "--k", "3"]) == 2
    assert "holds other codes" in capsys.readouterr().err
    assert main([*command, "--k", "3", "--no-resume", "--quiet"]) == 0
    assert open_codes(tmp_path / "out")[0].shape == (150, 3)
    assert main(command) == 2  # and without --k it is another one again
    with pytest.raises(SystemExit, match="sparse codes are several; give a folder"):
        main([*command[:-1], "out.npy"])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: fastae.SparseAutoencoder(16, k=2, max_iter=2).fit(X), "6 steps done, last loss .*, 2 latents a row"),
        (lambda: fastae.SparseAutoencoder.from_arrays(X[:3], None, X[:3], None, k=1), "0 steps done$"),
        (lambda: fastae.AutoencoderDetector(n_components=4, max_iter=2).fit(X), "8 features, code of 4"),
        (lambda: fastae.AutoencoderClassifier(max_iter=2).fit(X, X[:, 0] > 0.5), "steps done, last loss"),
    ],
    ids=["sparse", "sparse from arrays", "detector", "classifier"],
)
def test_info_of_every_kind_of_model(make, said, tmp_path, capsys):
    make().save(tmp_path / "m")
    assert main(["info", str(tmp_path / "m")]) == 0
    assert re.search(said, capsys.readouterr().out, re.MULTILINE)


def test_a_model_without_codes_is_not_encoded_with(tmp_path):
    fastae.AutoencoderDetector(max_iter=1).fit(X).save(tmp_path / "m")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(SystemExit, match="AutoencoderDetector gives no codes"):
        main(["encode", str(tmp_path / "m"), str(tmp_path / "x.npy"), str(tmp_path / "out")])


def test_encode_computes_and_writes_the_same_type(tmp_path):
    fastae.Autoencoder(3, max_iter=2, random_state=0, precision="float64").fit(X).save(tmp_path / "m")
    np.save(tmp_path / "x.npy", X)
    for out in ("codes.npy", "folder"):
        assert main(["encode", str(tmp_path / "m"), str(tmp_path / "x.npy"), str(tmp_path / out)]) == 0
    one, two = np.load(tmp_path / "codes.npy"), np.load(tmp_path / "folder" / "codes.npy")
    assert one.dtype == two.dtype == np.float64
    np.testing.assert_array_equal(one, fastae.load(tmp_path / "m").transform(X))
    np.testing.assert_array_equal(one, two)


def test_info_and_bench(capsys):
    assert main(["info"]) == 0
    assert "backends:" in capsys.readouterr().out


def test_what_is_refused_before_any_work(tmp_path):
    X = np.random.default_rng(0).random((50, 6))
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", X=X)
    fastae.AutoencoderDetector(max_iter=2, random_state=0).fit(X).save(tmp_path / "detector")
    fastae.Autoencoder(2, max_iter=2, random_state=0).fit(X).save(tmp_path / "m")
    data, model, detector = (str(tmp_path / name) for name in ("x.npy", "m", "detector"))
    for arguments, message in [
        (["encode", detector, data, str(tmp_path / "codes")], "AutoencoderDetector gives no codes"),
        (["encode", model, data, data], "is read, and would be replaced"),
        (["encode", model, data, model], "is read, and would be replaced"),
        (["train", data, str(tmp_path / "no" / "m")], "there is no folder"),
        (["train", data, str(tmp_path)], "is a folder"),
        (["train", data, data], "is read, and would be replaced"),
        (["train", str(tmp_path / "x.npz"), str(tmp_path / "n")], "archive of several arrays"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    np.testing.assert_array_equal(np.load(data), X)


def test_parameters_by_set(tmp_path):
    X = np.random.default_rng(0).random((50, 6))
    X[0, 0] = np.nan
    np.save(tmp_path / "x.npy", X)
    arguments = ["train", str(tmp_path / "x.npy"), str(tmp_path / "m"), "--quiet", "--epochs", "2"]
    values = ["missing=nan", "n_components=3", "activation=tanh", "hidden_layer_sizes=(5,)", "tied_weights=True"]
    assert main(arguments + [word for value in values for word in ("--set", value)]) == 0
    model = fastae.load(tmp_path / "m")
    assert np.isnan(model.missing) and model.n_components == 3 and model.tied_weights is True
    assert main([*arguments, "--set", "missing=nan", "--set", "tied_weights=false"]) == 2


@pytest.mark.slow
def test_bench_json(capsys):
    assert main(["bench", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema_version"] == 1
    assert all(row["value"] > 0 for row in report["results"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["encode", "nothing", "nothing", "out"], "no model file"),
        (["train", "nothing.npy", "m"], "no file 'nothing.npy'"),
        (["info", "nothing"], "no model file"),
    ],
)
def test_bad_arguments_end_with_a_message(arguments, message, capsys):
    try:
        status = main(arguments)
        text = capsys.readouterr().err
    except SystemExit as end:
        status, text = 2, str(end)
    assert status == 2 and message in text


def test_the_models_folder_is_looked_at_before_training(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(fastae.Autoencoder, "fit", None)
    with pytest.raises(SystemExit, match="make it first"):
        main(["train", str(tmp_path / "x.npy"), str(tmp_path / "nowhere" / "m")])


def test_demo(tmp_path, capsys):
    from fastae.demo import run_demo

    assert run_demo(picture=str(tmp_path / "p.png")) == 0
    text = capsys.readouterr().out
    assert "PCA" in text and "rows/s" in text


def test_demo_check_fails_on_numba_beside_a_compiler(monkeypatch, capsys):
    import fastae.backends
    import fastae.demo

    monkeypatch.delenv("FASTAE_BACKEND", raising=False)
    monkeypatch.setattr(fastae.demo, "_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(fastae.backends, "_automatic", lambda: fastae.backends._load("numba"))
    monkeypatch.setattr(fastae.demo, "EPOCHS", 2)
    assert fastae.demo.run_demo(check=True, picture=None) == 1
    assert "WARNING" in capsys.readouterr().out
    assert fastae.demo.run_demo(check=False, picture=None) == 0


def test_environment_chooses_and_refuses():
    code = (
        "import fastae; print(fastae.ops.permutation(3, 0)); from fastae.backends import get_backend as g; print(g())"
    )
    for variables, message in (
        ({"FASTAE_BACKEND": "reference"}, "Reference"),
        ({"FASTAE_BACKEND": "nunba"}, "FASTAE_BACKEND='nunba' is unknown; did you mean 'numba'"),
        ({"FASTAE_ISA": "sse9", "FASTAE_BACKEND": "native"}, "sse9|no compiled|not available"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert any(part in done.stdout + done.stderr for part in message.split("|"))


def test_a_folder_that_may_not_be_written_to_is_found_before_the_work(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((5, 3)))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setattr("fastae.Autoencoder.fit", None)
    with pytest.raises(SystemExit, match="no permission to write into"):
        main(["train", str(tmp_path / "x.npy"), str(tmp_path / "m.safetensors")])
    with pytest.raises(PermissionError, match="no permission to write into"):
        fastae.SparseAutoencoder(4, k=1).fit(np.zeros((5, 3)), checkpoint=tmp_path / "c")
