"""Initial weights. W is (n_out, n_in); biases start at 0.

Sources: Glorot & Bengio (2010), He et al. (2015), LeCun et al. (1998), Saxe et al. (2014) for orthogonal weights.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spec.network import Network
from .spec.options import Option, choose


class Initializer(Option):
    """Gives the weights of one layer."""

    def weights(self, rng: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
        """W (n_out, n_in) of one layer, float64, drawn from ``rng``. Raises TypeError where layers are set together."""
        raise TypeError(
            f"{type(self).__name__} sets the first and the last layer together and cannot be one item of a list; give "
            "it as the whole initializer"
        )


@dataclass(frozen=True)
class Constant(Initializer):
    """Every weight is ``value``: all units of a layer stay equal for ever."""

    value: float = 0.0
    _intervals = {"value": (-math.inf, math.inf, "neither")}

    def weights(self, rng, n_out, n_in):
        return np.full((n_out, n_in), float(self.value))


@dataclass(frozen=True)
class Zeros(Initializer):
    """Every weight is 0: all units of a layer stay equal for ever."""

    def weights(self, rng, n_out, n_in):
        return np.zeros((n_out, n_in))


@dataclass(frozen=True)
class Ones(Initializer):
    """Every weight is 1: all units of a layer stay equal for ever."""

    def weights(self, rng, n_out, n_in):
        return np.ones((n_out, n_in))


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform on (−limit, limit)."""

    limit: float = 0.05
    _intervals = {"limit": (0.0, math.inf, "neither")}

    def weights(self, rng, n_out, n_in):
        return rng.uniform(-self.limit, self.limit, (n_out, n_in))


@dataclass(frozen=True)
class Normal(Initializer):
    """N(0, ``std``²)."""

    std: float = 0.05
    _intervals = {"std": (0.0, math.inf, "neither")}

    def weights(self, rng, n_out, n_in):
        return rng.normal(0.0, self.std, (n_out, n_in))


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """N(0, ``std``²) cut at ±2 ``std``: values outside are drawn again."""

    std: float = 0.05
    _intervals = {"std": (0.0, math.inf, "neither")}

    def weights(self, rng, n_out, n_in):
        w = rng.normal(0.0, 1.0, (n_out, n_in))
        while (outside := np.abs(w) > 2).any():
            w[outside] = rng.normal(0.0, 1.0, int(outside.sum()))
        return w * self.std


@dataclass(frozen=True)
class _Scaled(Initializer):
    """Zero mean, variance given by the layer's widths."""

    def variance(self, n_out: int, n_in: int) -> float:
        """Of the weights of a layer with ``n_in`` inputs and ``n_out`` outputs."""
        raise NotImplementedError

    def weights(self, rng, n_out, n_in):
        std = math.sqrt(self.variance(n_out, n_in))
        if type(self).__name__.endswith("Uniform"):
            return rng.uniform(-math.sqrt(3) * std, math.sqrt(3) * std, (n_out, n_in))
        return rng.normal(0.0, std, (n_out, n_in))


class _Xavier(_Scaled):
    def variance(self, n_out, n_in):
        return 2.0 / (n_in + n_out)


class _He(_Scaled):
    def variance(self, n_out, n_in):
        return 2.0 / n_in


class _LeCun(_Scaled):
    def variance(self, n_out, n_in):
        return 1.0 / n_in


@dataclass(frozen=True)
class XavierUniform(_Xavier):
    """Uniform with variance 2 / (n_in + n_out)."""


@dataclass(frozen=True)
class XavierNormal(_Xavier):
    """Normal with variance 2 / (n_in + n_out)."""


@dataclass(frozen=True)
class HeUniform(_He):
    """Uniform with variance 2 / n_in."""


@dataclass(frozen=True)
class HeNormal(_He):
    """Normal with variance 2 / n_in."""


@dataclass(frozen=True)
class LeCunUniform(_LeCun):
    """Uniform with variance 1 / n_in."""


@dataclass(frozen=True)
class LeCunNormal(_LeCun):
    """Normal with variance 1 / n_in."""


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Rows (or columns, whichever are fewer) are orthonormal, times ``gain``."""

    gain: float = 1.0
    _intervals = {"gain": (0.0, math.inf, "neither")}

    def weights(self, rng, n_out, n_in):
        a = rng.normal(size=(max(n_out, n_in), min(n_out, n_in)))
        q, r = np.linalg.qr(a)
        q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the distribution uniform
        return self.gain * (q if n_out >= n_in else q.T)


@dataclass(frozen=True)
class PCAInit(Initializer):
    """First encoder and last decoder layer from the leading principal components; the others by Xavier.

    With one layer each way, weights that are not tied and identity activations training starts at the PCA solution.
    Code units beyond the components that the rows have then begin with decoder weights of 0.
    """


INITIALIZERS = {
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
    "xavier_uniform": XavierUniform,
    "xavier_normal": XavierNormal,
    "glorot_uniform": XavierUniform,
    "glorot_normal": XavierNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "kaiming_uniform": HeUniform,
    "kaiming_normal": HeNormal,
    "lecun_uniform": LeCunUniform,
    "lecun_normal": LeCunNormal,
    "orthogonal": Orthogonal,
    "pca": PCAInit,
}
_BY_GAIN = {"xavier": XavierUniform(), "he": HeUniform(), "lecun": LeCunUniform()}


def from_arrays(arrays: Any, network: Network) -> list[tuple[np.ndarray, np.ndarray]]:
    """Checked copies of the caller's (W, b) pairs, one per layer."""
    layers = network.layers
    arrays = list(arrays)
    if len(arrays) != len(layers):
        raise ValueError(f"got {len(arrays)} pairs (W, b), the network has {len(layers)} layers; give one pair each")
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (pair, layer) in enumerate(zip(arrays, layers, strict=True)):
        try:
            w, b = pair
        except (TypeError, ValueError):
            raise ValueError(f"layer {i}: got {type(pair).__name__}, wanted a pair (W, b)") from None
        w = np.array(w, dtype=np.float64)
        b = np.zeros(layer.n_units) if b is None else np.array(b, dtype=np.float64).reshape(-1)
        if w.shape != (layer.n_units, layer.n_in) or b.shape != (layer.n_units,):
            raise ValueError(
                f"layer {i}: W has shape {w.shape}, b {b.shape}; wanted {(layer.n_units, layer.n_in)} and "
                f"{(layer.n_units,)}: W is (out, in)"
            )
        if layer.tied is not None and not np.array_equal(w, pairs[layer.tied][0].T):
            raise ValueError(f"layer {i}: W is tied to layer {layer.tied} and must be its transpose; untie the weights")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError(f"layer {i}: weights contain NaN or infinity; give finite ones")
        pairs.append((w, b))
    return pairs


def initial_weights(initializer: Any, network: Network, seed: int, sample: np.ndarray | None = None) -> list:
    """(W, b) of every layer in float64: a function of (initializer, network, seed, sample)."""
    layers = network.layers
    if isinstance(initializer, (list, tuple)):
        if not all(isinstance(item, (str, Initializer)) for item in initializer):
            return from_arrays(initializer, network)
        if len(initializer) != len(layers):
            raise ValueError(f"initializer has {len(initializer)} items for {len(layers)} layers; give one each")
        return _layered([choose("initializer", item, INITIALIZERS) for item in initializer], layers, seed)
    chosen: list[Initializer]
    if isinstance(initializer, str) and initializer == "auto":
        chosen = [
            _BY_GAIN[
                "he" if layer.pieces > 1 else layer.activation._row.init_gain if layer.activation._row else "xavier"
            ]
            for layer in layers
        ]
    else:
        option = choose("initializer", initializer, INITIALIZERS)
        if isinstance(option, (Zeros, Ones, Constant)):
            warnings.warn(
                f"{type(option).__name__} weights keep all units of a layer equal for ever; "
                "use initializer='auto' to train",
                UserWarning,
                stacklevel=4,
            )
        chosen = [XavierUniform() if isinstance(option, PCAInit) else option for _ in layers]
        if isinstance(option, PCAInit):
            return _pca(network, chosen, seed, sample)
    return _layered(chosen, layers, seed)


def philox_key(seed: int, i: int) -> np.ndarray:
    """Key of NumPy's Philox, which takes a list with a number of 2^63 or more for one of floats."""
    return np.array([seed % 2**64, i], dtype=np.uint64)


def _layered(chosen, layers, seed: int) -> list:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (option, layer) in enumerate(zip(chosen, layers, strict=True)):
        rng = np.random.Generator(np.random.Philox(key=philox_key(seed, i)))
        w = option.weights(rng, layer.n_units, layer.n_in) if layer.tied is None else pairs[layer.tied][0].T
        pairs.append((w, np.zeros(layer.n_units)))
    return pairs


def principal_directions(sample: np.ndarray, n: int) -> np.ndarray:
    """The n leading right singular vectors (n, p) of the centred sample; rows of zeros where it has fewer."""
    _, _, v = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)
    directions = np.zeros((n, sample.shape[1]))
    directions[: min(n, len(v))] = v[:n]
    return directions


def _pca(network: Network, chosen, seed: int, sample: np.ndarray | None) -> list:
    if sample is None:
        raise ValueError("initializer='pca' needs data; call fit, or give the weights as arrays")
    pairs = _layered(chosen, network.layers, seed)
    mean, v = sample.mean(axis=0), principal_directions(sample, network.n_features)
    first, last = pairs[0][0], pairs[-1][0]
    k = min(len(v), len(sample), first.shape[0], last.shape[1])
    first[:k] = v[:k]
    pairs[0][1][:k] = -v[:k] @ mean
    if len(last) == len(mean):  # else the outputs are parameters of a distribution
        last[:, :k] = v[:k].T
        if len(pairs) == 2 and network.layers[1].tied is None:  # Xavier's would add to what the components restore
            last[:, k:] = 0.0
        pairs[-1][1][:] = mean
    return pairs
