"""Sparse autoencoders in plain NumPy, float64, from a SparseCheckpoint: what tests compare packages with."""

import numpy as np


def row_statistics(x):
    """Mean and unbiased deviation of each row, as columns."""
    return x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)


def prepared(checkpoint, x):
    """x as the encoder sees it: normalised, then centred."""
    x = np.asarray(x, np.float64)
    if checkpoint.normalization == "layer":
        mean, deviation = row_statistics(x)
        x = (x - mean) / (deviation + 1e-5)
    elif checkpoint.normalization == "scale":
        x = x * checkpoint.input_scale
    return x - checkpoint.arrays["decoder_bias"] if checkpoint.pre_bias else x


def keep_largest(z, by, k):
    """z where ``by`` is among the k largest of its row, the lowest index winning ties; else 0."""
    order = np.argsort(-by, axis=1, kind="stable")[:, :k]
    code = np.zeros_like(z)
    np.put_along_axis(code, order, np.take_along_axis(z, order, 1), 1)
    return code


def encode(checkpoint, x):
    """Dense code (m, n) of rows x (m, p)."""
    c = checkpoint
    a = {name: array.astype(np.float64) for name, array in c.arrays.items()}
    z = prepared(c, x) @ a["encoder"].T
    if c.architecture == "gated":
        gate = z + a["gate_bias"] > 0
        return gate * np.maximum(np.exp(a["magnitude_log_scale"]) * z + a["magnitude_bias"], 0)
    z = z + a["encoder_bias"]
    if c.rescale_by_decoder_norm:
        z = z * np.linalg.norm(a["decoder"], axis=1)
    if c.architecture == "relu":
        return np.maximum(z, 0)
    if c.architecture == "topk":
        return np.maximum(keep_largest(z, z, c.k), 0)
    if c.architecture == "abs_topk":
        return keep_largest(z, np.abs(z), c.k)
    if "threshold" in a:  # jumprelu, batch_topk, matryoshka
        return z * (z > a["threshold"])
    flat = np.maximum(z, 0).reshape(1, -1)
    return keep_largest(flat, flat, c.k * len(z)).reshape(z.shape)


def decode(checkpoint, code, x):
    """Output (m, p_out) of a code; x is needed for what normalisation and skip took from it."""
    c = checkpoint
    a = {name: array.astype(np.float64) for name, array in c.arrays.items()}
    if c.rescale_by_decoder_norm:
        norm = np.linalg.norm(a["decoder"], axis=1)
        code = code / np.where(norm > 0, norm, 1)
    y = code @ a["decoder"] + a["decoder_bias"]
    if c.normalization == "layer" and not c.transcoder:
        mean, deviation = row_statistics(np.asarray(x, np.float64))
        y = y * deviation + mean
    elif c.normalization == "scale":
        y = y / c.input_scale
    return y + np.asarray(x, np.float64) @ a["skip"].T if "skip" in a else y
