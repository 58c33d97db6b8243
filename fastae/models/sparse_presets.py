"""Conventions of the public libraries, where they differ, as parameters of `SparseAutoencoder`.

| | openai | sparsify | dictionary_learning | saelens |
|---|---|---|---|---|
| input | rows standardised | as it is | as it is | as it is |
| pre-bias, not of transcoders | yes | yes | yes | yes |
| decoder's bias | geometric median | mean | geometric median | zeros |
| objective | e² / variance | e² / variance | Σ e² | Σ e² |
| AuxK | 1/32, of the residual's variance | off; on: of the target's, scaled by dead / k | 1/32, of the residual's | 1, plain, scaled by dead / k, no relu |
| dead after | 10 million rows | 10 million | 10 million | 1,000 steps |
| Adam's ε | 6.25e-10 | 1e-8 | 1e-8, gradient norm clipped to 1 but of ReLU and Gated | 1e-8 |
| Adam's β₁ | 0.9 | 0.9 | 0.9; 0 of JumpReLU and Gated | 0.9 |
| learning rate | 2e-4 / √(n / 2¹⁴) | the same | the same | 3e-4 |
| threshold of BatchTopK averaged | | | 0.999 | 0.99 |
| weights averaged | 0.999 | no | no | no |
| JumpReLU | | | θ, ε = θ₀ = 0.001, (L0 / target − 1)², half a window, no pre-bias | θ ≥ 0, ε = 0.05, θ₀ = 0.01, λ L0, free norms |
| Gated | | | l1 of gates; decoder left alone | weighted by norms; decoder learns |
| ReLU | | | Σ f | Σ f ‖d‖, free norms |

All keep decoder rows at unit norm but ReLU, Gated and JumpReLU of SAELens, the first two of which weight by norms; its
TopK selects by z ‖d‖ with free norms, the same functions as unit norms. Schedules of rates are not part of a preset.

Checked against SAELens 6.54, sparsify 1.3 and dictionary_learning 0.1 (tests/test_sparse_parity.py). What a preset leaves
out, as it is not the library's default: SAELens's quadratic penalty, ``JumpReLU(2 target c, "row_quadratic", target)`` for
its coefficient c, and log θ, which earlier versions of it learned.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..spec import options
from ..spec.options import unknown
from ..spec.sparse import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLUCode, TopK


def _adam(**changes: Any) -> Any:
    return options.SOLVERS["adam"](**changes)


def _chosen(library: str, sparsity: str, table: dict[str, Any]) -> Any:
    if sparsity not in table:
        raise unknown(f"sparsity of the preset {library!r}", sparsity, table)
    return table[sparsity]


def _openai(sparsity: str) -> dict[str, Any]:
    return {
        "sparsity": _chosen("openai", sparsity, {"topk": TopK(aux=AuxK())}),
        "normalization": "layer", "loss": "normalized", "ema": 0.999, "dead_after": 10_000_000,
    }  # fmt: skip


def _sparsify(sparsity: str) -> dict[str, Any]:
    return {
        "sparsity": _chosen("sparsify", sparsity, {"topk": TopK(aux=None)}),
        "loss": "normalized", "bias_initializer": "mean", "dead_after": 10_000_000, "solver": _adam(),
    }  # fmt: skip


def _dictionary_learning(sparsity: str) -> dict[str, Any]:
    aux = AuxK(strength=1 / 32, norm="residual")
    table = {
        "topk": TopK(aux=aux), "batch_topk": BatchTopK(aux=aux), "matryoshka": Matryoshka(over=BatchTopK(aux=aux)),
        "jumprelu": JumpReLU(
            1.0, "quadratic", 20.0, bandwidth=0.001, threshold=0.001, logarithm=False, window="above"
        ),
        "gated": Gated(0.1), "relu": ReLUCode(0.1, weighted=False),
    }  # fmt: skip
    return {
        "sparsity": _chosen("dictionary_learning", sparsity, table), "dead_after": 10_000_000,
        "solver": _adam(beta1=0.0 if sparsity in ("jumprelu", "gated") else 0.9,
                        clip_norm=None if sparsity in ("relu", "gated") else 1.0),
        "pre_bias": sparsity != "jumprelu",
    }  # fmt: skip


def _saelens(sparsity: str) -> dict[str, Any]:
    aux = AuxK(strength=1.0, norm="none", scaled=True, relu=False)
    batch = BatchTopK(aux=aux, threshold_decay=0.99)
    table = {
        "topk": TopK(aux=aux), "batch_topk": batch, "matryoshka": Matryoshka(over=batch),
        "jumprelu": JumpReLU(1.0, bandwidth=0.05, threshold=0.01, logarithm=False), "relu": ReLUCode(1.0),
        "gated": Gated(1.0, weighted=True, detached=False),
    }  # fmt: skip
    return {
        "sparsity": _chosen("saelens", sparsity, table), "bias_initializer": "zeros", "learning_rate": 3e-4,
        "dead_after": 4_096_000, "solver": _adam(), "unit_norm": sparsity not in ("relu", "gated", "jumprelu"),
    }  # fmt: skip


PRESETS: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai": _openai, "sparsify": _sparsify, "dictionary_learning": _dictionary_learning, "saelens": _saelens,
}  # fmt: skip


def preset_parameters(library: str, sparsity: str, transcoder: bool = False) -> dict[str, Any]:
    """Parameters of an estimator with a library's conventions for a kind of code, by its name."""
    if library not in PRESETS:
        raise unknown("preset", library, PRESETS)
    if not isinstance(sparsity, str):
        raise TypeError(f"sparsity={sparsity!r} must be a name; a preset makes the option: change it afterwards")
    found = PRESETS[library](sparsity)
    return found | {"pre_bias": False} if transcoder else found
