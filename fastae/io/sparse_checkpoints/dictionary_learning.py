"""dictionary_learning: ae.pt (a state dict) and config.json {trainer, buffer}. Read only.

Classes AutoEncoder, AutoEncoderNew, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE, JumpReluAutoEncoder and
GatedAutoEncoder, told apart by ``trainer.dict_class``. What else the config has is about training and goes to the
metadata.

Where there are two readings:

- AutoEncoder: the package's loader rescales latents to unit decoder rows by default. Here weights stay as stored: the
  outputs are the same, the codes differ by that factor.
- AutoEncoderTopK stores a threshold too, which the package uses on request only: it goes to the metadata.
- BatchTopK and Matryoshka: a threshold below 0 is one that was never set; the package then encodes with a plain relu.
  Here the checkpoint has no threshold, so that the batch's k·m largest are the code.
- JumpReluAutoEncoder never subtracts b_dec when it is loaded from ae.pt.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import torch_file
from .checkpoint import SparseCheckpoint
from .files import Config, Tensors, existing, folder_of, not_negative, read_json, transposed

CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}


def read(path: Any) -> SparseCheckpoint:
    """A trainer's folder."""
    folder = folder_of(path)
    outer = Config(folder / CONFIG, read_json(folder / CONFIG))
    config = Config(folder / CONFIG, outer.take("trainer", dict))
    buffer = outer.take("buffer", (dict, type(None)), None)
    outer.finish()
    name = config.take("dict_class", str)
    if name not in CLASSES:
        raise config.error(f"trainer.dict_class={name!r} is not supported; fastae reads {sorted(CLASSES)}")
    architecture = CLASSES[name]
    state = torch_file.read(existing(folder / WEIGHTS, "the weights"))
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise config.error(f"{WEIGHTS} holds no state dict")
    tensors = Tensors(folder / WEIGHTS, state)
    # encoder and decoder as layers (n, p) and (p, n), or as matrices (p, n) and (n, p)
    layers = architecture not in ("matryoshka", "jumprelu")
    shape = tensors.shape("encoder.weight" if layers else "W_enc", 2)
    n, p = shape if layers else shape[::-1]
    n, p = config.size("dict_size", n), config.size("activation_dim", p)
    if layers:
        encoder = tensors.take("encoder.weight", (n, p))
        decoder = transposed(tensors.take("decoder.weight", (p, n)))
    else:
        encoder = transposed(tensors.take("W_enc", (p, n)))
        decoder = tensors.take("W_dec", (n, p))
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    arrays = {"encoder": encoder, "decoder": decoder, "decoder_bias": tensors.take(bias.get(name, "b_dec"), (p,))}
    if architecture == "gated":
        for ours, theirs in (
            ("gate_bias", "gate_bias"),
            ("magnitude_bias", "mag_bias"),
            ("magnitude_log_scale", "r_mag"),
        ):
            arrays[ours] = tensors.take(theirs, (n,))
    else:
        arrays["encoder_bias"] = tensors.take("encoder.bias" if layers else "b_enc", (n,))
    metadata: dict[str, Any] = {"format": "dictionary_learning", "dict_class": name}
    k = sizes = None
    if architecture == "jumprelu":
        arrays["threshold"] = not_negative(tensors.take("threshold", (n,)))
    elif architecture in ("topk", "batch_topk", "matryoshka"):
        k = config.size("k", None)
        if "k" in tensors or k is None:
            stored = tensors.integer("k")
            if k not in (None, stored):
                raise config.error(f"trainer.k={k}, but {WEIGHTS} has k={stored}")
            k = stored
        threshold = float(tensors.take("threshold", ())) if "threshold" in tensors else -1.0
        if architecture == "topk":
            metadata["threshold"] = threshold
        elif threshold >= 0:
            arrays["threshold"] = np.array([threshold], encoder.dtype)
    if architecture == "matryoshka":
        sizes = tuple(tensors.raw("group_sizes", tensors.shape("group_sizes", 1)).tolist())
        if any(type(size) is not int for size in sizes) or config.take("group_sizes", list, list(sizes)) != list(sizes):
            raise config.error(f"trainer.group_sizes is not {sizes}, which {WEIGHTS} has")
    tensors.finish(f"dictionary_learning's {name}")
    metadata = config.finish(lenient=True) | metadata | ({} if buffer is None else {"buffer": buffer})
    pre_bias = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return SparseCheckpoint(architecture, arrays, k=k, group_sizes=sizes, pre_bias=pre_bias, metadata=metadata)
