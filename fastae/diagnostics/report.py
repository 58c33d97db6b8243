"""What a diagnosis says, as text and as HTML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .. import html
from ..plan.losses import shown_activation
from ..spec.network import Network


@dataclass(frozen=True)
class Finding:
    """Something that costs accuracy.

    kind : "output_range", "dead_units", "saturation", "no_better_than_mean", "still_learning", "feature_scale" or
        "never_observed"
    layer : index into ``weights_``, or None
    message, remedy : str
    """

    kind: str
    layer: int | None
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@dataclass(frozen=True)
class LayerReport:
    """Outputs of one layer over the rows that were looked at.

    name : "encoder 1", …, "code", "decoder 1", …, "output"
    n_in, n_out : widths of its input and output
    low, high, mean : of all outputs
    dead : share of units with the same output for every row
    saturated : share of outputs within 0.1 % of the ends of the activation's range; None where it is unbounded
    """

    name: str
    n_in: int
    n_out: int
    activation: str
    low: float
    high: float
    mean: float
    dead: float
    saturated: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What `Autoencoder.diagnose` found; ``print`` it, or let a notebook show it.

    layers : tuple of `LayerReport`
    data_range, output_range : (low, high) of the rows and of what the model gives for them
    explained_variance : 1 − squared error / variance of the rows, over all features; None for constant rows and where
        the reconstruction is not on the scale of the rows (multinomial and cosine loss)
    n_rows : rows that were looked at
    findings : tuple of `Finding`, empty when nothing is wrong
    """

    layers: tuple[LayerReport, ...]
    data_range: tuple[float, float]
    output_range: tuple[float, float]
    explained_variance: float | None
    n_rows: int
    findings: tuple[Finding, ...]

    def _table(self) -> list[tuple[str, ...]]:
        header = ("layer", "in → out", "activation", "lowest", "mean", "highest", "dead units", "saturated")
        rows: list[tuple[str, ...]] = [
            (r.name, f"{r.n_in} → {r.n_out}", r.activation, f"{r.low:.3g}", f"{r.mean:.3g}", f"{r.high:.3g}",
             f"{r.dead:.0%}", "" if r.saturated is None else f"{r.saturated:.0%}")
            for r in self.layers
        ]  # fmt: skip
        return [header, *rows]

    def _facts(self) -> str:
        (low, high), (least, most) = self.data_range, self.output_range
        explained = "" if self.explained_variance is None else f"; explained variance {self.explained_variance:.3f}"
        return f"{self.n_rows:,} rows, values {low:.4g} to {high:.4g}; output {least:.4g} to {most:.4g}{explained}"

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        found = [f"- {f.message}\n  remedy: {f.remedy}" for f in self.findings] or ["nothing found"]
        return "\n".join([self._facts(), *lines, *found])

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        found = html.items((f.message, f.remedy) for f in self.findings) or html.paragraph("nothing found")
        return html.box(html.paragraph(self._facts()) + html.table(header, rows) + found)


def layer_names(network: Network) -> list[str]:
    """ "encoder 1", …, "code", "decoder 1", …, "output"."""
    encoder = [f"encoder {i + 1}" for i in range(len(network.encoder) - 1)]
    decoder = [f"decoder {i + 1}" for i in range(len(network.decoder) - 1)]
    return [*encoder, "code", *decoder, "output"]


def activation_names(network: Network) -> list[str]:
    """The layers' activations as one would write them, the last one as ``reconstruct`` shows it.

    Where that is more than an activation (a likelihood's mean, heads) it is the loss's name.
    """
    output = network.loss.name if network.split_output else _written(shown_activation(network))
    return [*(_written(layer.activation) for layer in network.layers[:-1]), output]


def _written(option: Any) -> str:
    return repr(option) if dataclasses.is_dataclass(option) and dataclasses.fields(option) else option.name
