"""Sentence-Transformers' SparseAutoEncoder (CSR): config.json and model.safetensors. Read only.

The decoder is the encoder's transpose, so the file has one of the two names only. Rows are standardised where the
config says ``normalize``. The folder of a whole model, whose modules.json names the autoencoder's, may be given too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...exceptions import ModelFileError
from .. import torch_file
from .checkpoint import SparseCheckpoint
from .files import Config, Tensors, folder_of, read_json, read_safetensors

CONFIG, WEIGHTS, PICKLED, MODULES = "config.json", "model.safetensors", "pytorch_model.bin", "modules.json"


def module_of(folder: Path) -> Path | None:
    """The autoencoder's folder by a model's modules.json; None where there is none."""
    if not (folder / MODULES).is_file():
        return None
    try:
        modules = json.loads((folder / MODULES).read_bytes())
        found = [entry["path"] for entry in modules if str(entry["type"]).endswith(".SparseAutoEncoder")]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if len(found) != 1 or not isinstance(found[0], str) or Path(found[0]).name != found[0]:
        return None
    return folder / found[0]


def read(path: Any) -> SparseCheckpoint:
    """A module's folder, or its model's."""
    folder = folder_of(path)
    folder = module_of(folder) or folder
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    p, n, k = config.size("input_dim"), config.size("hidden_dim", 512), config.size("k", 8)
    normalize = config.take("normalize", bool, False)
    metadata = {"format": "sentence_transformers"} | config.finish(("k_aux", "dead_threshold"))
    if (folder / WEIGHTS).is_file() or not (folder / PICKLED).is_file():
        tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    else:
        state = torch_file.read(folder / PICKLED)
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ModelFileError(f"{str(folder / PICKLED)!r} holds no state dict")
        tensors = Tensors(folder / PICKLED, state)
    names = [name for name in ("encoder.weight", "decoder.linear.weight") if name in tensors] or ["encoder.weight"]
    weights = [tensors.take(name, (n, p)) for name in names]
    if not np.array_equal(weights[0], weights[-1]):
        raise ModelFileError(f"{str(tensors.path)!r}: {names[0]} and {names[-1]} differ, but they are tied")
    arrays = {
        "encoder": weights[0],
        "decoder": weights[0].copy(),
        "encoder_bias": tensors.take("latent_bias", (n,)),
        "decoder_bias": tensors.take("pre_bias", (p,)),
    }
    tensors.drop(("stats_last_nonzero",))
    tensors.finish("Sentence-Transformers' SparseAutoEncoder")
    return SparseCheckpoint("topk", arrays, k=k, normalization="layer" if normalize else None, metadata=metadata)
