"""sparsify (EleutherAI): cfg.json and sae.safetensors, one folder per hookpoint. Read and written.

Where there are two readings:

- The package decides by ``transcode`` alone whether b_dec is subtracted from x first; SAELens' own reader of this
  format goes by ``normalize_decoder``. This follows the package.
- ``signed`` (versions before 1.0, dropped by today's package): true selects by |z| and keeps the sign.
- ``skip_connection`` without ``transcode`` is allowed there, and here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .checkpoint import SparseCheckpoint, fold_decoder_norm, fold_scale, row_norms
from .files import Config, Tensors, folder_for, folder_of, read_json, read_safetensors, write_json, write_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(path: Any) -> SparseCheckpoint:
    """A hookpoint's folder."""
    folder = folder_of(path)
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    config.choice("activation", ("topk",), "topk")
    p, k = config.size("d_in"), config.size("k", 32)
    n, expansion = config.take("num_latents", int, 0), config.size("expansion_factor", 32)
    n = n or p * expansion
    transcode = config.take("transcode", bool, False)
    skip = config.take("skip_connection", bool, False)
    signed = config.take("signed", bool, False)
    metadata = {"format": "sparsify"} | config.finish(("normalize_decoder", "multi_topk"))
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    arrays = {
        "encoder": tensors.take("encoder.weight", (n, p)),
        "encoder_bias": tensors.take("encoder.bias", (n,)),
        "decoder": tensors.take("W_dec", (n, p)),
        "decoder_bias": tensors.take("b_dec", (p,)),
    }
    if skip:
        arrays["skip"] = tensors.take("W_skip", (p, p))
    tensors.finish("sparsify" if skip else "sparsify without skip_connection")
    architecture = "abs_topk" if signed else "topk"
    return SparseCheckpoint(architecture, arrays, k=k, pre_bias=not transcode, transcoder=transcode, metadata=metadata)


def write(path: Any, checkpoint: SparseCheckpoint) -> None:
    """A folder that sparsify loads with ``SparseCoder.load_from_disk`` and that gives the same codes.

    "scale" and ``rescale_by_decoder_norm`` are folded into the weights; an autoencoder without pre-bias becomes one
    with it, b_enc + W b_dec in place of b_enc: the same pre-activations up to rounding.
    """
    c = checkpoint
    if c.architecture != "topk":
        can = (
            "fastae's own file"
            if c.architecture in ("batch_topk", "matryoshka") and "threshold" not in c.arrays
            else ("format='saelens'")
        )
        raise ValueError(f"sparsify has top-k codes only, not {c.architecture}; {can} can")
    if c.normalization == "layer":
        raise ValueError("sparsify does not standardise its input (normalization='layer'); format='saelens' can")
    c = fold_decoder_norm(fold_scale(c))
    n, p = c.arrays["encoder"].shape
    p_out = c.arrays["decoder"].shape[1]
    if p != p_out:
        raise ValueError(f"sparsify needs as many features out ({p_out}) as in ({p}); fastae's own file can")
    bias = c.arrays["encoder_bias"]
    if not (c.pre_bias or c.transcoder):
        product = c.arrays["encoder"].astype(np.float64) @ c.arrays["decoder_bias"].astype(np.float64)
        bias = (bias + product).astype(bias.dtype)
    norm = row_norms(c.arrays["decoder"])
    config = {
        "activation": "topk",
        "expansion_factor": max(1, n // p),
        "normalize_decoder": bool(np.allclose(norm, 1, atol=1e-3)),
        "num_latents": n,
        "k": c.k,
        "multi_topk": False,
        "skip_connection": "skip" in c.arrays,
        "transcode": c.transcoder,
        "d_in": p,
    }
    tensors = {
        "encoder.weight": c.arrays["encoder"],
        "encoder.bias": bias,
        "W_dec": c.arrays["decoder"],
        "b_dec": c.arrays["decoder_bias"],
    }
    if "skip" in c.arrays:
        tensors["W_skip"] = c.arrays["skip"]
    dtype = c.arrays["encoder"].dtype
    folder = folder_for(path)
    write_safetensors(folder / WEIGHTS, {name: np.asarray(array, dtype) for name, array in tensors.items()})
    write_json(folder / CONFIG, config)
