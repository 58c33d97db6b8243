"""Losses by rows."""

import numpy as np

from ...plan.schema import MULTINOMIAL
from . import formulas
from .dense import parameters


def loss(step, op, v):
    y, t = v["y"].astype(np.float64), v["target"].astype(np.float64)
    scale, m = op.floats["scale"], len(y)
    weight = v["weight"].astype(np.float64) if "weight" in v else np.ones((m, 1))
    if op.ints["loss"] == MULTINOMIAL:
        shifted = y - y.max(axis=1, keepdims=True)
        total = t.sum(axis=1, keepdims=True)
        sums = np.exp(shifted).sum(axis=1, keepdims=True)
        rows = (t * (np.log(sums) - shifted)).sum(axis=1)
        slope = np.exp(shifted) / sums * total - t
    else:
        value, dy = formulas.LOSS[op.ints["loss"]]
        rows, slope = value(y, t, parameters(op)).sum(axis=1), dy(y, t, parameters(op))
    rows = scale * rows
    if "row_value" in v:
        v["row_value"][:, 0] = rows
    step.add_value(op, float((rows * weight[:, 0]).sum() / m))
    if "dy" in v:
        v["dy"][...] = weight * scale / m * slope
