"""What can be wrong with a dense model: dead units, saturated layers, an output that cannot reach the data.

`diagnose` looks at everything and reports; `warn_before_fit` and `warn_after_fit` are what ``fit`` says of its own
accord, which is only what is certain and cheap to find. `fastae.diagnostics.pca` compares a model to PCA.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import exceptions
from ..models.graph import source_rows
from ..plan.plan import Source
from ..spec.network import Network
from .findings import fit_findings, layer_findings, out_of_reach
from .measure import FeatureStatistics, layer_statistics, rows_vary, sample
from .report import Diagnosis, Finding, LayerReport, activation_names, layer_names

FIT_ROWS = 512  # rows that ``fit`` looks at
FEW_ROWS = 128  # a fit on fewer is a trial, of which ``fit`` says nothing
DIAGNOSIS_ROWS = 4096
CATEGORIES = {
    "output_range": exceptions.OutputRangeWarning,
    "dead_units": exceptions.DeadUnitsWarning,
    "saturation": exceptions.SaturationWarning,
}


def diagnose(model: Any, X: Any) -> Diagnosis:
    """See `Autoencoder.diagnose`."""
    network = model._fitted_network()
    source, dtype = model._rows(X, min_rows=2)
    rows = sample(source.n_rows, DIAGNOSIS_ROWS)
    outputs, features = layer_statistics(network), FeatureStatistics(source.columns)
    matrix = source_rows(source)
    for part, layers in model._layer_outputs(source, dtype, rows):
        for statistics, y in zip(outputs, layers, strict=True):
            statistics.add(y)
        x = matrix[part]
        x = x if source.indptr is None else x.toarray()
        if network.missing is not None:  # looked for as it is stored: 0.1 of float32 is no 0.1 of float64
            x = np.where(x == network.missing, np.nan, x.astype(np.float64))
        features.add(np.asarray(x, dtype=np.float64), layers[-1])
    explained = features.explained(network)
    reports = tuple(
        LayerReport(name, layer.n_in, layer.n_out, activation, float(seen.least.min()), float(seen.most.max()),
                    seen.total / seen.count, seen.dead / len(seen.least), seen.saturated)
        for name, layer, activation, seen in zip(layer_names(network), network.layers, activation_names(network),
                                                 outputs, strict=True))  # fmt: skip
    findings = [
        *out_of_reach(network, source),
        *layer_findings(network, outputs, len(rows), features.vary, thorough=True),
        *fit_findings(model, network, features, explained),
    ]
    return Diagnosis(reports, features.range, (reports[-1].low, reports[-1].high), explained, len(rows),
                     tuple(findings))  # fmt: skip


def warn_before_fit(network: Network, source: Source) -> None:
    """An output that cannot reach the data makes the training that follows futile."""
    _warn(out_of_reach(network, source))


def warn_after_fit(model: Any, source: Source, dtype: np.dtype) -> None:
    """Dead or saturated layers, seen on at most 512 rows."""
    if source.n_rows < FEW_ROWS:
        return
    rows = sample(source.n_rows, FIT_ROWS)
    outputs = layer_statistics(model.network_)
    for _, layers in model._layer_outputs(source, dtype, rows):
        for statistics, y in zip(outputs, layers, strict=True):
            statistics.add(y)
    varies = outputs[0].dead < len(outputs[0].least) or rows_vary(source_rows(source)[rows])
    _warn(layer_findings(model.network_, outputs, len(rows), varies, thorough=False))


def _warn(findings: Any) -> None:
    for finding in findings:
        warnings.warn(str(finding), CATEGORIES[finding.kind], stacklevel=4)


__all__ = ["Diagnosis", "Finding", "LayerReport", "diagnose", "warn_after_fit", "warn_before_fit"]
