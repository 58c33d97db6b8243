"""How a sparse autoencoder begins: decoder rows, bias, scale of the encoder, scale of the input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..plan import schema
from ..plan.plan import Source
from ..plan.sparse import sparse_inference_plan
from ..spec.sparse import JumpReLU, SparseNetwork
from .sparse_memory import CompiledCode

SAMPLE_ROWS = 16384  # that the bias and the input's scale are taken from
_SCALE_ROWS = 512
INITIALIZERS = ("random", "data")
BIAS_INITIALIZERS = ("geometric_median", "mean", "zeros")


def input_scale(x: np.ndarray) -> float:
    """√p / mean ‖x‖, so that rows have a mean norm of √p."""
    mean = float(np.linalg.norm(x, axis=1).mean())
    if mean == 0:
        return 1.0
    if not 1e-30 < mean < 1e30:
        raise ValueError(
            f"normalization='scale': rows of X have a mean norm of {mean:.3g}; wanted 1e-30 to 1e30; rescale X"
        )
    return float(np.sqrt(x.shape[1]) / mean)


def geometric_median(x: np.ndarray, iterations: int = 100, tolerance: float = 1e-6) -> np.ndarray:
    """The point with the least sum of distances to the rows of x (N, p), by Weiszfeld's iteration (1937), float64."""
    centre = x.mean(axis=0)
    smallest = 1e-12 * (1.0 + np.abs(x).max(initial=0.0))
    for _ in range(iterations):
        distance = np.maximum(np.linalg.norm(x - centre, axis=1), smallest)
        new = (x / distance[:, None]).sum(axis=0) / (1.0 / distance).sum()
        moved = np.linalg.norm(new - centre)
        centre = new
        if moved <= tolerance * (1e-30 + np.linalg.norm(centre)):
            break
    return centre


def in_training_units(network: SparseNetwork, x: np.ndarray) -> np.ndarray:
    """Rows as the plan's first ops make them."""
    if network.normalization == "layer":
        mean = x.mean(axis=1, keepdims=True)
        spread = x.std(axis=1, ddof=1, keepdims=True) if x.shape[1] > 1 else 0.0
        return (x - mean) / (spread + 1e-5)
    return x * network.input_scale if network.normalization == "scale" else x


def starting_arrays(
    network: SparseNetwork, x: np.ndarray, y: np.ndarray, seed: int, initializer: str, bias: str
) -> dict[str, np.ndarray]:
    """Arrays by parameter, float64; x, y: a sample of inputs and targets in the data's units."""
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, 0x5AE]))
    x = in_training_units(network, x)
    if not (network.transcoder and network.normalization == "layer"):
        y = in_training_units(network, y)
    n, p, q = network.n_components, network.n_features, network.n_targets
    centre = {"geometric_median": geometric_median, "mean": lambda a: a.mean(axis=0), "zeros": lambda a: a[0] * 0.0}
    arrays = {name: np.zeros((rows, columns)) for name, rows, columns in network.parameters}
    arrays["decoder_bias"][0] = centre[bias](y)
    inner = x - arrays["decoder_bias"] if network.pre_bias else x
    directions = rng.normal(size=(n, p))
    if initializer == "data":
        drawn = inner[rng.integers(len(inner), size=n)]
        size = np.linalg.norm(drawn, axis=1, keepdims=True)
        # a little noise tells latents of the same row apart
        drawn = np.divide(drawn, size, out=np.zeros_like(drawn), where=size > 0)
        directions = drawn + 0.01 * directions / np.sqrt(p) + (size == 0) * directions
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)
    arrays["encoder"] = directions
    if network.transcoder:  # inputs say nothing of the outputs' directions
        decoder = rng.normal(size=(n, q))
        arrays["decoder"] = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    else:
        arrays["decoder"] = directions.copy()
    sparsity = network.sparsity
    if isinstance(sparsity, JumpReLU):
        arrays["threshold"][...] = np.log(sparsity.threshold) if sparsity.logarithm else sparsity.threshold
    return arrays


def fit_scale(
    backend: Any, network: SparseNetwork, dtype: np.dtype, spaces: list, x: np.ndarray, y: np.ndarray
) -> None:
    """Scales the encoder in the plan's memory so that the first reconstructions are as near as a factor can bring them.

    With many latents active, tied unit rows give a multiple of the input: a loss hundreds of times its variance.
    """
    n = min(len(x), _SCALE_ROWS)
    inner = replace(network, normalization=None, skip=False)
    x, y = in_training_units(network, x[:n]), in_training_units(network, y[:n])
    # no threshold of a batch is known yet: the k largest of each row stand for it
    k = min(network.k or 1, network.n_components) if network.selection.name == "batch_topk" else None
    plan = sparse_inference_plan(inner, dtype, part="reconstruct", k=k)
    compiled = CompiledCode(backend, plan, spaces[schema.THETA])
    out = np.empty((n, network.n_targets), dtype)
    compiled.run(Source(np.ascontiguousarray(x, dtype)), [out], 1)
    bias = plan.view(compiled.spaces, "decoder_bias").astype(np.float64)
    made, target = out - bias, y - bias
    square = float((made * made).sum())
    factor = float((made * target).sum()) / square if square > 0 else 1.0
    if np.isfinite(factor) and factor > 0:
        plan.view(compiled.spaces, "encoder")[...] *= dtype.type(factor)
