"""Penalties on activities."""

import numpy as np

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


def pair(step, op, v):
    """strength · coefficient · |h − h2|² of each row."""
    strength, m = op.floats["strength"], len(v["h"])
    difference = v["h"].astype(np.float64) - v["h2"]
    c = strength * (v["coefficient"].astype(np.float64) if "coefficient" in v else np.ones((m, 1)))
    rows = (c * difference * difference).sum(axis=1)
    v["row_value"][:, 0] = rows
    step.add_value(op, float(rows.mean()))
    slope = 2 * c / m * difference
    v["dh"][...] = v["dh"] + slope
    v["dh2"][...] = -slope


def contractive(step, op, v):
    """strength · Σ_j a'(z_j)² |w_j|², the squared Frobenius norm of a layer's Jacobian."""
    _, slope, curvature = formulas.ACTIVATION[op.ints["activation"]]
    h, p, strength = v["h"].astype(np.float64), parameters(op), op.floats["strength"]
    m, norms = len(h), (v["w"].astype(np.float64) ** 2).sum(axis=1)
    squares = slope(h, p) ** 2
    step.add_value(op, float(strength * (squares * norms).sum() / m))
    v["factor"][0] = 2 * strength * squares.sum(axis=0) / m
    v["dh"][...] = v["dh"] + 2 * strength / m * norms * curvature(h, p)


def decorrelation(step, op, v):
    """½ strength Σ_{i≠j} C_ij², C the covariance of the batch (over m)."""
    h, strength = v["h"].astype(np.float64), op.floats["strength"]
    centred = h - h.mean(axis=0)
    covariance = centred.T @ centred / len(h)
    np.fill_diagonal(covariance, 0.0)
    step.add_value(op, float(0.5 * strength * (covariance * covariance).sum()))
    v["dh"][...] = v["dh"] + 2 * strength / len(h) * (centred @ covariance)
