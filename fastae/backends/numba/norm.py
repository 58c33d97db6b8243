"""Batch and layer normalisation; sums in float64."""

import numpy as np
from numba import njit

from ..reference.norm import fold_norm  # once per set of weights

_jit = njit(cache=True, nogil=True, error_model="numpy")

__all__ = ["batch_norm", "batch_norm_grad", "fold_norm", "layer_norm", "layer_norm_grad"]


@_jit
def column_moments(x, mean, var):
    m, n = x.shape
    mean[:] = 0
    var[:] = 0
    for r in range(m):
        for j in range(n):
            mean[j] += x[r, j]
    for j in range(n):
        mean[j] /= m
    for r in range(m):
        for j in range(n):
            d = x[r, j] - mean[j]
            var[j] += d * d
    for j in range(n):
        var[j] /= m


@_jit
def normalise_columns(x, mean, deviation, gamma, beta, y):
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[r, j] = (x[r, j] - mean[j]) / deviation[j] * gamma[j] + beta[j]


def batch_norm(step, op, v):
    x, m = v["x"], len(v["x"])
    mean, deviation = v["mean"][0], v["deviation"][0]
    var = np.empty_like(mean)
    column_moments(x, mean, var)
    np.sqrt(var + op.floats["epsilon"], out=deviation)
    normalise_columns(x, mean, deviation, v["gamma"][0], v["beta"][0], v["y"])
    if "running_mean" in v and m > 1:  # the variance of one row says nothing
        momentum = op.floats["momentum"]
        for name, new in (("running_mean", mean), ("running_var", var * (m / (m - 1)))):
            v[name][0] = (1 - momentum) * v[name][0] + momentum * new


@_jit
def batch_gradient(dy, x, gamma, mean, deviation, dx, slope, offset):
    m, n = x.shape
    slope[:] = 0
    offset[:] = 0
    for r in range(m):
        for j in range(n):
            slope[j] += dy[r, j] * ((x[r, j] - mean[j]) / deviation[j])
            offset[j] += dy[r, j]
    for r in range(m):
        for j in range(n):
            normal = (x[r, j] - mean[j]) / deviation[j]
            dx[r, j] = gamma[j] / deviation[j] * (dy[r, j] - offset[j] / m - normal * slope[j] / m)


def _store(op, v, slope, offset):
    for name, value in (("dgamma", slope), ("dbeta", offset)):
        v[name][0] = v[name][0] + value if op.ints["add"] else value


def batch_norm_grad(step, op, v):
    slope, offset = np.empty((2, v["x"].shape[1]))
    batch_gradient(v["dy"], v["x"], v["gamma"][0], v["mean"][0], v["deviation"][0], v["dx"], slope, offset)
    _store(op, v, slope, offset)


@_jit
def normalise_rows(x, gamma, beta, epsilon, y, statistics):
    n = x.shape[1]
    for r in range(x.shape[0]):
        mean = 0.0
        for j in range(n):
            mean += x[r, j]
        mean /= n
        var = 0.0
        for j in range(n):
            d = x[r, j] - mean
            var += d * d
        deviation = np.sqrt(var / n + epsilon)
        statistics[r, 0] = mean
        statistics[r, 1] = deviation
        for j in range(n):
            y[r, j] = (x[r, j] - mean) / deviation * gamma[j] + beta[j]


def layer_norm(step, op, v):
    statistics = v["statistics"] if "statistics" in v else np.empty((len(v["x"]), 2))
    normalise_rows(v["x"], v["gamma"][0], v["beta"][0], op.floats["epsilon"], v["y"], statistics)


@_jit
def row_gradient(dy, x, gamma, statistics, dx, slope, offset):
    n = x.shape[1]
    slope[:] = 0
    offset[:] = 0
    for r in range(x.shape[0]):
        mean, deviation = statistics[r, 0], statistics[r, 1]
        total = along = 0.0
        for j in range(n):
            normal = (x[r, j] - mean) / deviation
            slope[j] += dy[r, j] * normal
            offset[j] += dy[r, j]
            total += dy[r, j] * gamma[j]
            along += dy[r, j] * gamma[j] * normal
        for j in range(n):
            normal = (x[r, j] - mean) / deviation
            dx[r, j] = (dy[r, j] * gamma[j] - total / n - normal * along / n) / deviation


def layer_norm_grad(step, op, v):
    slope, offset = np.empty((2, v["x"].shape[1]))
    row_gradient(v["dy"], v["x"], v["gamma"][0], v["statistics"], v["dx"], slope, offset)
    _store(op, v, slope, offset)
