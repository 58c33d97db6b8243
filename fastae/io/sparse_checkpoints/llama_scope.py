"""Llama Scope: hyperparams.json and checkpoints/final.safetensors. Read only.

The weights belong to rows scaled by s = √p / dataset_average_activation_norm.in; a scalar threshold θ is stated for raw
rows and is θ·s for scaled ones. s is folded into the weights: encoder · s, decoder and decoder bias / s_out, where
s_out is √p / dataset_average_activation_norm.out (the same but for transcoders). Codes are those of scaled rows.

Where there are two readings: decoder rows have lengths other than 1, and training compared z_j ‖d_j‖ with θ. This
compares z_j, as SAELens' reader does. Hyperparameters that are about training only go to the metadata.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checkpoint import SparseCheckpoint, scaled
from .files import Config, Tensors, folder_of, not_negative, read_json, read_safetensors, transposed

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


def read(path: Any) -> SparseCheckpoint:
    """A layer's folder."""
    folder = folder_of(path)
    if folder.name == "checkpoints" and not (folder / CONFIG).is_file():
        folder = folder.parent
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    p, n = config.size("d_model"), config.size("d_sae")
    config.choice("act_fn", ("jumprelu",), "jumprelu")
    config.choice("norm_activation", ("dataset-wise",), "dataset-wise")
    config.choice("use_glu_encoder", (False,), False)
    with_bias = config.take("use_decoder_bias", bool, True)
    pre_bias = config.take("apply_decoder_bias_to_pre_encoder", bool, False)
    theta = config.take("jump_relu_threshold", (int, float))
    norms = config.take("dataset_average_activation_norm", dict)
    hooks = [config.take(f"hook_point_{end}", (str, type(None)), None) for end in ("in", "out")]
    both = [norms.get(end, norms.get("in")) for end in ("in", "out")]
    if any(type(norm) not in (int, float) or not 0 < norm < math.inf for norm in both):
        raise config.error(f"dataset_average_activation_norm={norms} must have positive numbers 'in' and 'out'")
    if not math.isfinite(theta):
        raise config.error(f"jump_relu_threshold={theta} must be finite")
    into, out = (math.sqrt(p) / norm for norm in both)
    transcoder = hooks[1] is not None and hooks[0] != hooks[1]
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    encoder = tensors.take("encoder.weight", (n, p))
    arrays = {
        "encoder": encoder,
        "decoder": transposed(tensors.take("decoder.weight", (p, n))),
        "encoder_bias": tensors.take("encoder.bias", (n,)),
        "decoder_bias": tensors.take("decoder.bias", (p,)) if with_bias else np.zeros(p, encoder.dtype),
        "threshold": not_negative(np.array([theta * into], encoder.dtype)),
    }
    tensors.finish("Llama Scope")
    named = {key: hook for key, hook in zip(("hook_name", "hook_name_out"), hooks, strict=True) if hook}
    metadata = {**config.finish(lenient=True), **named, "format": "llama_scope"}
    if transcoder and pre_bias:
        raise config.error("apply_decoder_bias_to_pre_encoder=true contradicts different hook points in and out")
    if pre_bias and into != out:
        raise config.error("apply_decoder_bias_to_pre_encoder=true needs the same norm in and out")
    checkpoint = SparseCheckpoint("jumprelu", arrays, pre_bias=pre_bias, transcoder=transcoder, metadata=metadata)
    return scaled(checkpoint, into, out)
