"""Penalties on weights, projections."""

import numpy as np

from ...plan.schema import PROJECT_KINDS
from . import formulas
from .dense import parameters


def orthogonality(step, op, v):
    """½ strength |w wᵀ − I|², or |wᵀ w − I|²."""
    w, strength = v["w"].astype(np.float64), op.floats["strength"]
    gram = w.T @ w if op.ints["columns"] else w @ w.T
    gram -= np.eye(len(gram))
    step.add_value(op, float(0.5 * strength * (gram * gram).sum()))
    v["dw"][...] = v["dw"] + 2 * strength * (w @ gram if op.ints["columns"] else gram @ w)


def projector(step, op, v):
    """½ strength |w (I − vᵀ v)|²."""
    w, basis, strength = v["w"].astype(np.float64), v["v"].astype(np.float64), op.floats["strength"]
    rest = w - w @ basis.T @ basis
    step.add_value(op, float(0.5 * strength * (rest * rest).sum()))
    v["dw"][...] = v["dw"] + strength * rest


def scale_rows(step, op, v):
    v["dw"][...] = v["dw"] + v["factor"].T * v["w"]


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
    elif kind == "unit":
        norm = np.sqrt((w * w).sum(axis=1, keepdims=True))
        w = np.divide(w, norm, out=w, where=norm > 0)
    else:
        w = np.maximum(w, 0.0)
    v["w"][...] = w
