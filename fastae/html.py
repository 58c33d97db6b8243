"""Small pieces of HTML for notebooks: all text is escaped, colours follow the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

_CELL = "padding:1px 8px;text-align:right;border:none"
_POINTS = 200  # of a sparkline


def box(content: str) -> str:
    return f'<div class="fastae" style="font-size:small;margin:6px 0">{content}</div>'


def paragraph(text: str) -> str:
    return f'<p style="margin:2px 0">{escape(text)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(str(cell))}</{tag}>' for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<table style="border-collapse:collapse"><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table>'


def items(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of things said and their remedies; empty for none."""
    lines = "".join(f"<li>{escape(said)}<br><i>{escape(remedy)}</i></li>" for said, remedy in pairs)
    return f'<ul style="margin:4px 0">{lines}</ul>' if lines else ""


def sparkline(*curves: Sequence[float] | None, width: int = 240, height: int = 40) -> str:
    """An inline SVG of one or two curves over one scale, the second one dashed; empty without two points."""
    drawn = [np.asarray(curve, dtype=np.float64) for curve in curves if curve is not None and len(curve) > 1]
    drawn = [curve for curve in drawn if np.isfinite(curve).all()]
    if not drawn:
        return ""
    low, high = min(c.min() for c in drawn), max(c.max() for c in drawn)
    if low > 0 and high > 10 * low:
        drawn = [np.log(curve) for curve in drawn]
        low, high = np.log(low), np.log(high)
    lines = ""
    for curve, style in zip(drawn, ("", ' stroke-dasharray="4 2"'), strict=False):
        at = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _POINTS)).astype(int))
        x = 2 + at / (len(curve) - 1) * (width - 4)
        y = 2 + (high - curve[at]) / (high - low or 1.0) * (height - 4)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines += f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"{style}/>'
    return (f'<svg role="img" aria-label="loss curve" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">{lines}</svg>')  # fmt: skip


def model(estimator: Any) -> str:
    """A fitted dense model: its layers, its loss curve and facts of its fit."""
    from .diagnostics.report import activation_names, layer_names

    network = estimator.network_
    rows = [(name, f"{layer.n_in} → {layer.n_out}", activation, _extras(layer),
             f"{sum(n * k for _, n, k in layer.parameters):,}")
            for name, layer, activation in zip(layer_names(network), network.layers, activation_names(network),
                                               strict=True)]  # fmt: skip
    facts = [f"{estimator.n_parameters_:,} parameters", estimator.weights_[0][0].dtype.name,
             f"backend {estimator.backend_}"]  # fmt: skip
    if estimator.loss_curve_:
        facts.insert(0, f"{estimator.n_iter_:,} epochs, loss {estimator.loss_:.5g}")
    scores = estimator.validation_scores_
    if scores:
        facts.insert(1, f"best validation score {estimator.best_validation_score_:.5g} (dashed: loss of held-out rows)")
    curves = sparkline(estimator.loss_curve_, [-score for score in scores] if scores else None)
    header = ("layer", "in → out", "activation", "", "parameters")
    return box(table(header, rows) + curves + paragraph("; ".join(facts)))


def _extras(layer: Any) -> str:
    """What a layer has beside its activation."""
    extras = [] if layer.norm is None else [type(layer.norm).__name__]
    if layer.residual:
        extras.append("skip")
    if layer.tied is not None:
        extras.append(f"tied to layer {layer.tied}")
    if layer.dropout:
        extras.append(f"dropout {layer.dropout:g}")
    return ", ".join(extras)
