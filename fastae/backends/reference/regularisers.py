"""Penalties on activities and weights, projections."""

import numpy as np

from ...plan.schema import PROJECT_KINDS
from . import formulas
from .dense import parameters


def activity(step, op, v):
    value, slope, _, _ = formulas.PENALTY[op.ints["penalty"]]
    h = v["h"].astype(np.float64)
    rows = value(h, parameters(op)).sum(axis=1)
    if "row_value" in v:
        v["row_value"][:, 0] = rows
    step.add_value(op, float(rows.mean()))
    v["dh"][...] = v["dh"] + slope(h, parameters(op)) / len(h)


def kl_sparsity(step, op, v):
    """weight Σ_j KL(ρ ‖ q_j), q the batch mean cut to [1e-7, 1 − 1e-7], where the derivative is 0."""
    h, rho, weight = v["h"].astype(np.float64), op.floats["rho"], op.floats["weight"]
    mean = h.mean(axis=0)
    v["mean"][0] = mean
    q = np.clip(mean, 1e-7, 1 - 1e-7)
    step.add_value(op, float(weight * (rho * np.log(rho / q) + (1 - rho) * np.log((1 - rho) / (1 - q))).sum()))
    slope = np.where(q == mean, (1 - rho) / (1 - q) - rho / q, 0.0)
    v["dh"][...] = v["dh"] + weight / len(h) * slope


def weight_penalty(step, op, v):
    value, _, smooth, _ = formulas.PENALTY[op.ints["penalty"]]
    w = v["w"].astype(np.float64)
    step.add_value(op, float(value(w, parameters(op)).sum()))
    v["dw"][...] = v["dw"] + smooth(w, parameters(op))


def project(step, op, v):
    w = v["w"].astype(np.float64)
    p = parameters(op)
    kind = PROJECT_KINDS[op.ints["kind"]]
    if kind == "prox":
        rate = step.job.scalars[step.number, op.ints["scalar"]]
        w = formulas.PENALTY[op.ints["penalty"]][3](w, rate, p)
    elif kind == "max_norm":
        norm = np.sqrt((w * w).sum(axis=1, keepdims=True))
        w = w * np.where(norm > p[0], p[0] / np.maximum(norm, 1e-300), 1.0)
    elif kind == "range":
        w = np.clip(w, p[0], p[1])
    else:
        w = np.maximum(w, 0.0)
    v["w"][...] = w
