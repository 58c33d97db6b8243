"""Sparse-autoencoder checkpoints: every format from files made here, without the packages, and what must be refused."""

import json
import os

import numpy as np
import pytest
import torch_zip
from safetensors.numpy import save_file
from sparse_numpy import decode, encode

from fastae.exceptions import ModelFileError
from fastae.io.sparse_checkpoints import READERS, SparseCheckpoint, detect, read, write
from fastae.io.sparse_checkpoints.checkpoint import fold_decoder_norm, fold_scale

P, N, Q, K = 7, 13, 5, 3  # features in, latents, features out, k


def array(*shape, seed=0, dtype="f4"):
    """Numbers that depend on the shape, so that a mistaken orientation shows."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def positive(*shape):
    return np.abs(array(*shape, seed=5)) + np.float32(0.1)


def folder(path, files):
    """Writes {name: dict of arrays or of JSON}, torch files by their ending."""
    for name, value in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            target.write_text(json.dumps(value))
        elif name.endswith(".npz"):
            np.savez(target, **value)
        elif name.endswith(".safetensors"):
            save_file({key: np.asarray(item, order="C") for key, item in value.items()}, target)
        else:
            torch_zip.save(target, value)
    return path


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


# ---- one folder of each format, as its package writes it ---

W = {"encoder": array(N, P), "decoder": array(N, P, seed=1), "encoder_bias": array(N), "decoder_bias": array(P)}


def saelens(architecture="topk", p_out=P, **config):
    base = {"d_in": P, "d_sae": N, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    base |= {"normalize_activations": "none", "reshape_activations": "none", "architecture": architecture}
    base |= {"metadata": {"sae_lens_version": "6.1.0", "hook_name": "blocks.1.hook_resid_post"}}
    tensors = {
        "W_enc": W["encoder"].T,
        "W_dec": array(N, p_out, seed=1),
        "b_enc": W["encoder_bias"],
        "b_dec": array(p_out),
    }
    return {"cfg.json": base | config, "sae_weights.safetensors": tensors}


def sparsify(**config):
    base = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": K}
    base |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": P}
    tensors = {"encoder.weight": W["encoder"], "encoder.bias": W["encoder_bias"], "W_dec": W["decoder"]}
    return {"cfg.json": base | config, "sae.safetensors": tensors | {"b_dec": W["decoder_bias"]}}


def dictionary(name, state, **trainer):
    trainer = {"dict_class": name, "activation_dim": P, "dict_size": N, "lr": 0.1} | trainer
    return {"config.json": {"trainer": trainer, "buffer": {"ctx_len": 128}}, "ae.pt": state}


LAYERS = {"encoder.weight": W["encoder"], "encoder.bias": W["encoder_bias"], "decoder.weight": W["decoder"].T}
MATRICES = {"W_enc": W["encoder"].T, "W_dec": W["decoder"], "b_enc": W["encoder_bias"], "b_dec": W["decoder_bias"]}
GATES = {"gate_bias": array(N, seed=2), "mag_bias": array(N, seed=3), "r_mag": array(N, seed=4)}
COUNT = np.array(K, "i4")


def openai(**more):
    state = {"pre_bias": W["decoder_bias"], "encoder.weight": W["encoder"], "latent_bias": W["encoder_bias"]}
    state |= {"decoder.weight": W["decoder"].T, "stats_last_nonzero": np.zeros(N, "i8")}
    state |= {"latents_activation_frequency": positive(N) / 100, "latents_mean_square": np.ones(N, "f4")}
    return {"autoencoder.pt": state | more}


TOPK = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def gemma_scope(path, p=P, n=N):
    tensors = {"W_enc": array(p, n), "W_dec": array(n, p, seed=1), "b_enc": array(n), "b_dec": array(p)}
    return folder(path, {"params.npz": tensors | {"threshold": positive(n)}})


def gemma_scope_2(path, p=P, n=N, kind="sae"):
    hook = "model.layers.3.output"
    config = {"architecture": "jump_relu", "width": n, "l0": 12, "model_name": "google/gemma-3-1b-pt"}
    config |= {"hf_hook_point_in": hook, "hf_hook_point_out": hook if kind == "sae" else hook + "2"}
    config |= {"type": "sae" if kind == "sae" else "transcoder", "affine_connection": kind == "affine"}
    tensors = {"w_enc": array(p, n), "w_dec": array(n, p, seed=1), "b_enc": array(n), "b_dec": array(p)}
    tensors["threshold"] = positive(n)
    if kind == "affine":
        tensors["affine_skip_connection"] = array(p, p, seed=6)
    folder(path, {"config.json": config, "params.safetensors": tensors})
    return tensors


def llama_scope(path, p=P, n=N, **config):
    base = {"d_model": p, "d_sae": n, "act_fn": "jumprelu", "jump_relu_threshold": 0.4, "use_decoder_bias": True}
    base |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 3.5, "out": 3.5}}
    base |= {"apply_decoder_bias_to_pre_encoder": False, "hook_point_in": "blocks.0.x", "hook_point_out": "blocks.0.x"}
    tensors = {"encoder.weight": array(n, p), "decoder.weight": array(p, n, seed=1), "encoder.bias": array(n)}
    files = {"hyperparams.json": base | config, "checkpoints/final.safetensors": tensors | {"decoder.bias": array(p)}}
    folder(path, files)
    return tensors | {"decoder.bias": array(p)}


def language_model_saes(**config):
    hooks = {"hook_point_in": "blocks.7.x", "hook_point_out": "blocks.7.x"}
    base = {"sae_type": "sae", "d_model": P, "expansion_factor": 13 / 7, "use_decoder_bias": True, "act_fn": "relu"}
    base |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False, "top_k": K} | hooks
    base |= {"use_triton_kernel": False, "jumprelu_threshold_window": 2.0, "use_glu_encoder": False}
    tensors = {"W_E": W["encoder"].T, "b_E": W["encoder_bias"], "W_D": W["decoder"], "b_D": W["decoder_bias"]}
    tensors["dataset_average_activation_norm.blocks.7.x"] = np.array(2.5, "f4")
    return {"config.json": base | config, "sae_weights.safetensors": tensors}


def sentence_transformers(name="encoder.weight", **config):
    base = {"input_dim": P, "hidden_dim": N, "k": K, "k_aux": 4, "normalize": False, "dead_threshold": 30}
    tensors = {name: W["encoder"], "pre_bias": W["decoder_bias"], "latent_bias": W["encoder_bias"]}
    tensors["stats_last_nonzero"] = np.zeros(N, "i8")
    return {"config.json": base | config, "model.safetensors": tensors}


# ---- reading ---


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


@pytest.mark.parametrize("out", [3.5, 7.0])
def test_llama_scope(out, tmp_path):
    """From the definition: scale, encode, JumpReLU at θ·s, decode, scale back."""
    hook = "blocks.0.x" if out == 3.5 else "blocks.0.y"
    norms = {"in": 3.5, "out": out}
    t = llama_scope(tmp_path, dataset_average_activation_norm=norms, hook_point_out=hook)
    x, s = array(20, P).astype("f8"), P**0.5 / 3.5
    z = x * s @ t["encoder.weight"].T.astype("f8") + t["encoder.bias"]
    code = z * (z > 0.4 * s)
    y = (code @ t["decoder.weight"].T.astype("f8") + t["decoder.bias"]) / (P**0.5 / out)
    got = read(tmp_path)
    assert detect(tmp_path) == detect(tmp_path / "checkpoints" / "final.safetensors") == "llama_scope"
    assert got.transcoder == (out != 3.5)
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


# ---- foldings ---


def make(architecture="topk", p_out=P, seed=0, dtype="f4", **fields):
    arrays = {
        "encoder": array(N, P, seed=seed),
        "decoder": array(N, p_out, seed=seed + 1),
        "decoder_bias": array(p_out),
    }
    if architecture == "gated":
        arrays |= {"gate_bias": array(N), "magnitude_bias": array(N, seed=3), "magnitude_log_scale": array(N, seed=4)}
    else:
        arrays["encoder_bias"] = array(N)
    if architecture == "jumprelu" or fields.pop("threshold", False):
        arrays["threshold"] = positive(N if architecture == "jumprelu" else 1)
    if fields.pop("skip", False):
        arrays["skip"] = array(p_out, P)
    if "topk" in architecture or architecture == "matryoshka":
        fields = {"k": K} | fields
    if architecture == "matryoshka":
        fields = {"group_sizes": (4, 9)} | fields
    if fields.get("transcoder"):
        fields = {"pre_bias": False} | fields
    arrays = {name: value.astype(dtype) for name, value in arrays.items()}
    return SparseCheckpoint(architecture, arrays, **fields).checked("test")


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
