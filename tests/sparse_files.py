"""Sparse-autoencoder checkpoints in every published format, as their packages write them, made of NumPy alone."""

import json

import numpy as np
import torch_zip
from safetensors.numpy import save_file

from fastae.io.sparse_checkpoints import SparseCheckpoint

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
    base |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.1, "out": 2.1}}
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
