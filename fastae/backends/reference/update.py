"""Gradient clipping and update rules on the flat parameter buffer."""

import numpy as np

from ...catalog import UPDATE_RULES
from ...plan.schema import CLIP_MODES
from . import formulas
from .dense import parameters


def clip_gradient(step, op, v):
    g, limit = v["g"].astype(np.float64), op.floats["limit"]
    if CLIP_MODES[op.ints["mode"]] == "value":
        v["g"][...] = np.clip(g, -limit, limit)
    else:
        norm = np.sqrt((g * g).sum())
        if norm > limit:
            v["g"][...] = g * (limit / norm)


def update(step, op, v):
    row = UPDATE_RULES[op.ints["rule"]]
    first = op.ints["scalar"]
    constants = step.job.scalars[step.number, first : first + len(row.step)]
    names = [f"s{i}" for i in range(len(row.states))]
    w, states = v["w"].astype(np.float64), [v[name].astype(np.float64) for name in names]
    formulas.UPDATE[op.ints["rule"]][0](w, v["g"].astype(np.float64), states, constants, parameters(op))
    v["w"][...] = w
    for name, state in zip(names, states, strict=True):
        v[name][...] = state
