"""Writing sparse-autoencoder checkpoints, exact foldings, and what must be refused."""

import json
import os

import numpy as np
import pytest
from sparse_files import (
    COUNT,
    LAYERS,
    MATRICES,
    TOPK,
    K,
    N,
    P,
    Q,
    array,
    dictionary,
    folder,
    language_model_saes,
    llama_scope,
    make,
    openai,
    positive,
    saelens,
    sentence_transformers,
    sparsify,
)
from sparse_numpy import decode, encode

from fastae.exceptions import ModelFileError
from fastae.io.sparse_checkpoints import READERS, SparseCheckpoint, read, write
from fastae.io.sparse_checkpoints.checkpoint import fold_decoder_norm, fold_scale


def same_function(one, other, tolerance=1e-5):
    x = array(40, P)
    code = encode(one, x)
    np.testing.assert_allclose(encode(other, x), code, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(decode(other, code, x), decode(one, code, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ["topk", "abs_topk", "batch_topk", "matryoshka"])
@pytest.mark.parametrize("fields", [{}, {"threshold": True}, {"normalization": "scale", "input_scale": 0.3}])
def test_foldings_change_nothing(architecture, fields):
    if "threshold" in fields and architecture in ("topk", "abs_topk"):
        fields = {"pre_bias": False}
    before = make(architecture, rescale_by_decoder_norm=True, **fields)
    same_function(before, fold_decoder_norm(before))
    same_function(before, fold_scale(before))
    assert not fold_decoder_norm(before).rescale_by_decoder_norm
    assert fold_scale(before).normalization is None


def test_folding_a_dead_decoder_row():
    dead = make(rescale_by_decoder_norm=True)
    dead.arrays["decoder"][4] = 0
    same_function(dead, fold_decoder_norm(dead))


# ---- writing ---

WRITTEN = {
    "relu": make("relu"),
    "relu float64": make("relu", dtype="f8"),
    "relu, layer norm": make("relu", normalization="layer", pre_bias=False),
    "relu, scaled": make("relu", normalization="scale", input_scale=3.0),
    "topk": make("topk", sparsity=np.log10(positive(N) / 10)),
    "topk rescaled": make("topk", rescale_by_decoder_norm=True),
    "abs_topk": make("abs_topk"),
    "jumprelu": make("jumprelu"),
    "gated": make("gated"),
    "batch_topk": make("batch_topk", threshold=True, rescale_by_decoder_norm=True),
    "matryoshka": make("matryoshka", threshold=True),
    "transcoder": make("relu", Q, transcoder=True),
    "skip transcoder": make("jumprelu", Q, transcoder=True, skip=True),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_saelens_round_trip(name, tmp_path):
    checkpoint = WRITTEN[name]
    write(tmp_path / "new" / "folder", checkpoint, "saelens")
    got = read(tmp_path / "new" / "folder")
    same_function(checkpoint, got)
    assert got.arrays["encoder"].dtype == checkpoint.arrays["encoder"].dtype
    assert (got.sparsity is None) == (checkpoint.sparsity is None)
    assert sorted(os.listdir(tmp_path / "new" / "folder"))[:2] == ["cfg.json", "sae_weights.safetensors"]
    config = json.loads((tmp_path / "new" / "folder" / "cfg.json").read_text())
    assert config["metadata"]["sae_lens_version"].startswith("6.")


@pytest.mark.parametrize("fields", [{}, {"pre_bias": False}, {"transcoder": True}, {"transcoder": True, "skip": True},
                                    {"skip": True}, {"rescale_by_decoder_norm": True},
                                    {"normalization": "scale", "input_scale": 3.0}])  # fmt: skip
def test_sparsify_round_trip(fields, tmp_path):
    checkpoint = make("topk", **fields)
    write(tmp_path, checkpoint, "sparsify")
    same_function(checkpoint, read(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["cfg.json", "sae.safetensors"]


def test_writing_replaces_another_model(tmp_path):
    """Statistics of what was there before don't stay beside the new weights; nothing temporary is left."""
    write(tmp_path, WRITTEN["topk"], "saelens")
    assert (tmp_path / "sparsity.safetensors").exists()
    before = {name: (tmp_path / name).read_bytes() for name in ("cfg.json", "sae_weights.safetensors")}
    write(tmp_path, make("relu", seed=9), "saelens")
    assert sorted(os.listdir(tmp_path)) == ["cfg.json", "sae_weights.safetensors"]
    assert all((tmp_path / name).read_bytes() != value for name, value in before.items())


def test_a_failed_write_leaves_the_old_config(tmp_path, monkeypatch):
    from fastae.io import model_file

    write(tmp_path, WRITTEN["topk"], "saelens")
    before = (tmp_path / "sae_weights.safetensors").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(model_file.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, WRITTEN["topk"], "saelens")
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


CANNOT = {
    "top-k transcoder": (make("topk", Q, transcoder=True), "saelens", "format='sparsify' can"),
    "skip without transcoder": (make("relu", skip=True), "saelens", "relu autoencoder with skip"),
    "gated transcoder": (make("gated", Q, transcoder=True), "saelens", "gated transcoder; fastae's own"),
    "no threshold": (make("batch_topk"), "saelens", "needs a threshold"),
    "matryoshka": (make("matryoshka"), "saelens", "needs a threshold"),
    "relu": (make("relu"), "sparsify", "format='saelens' can"),
    "abs_topk": (make("abs_topk"), "sparsify", "format='saelens' can"),
    "batch_topk": (make("batch_topk"), "sparsify", "fastae's own file can"),
    "layer": (make("topk", normalization="layer"), "sparsify", "format='saelens' can"),
    "widths": (make("topk", Q, transcoder=True), "sparsify", r"features out \(5\) as in \(7\)"),
    "format": (make("topk"), "openai", "cannot be written"),
    "scaled transcoder": (
        make("relu", Q, transcoder=True, normalization="scale", input_scale=2.0),
        "saelens",
        "both scales",
    ),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_format_cannot_say(name, tmp_path):
    checkpoint, format, message = CANNOT[name]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", checkpoint, format)
    assert not (tmp_path / "x").exists()


# ---- bad input ---


def changed(files, name, remove=(), **changes):
    """A copy of a fixture with one file's entries changed."""
    kept = {key: value for key, value in files[name].items() if key not in remove}
    return files | {name: kept | changes}


CFG, WEIGHTS, TENSORS = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
BAD = {
    "d_in": (changed(saelens(k=K), CFG, d_in=P + 1), r"'W_enc' has shape \(7, 13\), wanted \(8, 13\)"),
    "d_sae": (changed(saelens(k=K), CFG, d_sae=N + 1), "W_enc"),
    "a missing setting": (changed(saelens(k=K), CFG, remove=["d_in"]), "lacks 'd_in'"),
    "k": (saelens(), "lacks 'k'"),
    "k too large": (saelens(k=N + 1), "k=14"),
    "k of another type": (saelens(k="many"), "k=many must be of type int"),
    "k as a boolean": (saelens(k=True), "must be of type int"),
    "an unknown setting": (saelens(k=K, new_option=3), "'new_option'=3"),
    "a k that has no place": (saelens("standard", k=K), "'k'=3"),
    "architecture": (saelens("temporal"), "'temporal' is not supported"),
    "constant_norm_rescale": (saelens(k=K, normalize_activations="constant_norm_rescale"), "normalize_activations"),
    "reshape": (saelens(k=K, reshape_activations="hook_z"), "reshape_activations=hook_z is not supported"),
    "dtype": (saelens(k=K, dtype="int8"), "dtype 'int8'"),
    "a missing tensor": (changed(saelens(k=K), WEIGHTS, remove=["b_enc"]), "lacks the tensor 'b_enc'"),
    "a tensor too many": (changed(saelens(k=K), WEIGHTS, threshold=array(N)), "tensor 'threshold' that SAELens' topk"),
    "not finite": (changed(saelens(k=K), WEIGHTS, b_dec=np.full(P, np.nan, "f4")), "'b_dec' has NaN"),
    "integers": (changed(saelens(k=K), WEIGHTS, b_dec=np.zeros(P, "i4")), "'b_dec' is int32, wanted floating"),
    "overflow": (changed(saelens(k=K, dtype="float16"), WEIGHTS, b_dec=np.full(P, 1e6, "f4")), "overflows"),
    "centred transcoder without d_out": (saelens("transcoder"), "lacks 'd_out'"),
    "sparsity": (saelens(k=K) | {"sparsity.safetensors": {"sparsity": array(3)}}, "'sparsity' has shape"),
    "groupmax": (sparsify(activation="groupmax"), "activation=groupmax is not supported"),
    "skip in the config only": (sparsify(skip_connection=True), "lacks the tensor 'W_skip'"),
    "skip in the file only": (changed(sparsify(), TENSORS, W_skip=array(P, P)), "'W_skip' that sparsify without skip"),
    "sparsify k": (sparsify(k=N + 5), "k=18"),
    "sparsify setting": (sparsify(extra=1), "'extra'=1"),
    "dict_class": (dictionary("IdentityDict", LAYERS), "IdentityDict"),
    "dictionary size": (
        dictionary("AutoEncoder", LAYERS | {"bias": array(P)}, dict_size=4),
        "'encoder.weight' has shape",
    ),
    "dictionary k": (
        dictionary("BatchTopKSAE", LAYERS | {"b_dec": array(P), "k": COUNT, "threshold": np.array(1, "f4")}, k=4),
        r"trainer\.k=4, but ae\.pt has k=3",
    ),
    "group sizes": (
        dictionary("MatryoshkaBatchTopKSAE", MATRICES | {"k": COUNT, "group_sizes": np.array([4, 4])}),
        r"sum to the 13 latents",
    ),
    "openai key": (openai(**TOPK, extra=array(1)), "'extra' that OpenAI"),
    "sentence k": (sentence_transformers(k=0), "k=0 must be from 1"),
    "sentence setting": (sentence_transformers(extra=True), "'extra'=true"),
    "token-wise": (language_model_saes(norm_activation="token-wise"), "token-wise is not supported"),
    "glu": (language_model_saes(use_glu_encoder=True), "use_glu_encoder"),
    "no average": (
        changed(language_model_saes(), WEIGHTS, remove=["dataset_average_activation_norm.blocks.7.x"]),
        "lacks the tensor 'dataset_average",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints(name, tmp_path):
    files, message = BAD[name]
    with pytest.raises(ModelFileError, match=message):
        read(folder(tmp_path, files))


def test_bad_llama_scope(tmp_path):
    for setting, message in (
        ({"act_fn": "topk"}, "act_fn=topk"),
        ({"dataset_average_activation_norm": {"out": 1.0}}, "positive numbers"),
        ({"dataset_average_activation_norm": {"in": 0.0}}, "positive numbers"),
        ({"d_model": P + 1}, "'encoder.weight' has shape"),
    ):
        llama_scope(tmp_path, **{})
        hyper = json.loads((tmp_path / "hyperparams.json").read_text())
        (tmp_path / "hyperparams.json").write_text(json.dumps(hyper | setting))
        with pytest.raises(ModelFileError, match=message):
            read(tmp_path)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        read(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="no format"):
        read(tmp_path)
    with pytest.raises(ValueError, match="format='word'"):
        read(tmp_path, "word")
    for format in READERS:
        with pytest.raises(FileNotFoundError):
            read(tmp_path, format)
    path = folder(tmp_path / "a", saelens(k=K))
    whole = (path / WEIGHTS).read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        (path / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="not a readable safetensors"):
            read(path)
    for text in ("", "[1]", "{", '{"d_in": ' + "[" * 100000):
        (path / CFG).write_text(text)
        with pytest.raises(ModelFileError, match=r"cfg\.json"):
            read(path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        write(path / CFG, make("topk"), "saelens")


CONTRADICTIONS = {
    "negative threshold": ({"arrays": {"threshold": np.full(1, -1, "f4")}, "architecture": "batch_topk"}, "negative"),
    "threshold of topk": ({"arrays": {"threshold": np.ones(1, "f4")}}, "does not belong to topk"),
    "integers": ({"arrays": {"encoder_bias": np.ones(N, "i4")}}, "int32"),
    "shape": ({"arrays": {"encoder_bias": np.ones(3, "f4")}}, r"'encoder_bias' has shape \(3,\), wanted \(13,\)"),
    "k": ({"k": N + 1}, "k=14"),
    "no k": ({"k": None}, "needs k"),
    "group sizes": ({"group_sizes": (3, 3)}, "sum to"),
    "matryoshka": ({"architecture": "matryoshka"}, "needs group_sizes"),
    "centred transcoder": ({"transcoder": True}, "pre_bias=False"),
    "normalization": ({"normalization": "batch"}, "normalization"),
    "scale": ({"input_scale": 0.0}, "input_scale"),
    "architecture": ({"architecture": "dense"}, "architecture"),
    "sparsity": ({"sparsity": np.zeros(3)}, "sparsity"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name, tmp_path):
    changes, message = CONTRADICTIONS[name]
    base = make("topk")
    arrays = base.arrays | changes.get("arrays", {})
    fields = {"architecture": "topk", "k": K} | {key: value for key, value in changes.items() if key != "arrays"}
    with pytest.raises(ModelFileError, match=message):
        write(tmp_path, SparseCheckpoint(arrays=arrays, **fields), "saelens")
