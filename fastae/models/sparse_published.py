"""Fitted sparse autoencoders from published checkpoints and back, through `fastae.io.sparse_checkpoints`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.sparse_checkpoints import SparseCheckpoint, read, write
from ..spec.sparse import AbsTopK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLUCode, TopK

if TYPE_CHECKING:
    from .sparse import SparseAutoencoder

_ARRAYS = {"encoder_bias": "b_enc", "decoder_bias": "b_dec"}


def from_checkpoint(cls: type, c: SparseCheckpoint, parameters: dict[str, Any]) -> SparseAutoencoder:
    """A fitted model that gives a checkpoint's codes; ``parameters`` of the estimator go before the checkpoint's."""
    arrays = dict(c.arrays)
    threshold: Any = arrays.pop("threshold", None)
    k = parameters.get("k", c.k)
    match c.architecture:
        case "topk":
            sparsity: Any = TopK(k)
        case "abs_topk":
            sparsity = AbsTopK(k)
        case "batch_topk":
            sparsity = BatchTopK(k)
        case "matryoshka":
            sparsity = Matryoshka(c.group_sizes, BatchTopK(k))
        case "jumprelu":
            sparsity = JumpReLU(logarithm=False)  # the very thresholds, not exponentials of logarithms
        case "gated":
            sparsity = Gated()
        case _:
            sparsity = ReLUCode()
    if threshold is not None and c.architecture != "jumprelu":
        if len(set(threshold.tolist())) > 1:  # of each latent its own, which is a jumprelu's
            sparsity = JumpReLU(logarithm=False)
        else:
            threshold = threshold[:1]
    known = {
        "sparsity": sparsity, "pre_bias": c.pre_bias, "normalization": c.normalization,
        # a skip connection, which sparsify's autoencoders may have too, is a transcoder's here
        "transcoder": c.transcoder or "skip" in arrays,
    } | ({} if k is None else {"k": k})  # fmt: skip
    named = {_ARRAYS.get(name, name): array for name, array in arrays.items() if name not in ("encoder", "decoder")}
    model = cls.from_arrays(  # type: ignore[attr-defined]
        arrays["encoder"], named.pop("b_enc", None), arrays["decoder"], named.pop("b_dec"), threshold=threshold,
        input_scale=c.input_scale, **named, **{**known, **parameters},
    )  # fmt: skip
    model.source_ = dict(c.metadata)
    return model


def to_checkpoint(model: SparseAutoencoder) -> SparseCheckpoint:
    network = model.network_
    arrays = {name: np.array(array) for name, array in model._arrays.items() if name != "threshold"}
    sparsity = network.sparsity
    architecture = sparsity.name
    if isinstance(sparsity, Matryoshka) and isinstance(sparsity.over, TopK):
        architecture = "topk"  # at inference it is one
    if isinstance(sparsity, JumpReLU) or network.selection.name == "batch_topk":
        threshold = np.array(model.threshold_, dtype=arrays["encoder"].dtype)
        if isinstance(sparsity, JumpReLU) or threshold[0] >= 0:
            arrays["threshold"] = threshold
    ends = np.array(network.groups or (), dtype=np.int64)
    # sparsify's autoencoders with a skip connection, which subtract the bias from x, go back to what they were
    transcoder = network.transcoder and not (network.skip and network.pre_bias)
    pre_bias = network.pre_bias
    if transcoder and pre_bias:  # libraries' transcoders have none: W (x − b) + c = W x + (c − W b)
        if "encoder_bias" not in arrays:
            raise ValueError("a gated transcoder with pre_bias=True is no library's; fastae's own file can hold it")
        product = arrays["encoder"].astype(np.float64) @ arrays["decoder_bias"].astype(np.float64)
        arrays["encoder_bias"] = (arrays["encoder_bias"] - product).astype(arrays["encoder_bias"].dtype)
        pre_bias = False
    sizes = tuple(np.diff(ends, prepend=0).tolist()) if architecture == "matryoshka" else None
    return SparseCheckpoint(
        architecture, arrays, k=network.k, group_sizes=sizes, pre_bias=pre_bias,
        normalization=network.normalization, input_scale=network.input_scale, transcoder=transcoder,
        metadata=getattr(model, "source_", {}),
    )  # fmt: skip


__all__ = ["from_checkpoint", "read", "to_checkpoint", "write"]
