"""The command line, as a user types it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fastae.cli import main

X = np.random.default_rng(0).uniform(size=(150, 8)).astype(np.float32)


def test_train_encode_info(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    x, model, out = (str(tmp_path / name) for name in ("x.npy", "m.safetensors", "codes.npy"))
    assert main(["train", x, model, "--n-components", "3", "--hidden", "5", "--epochs", "2", "--quiet",
                 "--set", "dropout=0.1"]) == 0  # fmt: skip
    assert main(["encode", model, x, out]) == 0
    import fastae

    np.testing.assert_array_equal(np.load(out), fastae.load(model).transform(X))
    assert main(["info", model]) == 0
    assert "8 features, code of 3" in capsys.readouterr().out


def test_info_and_bench(capsys):
    assert main(["info"]) == 0
    assert "backends:" in capsys.readouterr().out


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
        ({"FASTAE_BACKEND": "nunba"}, "did you mean 'numba'"),
        ({"FASTAE_ISA": "sse9", "FASTAE_BACKEND": "native"}, "sse9|no compiled|not available"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert any(part in done.stdout + done.stderr for part in message.split("|"))
