"""Gradient clipping and update rules on the flat parameter buffer."""

import numpy as np
from numba import njit

from ...catalog import UPDATE_RULES
from ...plan.schema import CLIP_MODES
from . import formulas
from .dense import flat, parameters

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def sum_of_squares(g):
    total = 0.0
    for i in range(g.size):
        x = np.float64(g[i])
        total += x * x
    return total


def clip_gradient(step, op, v):
    g, limit = v["g"], op.floats["limit"]
    if CLIP_MODES[op.ints["mode"]] == "value":
        np.clip(g, g.dtype.type(-limit), g.dtype.type(limit), out=g)
        return
    norm = float(np.sqrt(sum_of_squares(flat(g))))
    if norm > limit:
        g *= g.dtype.type(limit / norm)


def update(step, op, v):
    row = UPDATE_RULES[op.ints["rule"]]
    first = op.ints["scalar"]
    w = v["w"]
    constants = step.job.scalars[step.number, first : first + len(row.step)].astype(w.dtype)
    states = [flat(v[f"s{i}"]) for i in range(len(row.states))]
    formulas.UPDATE[op.ints["rule"]][0](flat(w), flat(v["g"]), *states, constants, parameters(op, w.dtype))
