"""Gemma Scope (params.npz) and Gemma Scope 2 (config.json, params.safetensors). Read only.

JumpReLU without pre-bias. The first release's transcoders have the same file as its autoencoders; both are read as
autoencoders, which gives the same numbers, as b_dec is not subtracted. Thresholds below 0 are read as 0, since a relu
is applied too. Embedding models of the first release were trained on rows times √p: give such rows.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...exceptions import ModelFileError
from .checkpoint import SparseCheckpoint
from .files import Config, Tensors, existing, folder_of, not_negative, read_json, read_safetensors, transposed

# what NumPy and zipfile raise on a damaged archive; NotImplementedError is a RuntimeError
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, EOFError, MemoryError, TypeError, RuntimeError)
ARCHIVE, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz; object arrays, which would be unpickled, are refused."""
    try:
        with open(existing(path, "the weights"), "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ModelFileError(f"{str(path)!r} is not a readable .npz file ({error}); fetch it again") from error


def read(path: Any) -> SparseCheckpoint:
    """A folder with params.npz, or that file."""
    path = folder_of(path) / ARCHIVE if Path(path).suffix != ".npz" else Path(path)
    tensors = Tensors(path, read_npz(path))
    p, n = tensors.shape("W_enc", 2)
    arrays = {
        "encoder": transposed(tensors.take("W_enc", (p, n))),
        "decoder": tensors.take("W_dec", (n, p)),
        "encoder_bias": tensors.take("b_enc", (n,)),
        "decoder_bias": tensors.take("b_dec", (p,)),
        "threshold": not_negative(tensors.take("threshold", (n,))),
    }
    tensors.finish("Gemma Scope")
    return SparseCheckpoint("jumprelu", arrays, pre_bias=False, metadata={"format": "gemma_scope"})


def read_second(path: Any) -> SparseCheckpoint:
    """A folder of Gemma Scope 2: an autoencoder, or a transcoder with or without an affine skip connection.

    Cross-layer transcoders and crosscoders, whose decoder has more than two dimensions, are refused.
    """
    folder = folder_of(path)
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    config.choice("architecture", ("jump_relu",))
    kind = config.choice("type", ("sae", "transcoder"), None)
    affine = config.take("affine_connection", (bool, type(None)), False)
    hooks = [config.take(f"hf_hook_point_{end}", (str, type(None)), None) for end in ("in", "out")]
    width = config.size("width", None)
    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    p, n = tensors.shape("w_enc", 2)
    p_out = tensors.shape("w_dec", 2)[1]
    if width not in (None, n):
        raise config.error(f"width={width}, but w_enc has {n} latents")
    other_hook = None not in hooks and hooks[0] != hooks[1]
    transcoder = kind == "transcoder" or (kind is None and (bool(affine) or other_hook or p != p_out))
    arrays = {
        "encoder": transposed(tensors.take("w_enc", (p, n))),
        "decoder": tensors.take("w_dec", (n, p_out)),
        "encoder_bias": tensors.take("b_enc", (n,)),
        "decoder_bias": tensors.take("b_dec", (p_out,)),
        "threshold": not_negative(tensors.take("threshold", (n,))),
    }
    if affine or "affine_skip_connection" in tensors:
        if affine is False and "affine_connection" in read_json(folder / CONFIG):
            raise config.error("affine_connection=false, but there is a tensor 'affine_skip_connection'")
        arrays["skip"] = transposed(tensors.take("affine_skip_connection", (p, p_out)))
    tensors.finish("Gemma Scope 2")
    named = {key: hook for key, hook in zip(("hf_hook_name", "hf_hook_name_out"), hooks, strict=True) if hook}
    metadata = {"format": "gemma_scope_2", **named, **config.finish(("model_name", "l0"))}
    return SparseCheckpoint("jumprelu", arrays, pre_bias=False, transcoder=transcoder, metadata=metadata)
