"""Reading sparse-autoencoder checkpoints: every format from files made here, without the packages."""

import json

import numpy as np
import pytest
from sparse_files import (
    COUNT,
    GATES,
    LAYERS,
    MATRICES,
    TOPK,
    K,
    N,
    P,
    Q,
    W,
    array,
    dictionary,
    folder,
    gemma_scope,
    gemma_scope_2,
    language_model_saes,
    llama_scope,
    openai,
    positive,
    saelens,
    sentence_transformers,
    sparsify,
)
from sparse_numpy import decode, encode

from fastae.exceptions import ModelFileError
from fastae.io.sparse_checkpoints import detect, read
from fastae.io.sparse_checkpoints.files import to_precision
from fastae.io.torch_archive import widen_bfloat16


def check(path, format, architecture, **wanted):
    """Detects and reads; ``wanted`` names arrays and fields."""
    assert detect(path) == format
    checkpoint = read(path)
    assert checkpoint.architecture == architecture
    assert checkpoint.metadata["format"] == format
    json.dumps(checkpoint.metadata)
    names = {name for name in wanted if name in checkpoint.arrays}
    assert names >= {"encoder", "decoder", "decoder_bias"}
    assert set(checkpoint.arrays) == names, "arrays that the test does not know"
    for name, value in wanted.items():
        if name in names:
            got = checkpoint.arrays[name]
            assert got.flags.c_contiguous and got.dtype == np.float32
            np.testing.assert_allclose(got, value, rtol=2e-7 if "fold" not in wanted else 1e-6)
        elif name != "fold":
            assert getattr(checkpoint, name) == value, name
    return checkpoint


def test_saelens(tmp_path):
    files = saelens(k=K) | {"sparsity.safetensors": {"sparsity": array(N)}}
    got = check(folder(tmp_path, files), "saelens", "topk", **W, k=K, pre_bias=True, normalization=None)
    np.testing.assert_array_equal(got.sparsity, array(N))
    assert got.metadata["hook_name"] == "blocks.1.hook_resid_post"


def test_saelens_architectures(tmp_path):
    files = saelens("standard", apply_b_dec_to_input=False, normalize_activations="layer_norm")
    check(folder(tmp_path / "a", files), "saelens", "relu", **W, pre_bias=False, normalization="layer")
    files = saelens("jumprelu")
    theta = positive(N) * np.where(np.arange(N) == 2, -1, 1).astype("f4")
    files["sae_weights.safetensors"]["threshold"] = theta
    check(folder(tmp_path / "b", files), "saelens", "jumprelu", **W, threshold=np.maximum(theta, 0))
    files = saelens("gated")
    tensors = files["sae_weights.safetensors"]
    del tensors["b_enc"]
    tensors |= {"b_gate": GATES["gate_bias"], "b_mag": GATES["mag_bias"], "r_mag": GATES["r_mag"]}
    gates = {
        "gate_bias": GATES["gate_bias"],
        "magnitude_bias": GATES["mag_bias"],
        "magnitude_log_scale": GATES["r_mag"],
    }
    wanted = {name: W[name] for name in ("encoder", "decoder", "decoder_bias")}
    check(folder(tmp_path / "c", files), "saelens", "gated", **wanted, **gates)
    files = saelens("jumprelu_skip_transcoder", Q, d_out=Q, apply_b_dec_to_input=False)
    files["sae_weights.safetensors"] |= {"threshold": positive(N), "W_skip": array(Q, P)}
    wanted = {"encoder": W["encoder"], "encoder_bias": W["encoder_bias"], "decoder": array(N, Q, seed=1)}
    wanted |= {"decoder_bias": array(Q), "skip": array(Q, P), "threshold": positive(N)}
    check(folder(tmp_path / "d", files), "saelens", "jumprelu", **wanted, transcoder=True, pre_bias=False)
    files = saelens("matryoshka_batchtopk", k=2.5, matryoshka_widths=[4, 9], topk_threshold_lr=0.01)
    files["sae_weights.safetensors"]["topk_threshold"] = np.array(0.75)
    got = check(
        folder(tmp_path / "e", files), "saelens", "matryoshka", **W, threshold=[0.75], group_sizes=(4, 5, 4), k=None
    )
    assert got.metadata["average_k"] == 2.5
    files = saelens("batchtopk", k=3.0)
    files["sae_weights.safetensors"]["topk_threshold"] = np.array(0.0)
    check(folder(tmp_path / "f", files), "saelens", "batch_topk", **W, k=3)


def test_saelens_rescaled_is_folded(tmp_path):
    got = read(folder(tmp_path, saelens(k=K, rescale_acts_by_decoder_norm=True)))
    norm = np.linalg.norm(W["decoder"].astype("f8"), axis=1)
    np.testing.assert_allclose(got.arrays["encoder"], W["encoder"] * norm[:, None], rtol=1e-6)
    np.testing.assert_allclose(got.arrays["encoder_bias"], W["encoder_bias"] * norm, rtol=1e-6)
    np.testing.assert_allclose(got.arrays["decoder"], W["decoder"] / norm[:, None], rtol=1e-6)
    assert not got.rescale_by_decoder_norm and got.metadata["folded_decoder_norm"]


def test_saelens_before_6(tmp_path):
    files = saelens()
    old = {"d_in": P, "d_sae": N, "dtype": "torch.float32", "activation_fn_str": "topk", "hook_point": "blocks.2.x"}
    files["cfg.json"] = old | {"activation_fn_kwargs": {"k": K}, "normalize_activations": False, "lr": 1.0}
    got = check(folder(tmp_path, files), "saelens", "topk", **W, k=K, pre_bias=True)
    assert got.metadata["hook_name"] == "blocks.2.x"
    files["sae_weights.safetensors"]["scaling_factor"] = np.ones(N, "f4")
    check(folder(tmp_path, files), "saelens", "topk", **W, k=K)
    files["sae_weights.safetensors"]["scaling_factor"] = np.full(N, 2, "f4")
    with pytest.raises(ModelFileError, match="scaling_factor"):
        read(folder(tmp_path, files))


def test_saelens_input_scale(tmp_path):
    files = saelens("standard", normalize_activations="expected_average_only_in")
    with pytest.warns(UserWarning, match=r"activation_scaler\.json"):
        read(folder(tmp_path, files))
    folder(tmp_path, {"activation_scaler.json": {"scaling_factor": 0.5, "has_whitening": False}})
    wanted = W | {"encoder": W["encoder"] / 2, "decoder": W["decoder"] * 2, "decoder_bias": W["decoder_bias"] * 2}
    check(tmp_path, "saelens", "relu", **wanted, normalization=None)
    folder(tmp_path, {"activation_scaler.json": {"scaling_factor": 0.5, "has_whitening": True}})
    with pytest.raises(ModelFileError, match="whiten"):
        read(tmp_path)


def test_saelens_casts_to_its_dtype(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    wanted = {name: value.astype(ml_dtypes.bfloat16).astype("f4") for name, value in W.items()}
    check(folder(tmp_path, saelens(k=K, dtype="bfloat16")), "saelens", "topk", **wanted)
    wanted = {name: value.astype("f2").astype("f4") for name, value in W.items()}
    check(folder(tmp_path, saelens(k=K, dtype="torch.float16")), "saelens", "topk", **wanted)


def test_rounding_to_bfloat16():
    """To nearest, ties to even, as ml_dtypes does."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    bits[::2] = (bits[::2] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # ties
    values = bits.view("f4")
    values = values[np.isfinite(values) & (np.abs(values) < 3e38)]
    np.testing.assert_array_equal(to_precision(values, "bfloat16", "x"), values.astype(ml_dtypes.bfloat16).astype("f4"))


def test_bfloat16_files(tmp_path):
    """A safetensors file of bfloat16, from its bytes."""
    path = folder(tmp_path, saelens(k=K))
    header, data = {"__metadata__": {"format": "pt"}}, b""
    tensors = saelens()["sae_weights.safetensors"]
    for name, value in tensors.items():
        bits = (np.ascontiguousarray(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    text = json.dumps(header).encode()
    (path / "sae_weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert widen_bfloat16(np.array(0x3FC0, "u2")).shape == ()
    assert widen_bfloat16(np.array(0x3FC0, "u2")) == 1.5
    cut = {name: (np.ascontiguousarray(value).view(np.uint32) & 0xFFFF0000).view("f4") for name, value in W.items()}
    check(path, "saelens", "topk", **cut)


def test_sparsify(tmp_path):
    check(folder(tmp_path / "a", sparsify()), "sparsify", "topk", **W, k=K, pre_bias=True, transcoder=False)
    files = sparsify(transcode=True, skip_connection=True, num_latents=0, expansion_factor=2, d_in=P)
    wide = {"encoder.weight": array(2 * P, P), "encoder.bias": array(2 * P), "W_dec": array(2 * P, P, seed=1)}
    files["sae.safetensors"] = wide | {"b_dec": array(P), "W_skip": array(P, P)}
    wanted = {"encoder": array(2 * P, P), "encoder_bias": array(2 * P), "decoder": array(2 * P, P, seed=1)}
    wanted |= {"decoder_bias": array(P), "skip": array(P, P)}
    check(folder(tmp_path / "b", files), "sparsify", "topk", **wanted, k=K, pre_bias=False, transcoder=True)
    check(folder(tmp_path / "c", sparsify(signed=True)), "sparsify", "abs_topk", **W, k=K)


def test_folder_of_hookpoints(tmp_path):
    for name in ("layers.10.mlp", "layers.2.mlp"):
        folder(tmp_path / name, sparsify())
    with pytest.raises(ModelFileError, match=r"2 checkpoints, layers\.2\.mlp, layers\.10\.mlp; give the path") as error:
        read(tmp_path)
    assert str(tmp_path / "layers.2.mlp") in str(error.value)


DICTIONARIES = {
    "relu": ("AutoEncoder", LAYERS | {"bias": W["decoder_bias"]}, {}, dict(pre_bias=True)),
    "relu new": ("AutoEncoderNew", LAYERS | {"decoder.bias": W["decoder_bias"]}, {}, dict(pre_bias=False)),
    "topk": (
        "AutoEncoderTopK",
        LAYERS | {"b_dec": W["decoder_bias"], "k": COUNT, "threshold": np.array(0.3, "f4")},
        {"k": K},
        dict(k=K),
    ),
    "batch_topk": (
        "BatchTopKSAE",
        LAYERS | {"b_dec": W["decoder_bias"], "k": COUNT, "threshold": np.array(0.25, "f4")},
        {"k": K},
        dict(k=K, threshold=[0.25]),
    ),
    "batch_topk unset": (
        "BatchTopKSAE",
        LAYERS | {"b_dec": W["decoder_bias"], "k": COUNT, "threshold": np.array(-1, "f4")},
        {},
        dict(k=K),
    ),
    "matryoshka": (
        "MatryoshkaBatchTopKSAE",
        MATRICES | {"k": COUNT, "threshold": np.array(0.25, "f4"), "group_sizes": np.array([4, 9])},
        {"k": K, "group_sizes": [4, 9]},
        dict(k=K, threshold=[0.25], group_sizes=(4, 9)),
    ),
    "jumprelu": (
        "JumpReluAutoEncoder",
        MATRICES | {"threshold": positive(N)},
        {},
        dict(threshold=positive(N), pre_bias=False),
    ),
}


@pytest.mark.parametrize("case", DICTIONARIES)
def test_dictionary_learning(case, tmp_path):
    name, state, trainer, wanted = DICTIONARIES[case]
    got = check(
        folder(tmp_path, dictionary(name, state, **trainer)), "dictionary_learning", case.split()[0], **W, **wanted
    )
    assert got.metadata["buffer"] == {"ctx_len": 128}


def test_dictionary_learning_gated(tmp_path):
    state = {name: LAYERS[name] for name in ("encoder.weight", "decoder.weight")} | GATES
    files = dictionary("GatedAutoEncoder", state | {"decoder_bias": W["decoder_bias"]})
    wanted = {name: W[name] for name in ("encoder", "decoder", "decoder_bias")}
    wanted |= {
        "gate_bias": GATES["gate_bias"],
        "magnitude_bias": GATES["mag_bias"],
        "magnitude_log_scale": GATES["r_mag"],
    }
    check(folder(tmp_path, files), "dictionary_learning", "gated", **wanted)


def test_openai(tmp_path):
    got = check(
        folder(tmp_path / "a", openai(**TOPK)), "openai", "topk", **W, k=K, normalization="layer", pre_bias=True
    )
    np.testing.assert_allclose(got.sparsity, np.log10(positive(N) / 100), rtol=1e-5)
    files = openai(latents_activation_frequency=np.ones(N, "f4"))
    del files["autoencoder.pt"]["decoder.weight"]
    path = folder(tmp_path / "b", files) / "autoencoder.pt"
    check(path, "openai", "relu", **W | {"decoder": W["encoder"]}, normalization=None, sparsity=None)
    with pytest.raises(ModelFileError, match="postact_fn"):
        read(
            folder(tmp_path / "c", openai(activation="TopK", activation_state_dict={"k": 3, "postact_fn": "Identity"}))
        )
    with pytest.raises(ModelFileError, match="Identity"):
        read(folder(tmp_path / "c", openai(activation="Identity")))


def test_gemma_scope(tmp_path):
    wanted = {"encoder": array(P, N).T, "decoder": W["decoder"], "encoder_bias": array(N), "decoder_bias": array(P)}
    check(gemma_scope(tmp_path), "gemma_scope", "jumprelu", **wanted, threshold=positive(N), pre_bias=False)
    check(tmp_path / "params.npz", "gemma_scope", "jumprelu", **wanted, threshold=positive(N))
    np.savez(tmp_path / "params.npz", W_enc=np.array([object()], dtype=object))
    with pytest.raises(ModelFileError, match="npz"):
        read(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"PK\3\4 broken")
    with pytest.raises(ModelFileError, match="npz"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["sae", "transcoder", "affine"])
def test_gemma_scope_2(kind, tmp_path):
    tensors = gemma_scope_2(tmp_path, kind=kind)
    wanted = {"encoder": tensors["w_enc"].T, "decoder": tensors["w_dec"], "encoder_bias": tensors["b_enc"]}
    wanted |= {"decoder_bias": tensors["b_dec"], "threshold": tensors["threshold"], "transcoder": kind != "sae"}
    if kind == "affine":
        wanted["skip"] = tensors["affine_skip_connection"].T
    check(tmp_path, "gemma_scope_2", "jumprelu", **wanted, pre_bias=False)


def test_gemma_scope_2_across_layers(tmp_path):
    gemma_scope_2(tmp_path, kind="transcoder")
    tensors = {"w_enc": array(P, N), "w_dec": array(N, 2, P), "b_enc": array(N), "b_dec": array(P)}
    folder(tmp_path, {"params.safetensors": tensors | {"threshold": positive(N)}})
    with pytest.raises(ModelFileError, match="w_dec"):
        read(tmp_path)


@pytest.mark.parametrize("out", [2.1, 4.2])
def test_llama_scope(out, tmp_path):
    """From the definition: scale, encode, JumpReLU at θ·s, decode, scale back."""
    hook = "blocks.0.x" if out == 2.1 else "blocks.0.y"
    norms = {"in": 2.1, "out": out}
    t = llama_scope(tmp_path, dataset_average_activation_norm=norms, hook_point_out=hook)
    x, s = array(20, P).astype("f8"), P**0.5 / 2.1
    z = x * s @ t["encoder.weight"].T.astype("f8") + t["encoder.bias"]
    code = z * (z > 0.4 * s)
    y = (code @ t["decoder.weight"].T.astype("f8") + t["decoder.bias"]) / (P**0.5 / out)
    got = read(tmp_path)
    assert detect(tmp_path) == detect(tmp_path / "checkpoints" / "final.safetensors") == "llama_scope"
    assert got.transcoder == (out != 2.1)
    np.testing.assert_allclose(encode(got, x), code, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decode(got, code, x), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk", "batchtopk"])
def test_language_model_saes(act_fn, by_norm, tmp_path):
    """From the package's definition; codes of the top-k kinds are multiplied by the decoder's norms."""
    files = language_model_saes(act_fn=act_fn, sparsity_include_decoder_norm=by_norm)
    log_threshold = array(N, seed=8) * np.float32(0.3)
    if act_fn == "jumprelu":
        files["sae_weights.safetensors"]["activation_function.log_jumprelu_threshold"] = log_threshold
    got = read(folder(tmp_path, files))
    assert detect(tmp_path) == "language_model_saes"
    x, s = array(20, P).astype("f8"), P**0.5 / 2.5
    norm = np.linalg.norm(W["decoder"].astype("f8"), axis=1) if by_norm else np.ones(N)
    z = (x * s @ W["encoder"].T.astype("f8") + W["encoder_bias"]) * norm
    if act_fn == "jumprelu":
        f = z * (z > np.exp(log_threshold.astype("f8")))
    else:
        f = np.maximum(z, 0)
        if act_fn == "topk":
            f = f * (f >= np.sort(f, 1)[:, [-K]])
        elif act_fn == "batchtopk":
            f = f * (f >= np.sort(f.ravel())[-K * 20])
    f = f / norm
    y = (f @ W["decoder"].astype("f8") + W["decoder_bias"]) / s
    mine = encode(got, x)
    np.testing.assert_allclose(mine / (norm if "topk" in act_fn else 1), f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decode(got, mine, x), y, rtol=1e-5, atol=1e-6)


def test_language_model_saes_inference(tmp_path):
    files = language_model_saes(norm_activation="inference")
    files["sae_weights.safetensors"]["dataset_average_activation_norm.blocks.7.x"] = np.array(np.nan, "f4")  # unset
    check(folder(tmp_path, files), "language_model_saes", "relu", **W, pre_bias=False)


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.linear.weight"])
def test_sentence_transformers(name, tmp_path):
    wanted = W | {"decoder": W["encoder"]}
    files = sentence_transformers(name, normalize=True)
    check(folder(tmp_path / "2_SAE", files), "sentence_transformers", "topk", **wanted, k=K, normalization="layer")
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "2_SAE", "type": "b.SparseAutoEncoder"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    check(tmp_path, "sentence_transformers", "topk", **wanted, k=K)
    state = {key: value for key, value in files["model.safetensors"].items()}
    other = folder(tmp_path / "b", {"config.json": files["config.json"], "pytorch_model.bin": state})
    check(other, "sentence_transformers", "topk", **wanted, k=K)


def test_a_pt_file_says_nothing_of_the_files_beside_it(tmp_path):
    (tmp_path / "activations.pt").write_bytes(b"")
    (tmp_path / "own.safetensors").write_bytes(b"")
    assert detect(tmp_path / "activations.pt") == "openai"
    with pytest.raises(ModelFileError, match=r"files of fastae's own are for fastae\.load"):
        detect(tmp_path / "own.safetensors")
