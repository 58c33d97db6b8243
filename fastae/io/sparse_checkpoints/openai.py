"""OpenAI's sparse_autoencoder: one .pt file with a state dict. Read only.

Where there are two readings:

- Nothing in the file says whether rows are standardised. Like the package: with the activation TopK they are.
- ``latents_activation_frequency`` becomes the sparsity, unless it is all ones, which is where it starts.
- A missing ``decoder.weight`` means tied weights: the decoder's rows are the encoder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...exceptions import ModelFileError
from .. import torch_file
from .checkpoint import SparseCheckpoint
from .files import Tensors, transposed


def file_of(path: Any) -> Path:
    """The .pt file itself, or the only one in a folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        names = [file.name for file in files]
        raise FileNotFoundError(f"{str(path)!r} has {len(files)} .pt files {names}; give the path of one")
    return files[0]


def read(path: Any) -> SparseCheckpoint:
    """A state dict of ReLU or TopK autoencoders."""
    path = file_of(path)
    state = torch_file.read(path)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ModelFileError(f"{str(path)!r} holds no state dict")
    activation, settings = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
    if activation not in ("ReLU", "TopK") or not isinstance(settings, dict):
        raise ModelFileError(
            f"{str(path)!r}: activation {str(activation)[:80]!r} is not supported; ReLU and TopK are read"
        )
    k = None
    if activation == "TopK":
        k, after = settings.pop("k", None), settings.pop("postact_fn", "ReLU")
        if type(k) is not int or after != "ReLU":
            raise ModelFileError(
                f"{str(path)!r}: TopK needs an integer k and postact_fn ReLU, not {k!r}, {after!r:.80}"
            )
    if settings:
        raise ModelFileError(
            f"{str(path)!r} has an activation setting {sorted(map(str, settings))[0]!r} that is not known"
        )
    tensors = Tensors(path, state)
    n, p = tensors.shape("encoder.weight", 2)
    arrays = {
        "encoder": tensors.take("encoder.weight", (n, p)),
        "encoder_bias": tensors.take("latent_bias", (n,)),
        "decoder_bias": tensors.take("pre_bias", (p,)),
    }
    if "decoder.weight" in tensors:
        arrays["decoder"] = transposed(tensors.take("decoder.weight", (p, n)))
    else:
        tied = (
            tensors.take("decoder.linear.weight", (n, p)) if "decoder.linear.weight" in tensors else arrays["encoder"]
        )
        if not np.array_equal(tied, arrays["encoder"]):
            raise ModelFileError(f"{str(path)!r}: decoder.linear.weight is not encoder.weight, but it is tied to it")
        arrays["decoder"] = tied.copy()
    sparsity = None
    if "latents_activation_frequency" in tensors:
        frequency = tensors.take("latents_activation_frequency", (n,))
        if not (frequency == 1).all():
            with np.errstate(divide="ignore", invalid="ignore"):
                sparsity = np.log10(frequency)
    tensors.drop(("stats_last_nonzero", "latents_mean_square"))
    tensors.finish("OpenAI's autoencoder")
    return SparseCheckpoint(
        "relu" if k is None else "topk",
        arrays,
        k=k,
        normalization=None if k is None else "layer",
        sparsity=sparsity,
        metadata={"format": "openai", "activation": activation},
    )
