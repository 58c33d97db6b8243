"""How a sparse autoencoder begins: decoder rows, bias, scale of the encoder, scale of the input."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ..initializers import philox_key
from ..plan import schema
from ..plan.plan import Source
from ..plan.sparse import sparse_inference_plan
from ..spec.sparse import JumpReLU, SparseNetwork
from .sparse_memory import CompiledCode

SAMPLE_ROWS = 16384  # that the bias and the input's scale are taken from
_SCALE_ROWS = 512
_BLOCK_ROWS = 1024  # latents that are drawn together; streams are numbered by it, so it decides what is drawn
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
        new, weights = np.zeros_like(centre), 0.0
        for first in range(0, len(x), _BLOCK_ROWS):  # no copy of all rows
            rows = x[first : first + _BLOCK_ROWS]
            weight = 1.0 / np.maximum(np.linalg.norm(rows - centre, axis=1), smallest)
            new += weight @ rows
            weights += weight.sum()
        new /= weights
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


def start_weights(
    network: SparseNetwork, view: Callable[[str], np.ndarray], x: np.ndarray, y: np.ndarray, seed: int,
    initializer: str, bias: str, n_threads: int,
) -> None:  # fmt: skip
    """Fills the parameters, which are zeros.

    view : name of a parameter -> its array; x, y : a sample of inputs and targets in the data's units. Latents are
    drawn in blocks, each from a stream of its own, so that the number of threads changes nothing.
    """
    x = in_training_units(network, x)
    if not (network.transcoder and network.normalization == "layer"):
        y = in_training_units(network, y)
    centre = {"geometric_median": geometric_median, "mean": lambda a: a.mean(axis=0), "zeros": lambda a: a[0] * 0.0}
    decoder_bias = centre[bias](y)
    view("decoder_bias")[0] = decoder_bias
    inner = x - decoder_bias if network.pre_bias and initializer == "data" else x
    encoder, decoder = view("encoder"), view("decoder")

    @np.errstate(all="ignore")  # of this thread; what overflows here is found in the first loss
    def begin(first: int) -> None:
        counter = [0, 0, 0, first // _BLOCK_ROWS]
        rng = np.random.Generator(np.random.Philox(key=philox_key(seed, 0x5AE), counter=counter))
        rows = slice(first, min(first + _BLOCK_ROWS, network.n_components))
        directions = rng.normal(size=encoder[rows].shape)
        if initializer == "data":
            drawn = inner[rng.integers(len(inner), size=len(directions))]
            size = np.linalg.norm(drawn, axis=1, keepdims=True)
            # a little noise tells latents of the same row apart
            drawn = np.divide(drawn, size, out=np.zeros_like(drawn), where=size > 0)
            directions = drawn + 0.01 * directions / np.sqrt(network.n_features) + (size == 0) * directions
        encoder[rows] = unit_rows(directions)
        # a transcoder's inputs say nothing of its outputs' directions
        decoder[rows] = unit_rows(rng.normal(size=decoder[rows].shape)) if network.transcoder else encoder[rows]

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(begin, range(0, network.n_components, _BLOCK_ROWS)))
    sparsity = network.sparsity
    if isinstance(sparsity, JumpReLU):
        view("threshold")[...] = np.log(sparsity.threshold) if sparsity.logarithm else sparsity.threshold


def unit_rows(directions: np.ndarray) -> np.ndarray:
    return directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)


def fit_scale(
    backend: Any, network: SparseNetwork, dtype: np.dtype, spaces: list, x: np.ndarray, y: np.ndarray, bf16: int = 0
) -> None:
    """Scales the encoder in the plan's memory so that the first reconstructions are as near as a factor can bring them.

    With many latents active, tied unit rows give a multiple of the input: a loss hundreds of times its variance.
    """
    n = min(len(x), _SCALE_ROWS)
    inner = replace(network, normalization=None, skip=False)
    x, y = in_training_units(network, x[:n]), in_training_units(network, y[:n])
    # no threshold of a batch is known yet: the k largest of each row stand for it
    k = min(network.k or 1, network.n_components) if network.selection.name == "batch_topk" else None
    plan = sparse_inference_plan(inner, dtype, part="reconstruct", k=k, bf16=bf16)
    compiled = CompiledCode(backend, plan, spaces[schema.THETA])
    out = np.empty((n, network.n_targets), dtype)
    compiled.run(Source(np.ascontiguousarray(x, dtype)), [out], 1)
    bias = plan.view(compiled.spaces, "decoder_bias").astype(np.float64)
    made, target = out - bias, y - bias
    square = float((made * made).sum())
    factor = float((made * target).sum()) / square if square > 0 else 1.0
    if np.isfinite(factor) and factor > 0:
        plan.view(compiled.spaces, "encoder")[...] *= dtype.type(factor)
