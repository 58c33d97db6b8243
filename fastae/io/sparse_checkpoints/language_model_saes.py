"""Language-Model-SAEs (OpenMOSS, ``sae_type`` "sae"): config.json and sae_weights.safetensors. Read only.

With ``norm_activation="dataset-wise"`` the weights belong to rows times √p / dataset_average_activation_norm.<hook>,
which is folded in: codes are those of scaled rows, as the package's ``encode`` gives them for normalised activations.
"inference" means that the package has already folded it.

Where there are two readings: with ``sparsity_include_decoder_norm`` the package selects by z_j ‖d_j‖ and states z_j.
For relu that changes nothing, for jumprelu the threshold becomes θ/‖d_j‖; for the top-k kinds the norm is folded into
the weights, so their codes are z_j ‖d_j‖ here, and the outputs the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checkpoint import SparseCheckpoint, fold_decoder_norm, row_norms, scaled
from .files import Config, Tensors, folder_of, read_json, read_safetensors, transposed

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm."
_ACTIVATIONS = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batch_topk"}
_IGNORED = (
    "use_triton_kernel",
    "sparsity_threshold_for_triton_spmm_kernel",
    "jumprelu_threshold_window",
    "device",
    "dtype",
)


def read(path: Any) -> SparseCheckpoint:
    """A folder that the package's ``save_pretrained`` wrote."""
    folder = folder_of(path)
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    config.choice("sae_type", ("sae",), "sae")
    p = config.size("d_model")
    expansion = config.take("expansion_factor", (int, float))
    if not (math.isfinite(expansion) and 1 <= p * expansion < 2**31):
        raise config.error(f"expansion_factor={expansion} gives no number of latents")
    n = int(p * expansion)
    architecture = _ACTIVATIONS[config.choice("act_fn", tuple(_ACTIVATIONS), "relu")]
    norm = config.choice("norm_activation", ("dataset-wise", "inference"), "dataset-wise")
    by_norm = config.take("sparsity_include_decoder_norm", bool, True)
    with_bias = config.take("use_decoder_bias", bool, True)
    config.choice("use_glu_encoder", (False,), False)
    k = config.take("top_k", int, 50)
    hooks = [config.take(f"hook_point_{end}", str) for end in ("in", "out")]
    transcoder = hooks[0] != hooks[1]
    metadata = {"format": "language_model_saes", "hook_name": hooks[0], "hook_name_out": hooks[1]}
    metadata |= config.finish(_IGNORED)
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    encoder = transposed(tensors.take("W_E", (p, n)))
    arrays = {
        "encoder": encoder,
        "encoder_bias": tensors.take("b_E", (n,)),
        "decoder": tensors.take("W_D", (n, p)),
        "decoder_bias": tensors.take("b_D", (p,)) if with_bias else np.zeros(p, encoder.dtype),
    }
    if architecture == "jumprelu":
        threshold = np.exp(tensors.take("activation_function.log_jumprelu_threshold", (n,)).astype(np.float64))
        if by_norm:
            threshold = threshold / np.maximum(row_norms(arrays["decoder"]), np.finfo(np.float32).tiny)
        limit = np.finfo(encoder.dtype).max  # a decoder row of zeros never fires
        arrays["threshold"] = np.minimum(threshold, limit).astype(encoder.dtype)
    factors = [1.0, 1.0]
    if norm == "dataset-wise":
        factors = [math.sqrt(p) / _average(tensors, hook) for hook in hooks]
    tensors.drop([name for name in tensors.names if name.startswith(_NORM)])
    tensors.finish("Language-Model-SAEs")
    top_k = architecture in ("topk", "batch_topk")
    checkpoint = SparseCheckpoint(
        architecture,
        arrays,
        k=k if top_k else None,
        pre_bias=False,
        rescale_by_decoder_norm=by_norm and top_k,
        transcoder=transcoder,
        metadata=metadata,
    )
    checkpoint = fold_decoder_norm(checkpoint)
    return checkpoint if norm == "inference" else scaled(checkpoint, *factors)


def _average(tensors: Tensors, hook: str) -> float:
    name = _NORM + hook
    shape = () if name not in tensors or tensors.left[name].ndim == 0 else (1,)
    value = float(tensors.raw(name, shape).reshape(()))
    tensors.left[name] = np.array(value)  # for the other end
    if not 0 < value < math.inf:
        raise Config(tensors.path, {}).error(f"{name}={value} must be positive")
    return value
