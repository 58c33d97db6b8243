"""What every format is read into, and what follows from it: checks and exact foldings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from ...exceptions import ModelFileError

ARCHITECTURES = ("relu", "topk", "abs_topk", "batch_topk", "jumprelu", "gated", "matryoshka")
GATED = ("gate_bias", "magnitude_bias", "magnitude_log_scale")


@dataclass(frozen=True, eq=False)
class SparseCheckpoint:
    """A sparse autoencoder or transcoder, independent of where it came from.

    n latents, p input features, p_out output features (p unless it is a transcoder).

    architecture : one of ARCHITECTURES
    arrays : float32 or float64, C-contiguous
        encoder (n, p), decoder (n, p_out), encoder_bias (n,), decoder_bias (p_out,);
        threshold (n,) or (1,), never negative: jumprelu always; batch_topk and matryoshka where it was calibrated
        (the code at inference is z where z > threshold); without it the batch's k·m largest are the code;
        gate_bias, magnitude_bias, magnitude_log_scale (n,): gated, which has no encoder_bias;
        skip (p_out, p): added to the output as skip · x, x as given (neither centred nor normalised)
    k : active latents per row (topk, abs_topk), on average (batch_topk, matryoshka)
    group_sizes : sizes (not ends) of the nested groups of a matryoshka, summing to n
    pre_bias : decoder_bias is subtracted from (normalised) x before encoding; never for transcoders
    normalization : None; "layer": rows become (x − mean)/(s + 1e-5), s the unbiased deviation, and the output is
        multiplied by s and shifted by mean again (not for transcoders); "scale": x is multiplied by input_scale and the
        output divided by it
    rescale_by_decoder_norm : the code is selected and stated as z_j ‖d_j‖ and decoded as f_j d_j / ‖d_j‖. Readers
        fold this into the weights
    sparsity : (n,) log10 of the latents' firing frequency
    metadata : plain JSON: what the source said beyond that
    """

    architecture: str
    arrays: dict[str, np.ndarray]
    k: int | None = None
    group_sizes: tuple[int, ...] | None = None
    pre_bias: bool = True
    normalization: str | None = None
    input_scale: float = 1.0
    rescale_by_decoder_norm: bool = False
    transcoder: bool = False
    sparsity: np.ndarray | None = None
    metadata: dict = field(default_factory=dict)

    def checked(self, where: str) -> SparseCheckpoint:
        """Itself, or ModelFileError that says what does not fit together."""
        _check(self, where)
        return self

    def replace(self, arrays: dict[str, np.ndarray], **changes: object) -> SparseCheckpoint:
        """A copy with some arrays exchanged and other fields changed; dtypes and layout are kept."""
        dtype = self.arrays["encoder"].dtype
        new = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
        return dataclasses.replace(self, arrays={**self.arrays, **new}, **changes)  # type: ignore[arg-type]


def _check(checkpoint: SparseCheckpoint, where: str) -> None:
    c, arrays = checkpoint, checkpoint.arrays

    def fail(what: str) -> ModelFileError:
        return ModelFileError(f"{where}: {what}")

    if c.architecture not in ARCHITECTURES:
        raise fail(f"architecture {c.architecture!r} must be one of {ARCHITECTURES}")
    for name in ("encoder", "decoder"):
        if name not in arrays or arrays[name].ndim != 2 or 0 in arrays[name].shape:
            raise fail(f"array {name!r} is missing or no matrix of at least (1, 1)")
    n, p = arrays["encoder"].shape
    p_out = arrays["decoder"].shape[1]
    wanted: dict[str, list[tuple[int, ...]]] = {
        "encoder": [(n, p)],
        "decoder": [(n, p_out)],
        "decoder_bias": [(p_out,)],
    }
    wanted |= {name: [(n,)] for name in (GATED if c.architecture == "gated" else ("encoder_bias",))}
    optional: dict[str, list[tuple[int, ...]]] = {"skip": [(p_out, p)]}
    if c.architecture in ("batch_topk", "matryoshka"):
        optional["threshold"] = [(n,), (1,)]
    if c.architecture == "jumprelu":
        wanted["threshold"] = [(n,), (1,)]
    for name, shapes in {**optional, **wanted}.items():
        if name not in arrays:
            if name in wanted:
                raise fail(f"array {name!r} is missing; {c.architecture} needs {sorted(wanted)}")
            continue
        array = arrays[name]
        if array.shape not in shapes:
            raise fail(f"array {name!r} has shape {array.shape}, wanted {' or '.join(map(str, shapes))}")
        if array.dtype not in (np.float32, np.float64):
            raise fail(f"array {name!r} is {array.dtype}, wanted float32 or float64")
        if not np.isfinite(array).all():
            raise fail(f"array {name!r} has NaN or infinite values; the checkpoint is unusable")
    if unknown := sorted(set(arrays) - set(wanted) - set(optional)):
        raise fail(f"array {unknown[0]!r} does not belong to {c.architecture}; known: {sorted({**wanted, **optional})}")
    if "threshold" in arrays and arrays["threshold"].min() < 0:
        raise fail("threshold has negative values; codes are not negative, so give max(threshold, 0)")
    if c.architecture in ("topk", "abs_topk") and c.k is None:
        raise fail(f"{c.architecture} needs k, the number of active latents per row")
    if c.k is not None and not (type(c.k) is int and 1 <= c.k <= n):
        raise fail(f"k={c.k!r} must be an integer from 1 to the {n} latents")
    if c.group_sizes is not None and (min(c.group_sizes, default=0) < 1 or sum(c.group_sizes) != n):
        raise fail(f"group_sizes={c.group_sizes} must be positive and sum to the {n} latents")
    if c.architecture == "matryoshka" and c.group_sizes is None:
        raise fail("matryoshka needs group_sizes, the sizes of its nested groups")
    if p != p_out and not c.transcoder:
        raise fail(f"{p} features go in and {p_out} come out, but it is no transcoder")
    if c.transcoder and c.pre_bias:
        raise fail("a transcoder's decoder_bias belongs to the output and cannot be subtracted from x; pre_bias=False")
    if c.normalization not in (None, "layer", "scale"):
        raise fail(f"normalization={c.normalization!r} must be None, 'layer' or 'scale'")
    if not (np.isfinite(c.input_scale) and c.input_scale > 0):
        raise fail(f"input_scale={c.input_scale!r} must be positive and finite")
    if c.sparsity is not None and (c.sparsity.shape != (n,) or np.isnan(c.sparsity).any()):
        raise fail(f"sparsity has shape {c.sparsity.shape} or NaN, wanted ({n},) log10 frequencies")


BLOCK = 1024  # rows that are held in float64 at a time


def rows_times(array: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """Rows (n, ...) times a number, or one number each, rounded once."""
    factors = np.broadcast_to(np.asarray(factor, np.float64), len(array)).reshape(-1, *[1] * (array.ndim - 1))
    result = np.empty_like(array)
    for i in range(0, len(array), BLOCK):
        result[i : i + BLOCK] = array[i : i + BLOCK] * factors[i : i + BLOCK]
    return result


def row_norms(array: np.ndarray) -> np.ndarray:
    """Lengths of rows, float64."""
    blocks = (array[i : i + BLOCK].astype(np.float64) for i in range(0, len(array), BLOCK))
    return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])


def fold_scale(checkpoint: SparseCheckpoint) -> SparseCheckpoint:
    """The same function of raw x without "scale": encoder · s, decoder / s, decoder_bias / s. Codes are unchanged.

    A transcoder's output is in units of its own, which s says nothing about: ValueError.
    """
    c = checkpoint
    if c.normalization != "scale":
        return c
    if c.transcoder:
        raise ValueError("a transcoder's input scale says nothing about its output; fold both scales into the weights")
    c = fold_decoder_norm(c)  # lengths of decoder rows are about to change
    return scaled(c, c.input_scale, c.input_scale, normalization=None, input_scale=1.0)


def scaled(checkpoint: SparseCheckpoint, into: float, out: float, **changes: object) -> SparseCheckpoint:
    """Weights for raw arrays of a checkpoint whose input was multiplied by ``into`` and whose target by ``out``."""
    arrays = checkpoint.arrays
    new = {
        "encoder": rows_times(arrays["encoder"], into),
        "decoder": rows_times(arrays["decoder"], 1 / out),
        "decoder_bias": rows_times(arrays["decoder_bias"], 1 / out),
    }
    return checkpoint.replace(new, metadata={**checkpoint.metadata, "folded_input_scale": into}, **changes)


def fold_decoder_norm(checkpoint: SparseCheckpoint) -> SparseCheckpoint:
    """The same codes and outputs without ``rescale_by_decoder_norm``: decoder rows get length 1, encoder rows theirs.

    A threshold is already in units of z_j ‖d_j‖. A decoder row of zeros has code 0, as before.
    """
    c = checkpoint
    if not c.rescale_by_decoder_norm:
        return c
    if c.architecture not in ("topk", "abs_topk", "batch_topk", "matryoshka"):
        raise ValueError(f"rescale_by_decoder_norm belongs to the top-k kinds, not to {c.architecture}")
    norm = row_norms(c.arrays["decoder"])
    new = {
        "encoder": rows_times(c.arrays["encoder"], norm),
        "encoder_bias": rows_times(c.arrays["encoder_bias"], norm),
        "decoder": rows_times(c.arrays["decoder"], 1 / np.where(norm > 0, norm, 1)),
    }
    return c.replace(new, rescale_by_decoder_norm=False, metadata={**c.metadata, "folded_decoder_norm": True})
