"""Penalties on activities."""

import numpy as np
from numba import njit

from . import formulas
from .dense import flat, parameters
from .losses import row_sums

_jit = njit(cache=True, nogil=True, error_model="numpy")


def activity(step, op, v):
    value, slope, _, _ = formulas.PENALTY[op.ints["penalty"]]
    h, dh = v["h"], v["dh"]
    p, each, rows = parameters(op, h.dtype), np.empty_like(h), np.empty(len(h))
    value(flat(h), p, flat(each))
    row_sums(each, rows)
    if "row_value" in v:
        v["row_value"][:, 0] = rows
    step.add_value(op, float(rows.mean()))
    slope(flat(h), p, flat(each))
    dh += each / h.dtype.type(len(h))


def kl_sparsity(step, op, v):
    """weight Σ_j KL(ρ ‖ q_j), q the batch mean cut to [1e-7, 1 − 1e-7], where the derivative is 0."""
    h, rho, weight = v["h"], op.floats["rho"], op.floats["weight"]
    mean = h.mean(axis=0, dtype=np.float64)
    v["mean"][0] = mean
    q = np.clip(mean, 1e-7, 1 - 1e-7)
    step.add_value(op, float(weight * (rho * np.log(rho / q) + (1 - rho) * np.log((1 - rho) / (1 - q))).sum()))
    slope = np.where(q == mean, (1 - rho) / (1 - q) - rho / q, 0.0)
    v["dh"] += (weight / len(h) * slope).astype(h.dtype)


@_jit
def pair_rows(h, h2, c, m, dh, dh2, rows):
    for r in range(h.shape[0]):
        total = 0.0
        for j in range(h.shape[1]):
            d = h[r, j] - h2[r, j]
            total += np.float64(d) * d
            slope = 2 * c[r] / m * d
            dh[r, j] += slope
            dh2[r, j] = -slope
        rows[r] = c[r] * total


def pair(step, op, v):
    """strength · coefficient · |h − h2|² of each row."""
    m = len(v["h"])
    c = np.full(m, op.floats["strength"])
    if "coefficient" in v:
        c *= v["coefficient"][:, 0]
    rows = np.empty(m)
    pair_rows(v["h"], v["h2"], c, m, v["dh"], v["dh2"], rows)
    v["row_value"][:, 0] = rows
    step.add_value(op, float(rows.mean()))


@_jit
def contract(slope, curvature, norms, scale, dh, squares):
    """dh += scale norms a''; squares ← Σ_r a'²."""
    squares[:] = 0
    for r in range(slope.shape[0]):
        for j in range(slope.shape[1]):
            squares[j] += np.float64(slope[r, j]) * slope[r, j]
            dh[r, j] += scale * norms[j] * curvature[r, j]


def contractive(step, op, v):
    """strength · Σ_j a'(z_j)² |w_j|², the squared Frobenius norm of a layer's Jacobian."""
    _, slope_of, curvature_of = formulas.ACTIVATION[op.ints["activation"]]
    h, strength = v["h"], op.floats["strength"]
    m, p = len(h), parameters(op, h.dtype)
    slope, curvature, squares = np.empty_like(h), np.empty_like(h), np.empty(h.shape[1])
    slope_of(flat(h), p, flat(np.ones_like(h)), flat(slope))
    curvature_of(flat(h), p, flat(curvature))
    norms = (v["w"].astype(np.float64) ** 2).sum(axis=1)
    contract(slope, curvature, norms, 2 * strength / m, v["dh"], squares)
    step.add_value(op, float(strength * (squares * norms).sum() / m))
    v["factor"][0] = 2 * strength / m * squares


def decorrelation(step, op, v):
    """½ strength Σ_{i≠j} C_ij², C the covariance of the batch (over m)."""
    h, strength = v["h"], op.floats["strength"]
    centred = h - h.mean(axis=0, dtype=np.float64).astype(h.dtype)
    covariance = centred.T @ centred / h.dtype.type(len(h))
    np.fill_diagonal(covariance, 0)
    step.add_value(op, float(0.5 * strength * (covariance.astype(np.float64) ** 2).sum()))
    v["dh"] += h.dtype.type(2 * strength / len(h)) * (centred @ covariance)
