"""The catalogue's primitives as scalar Numba functions."""

import math

from numba import njit

_jit = njit(nogil=True, error_model="numpy")

exp, expm1, log, log1p = math.exp, math.expm1, math.log, math.log1p
tanh, erf, erfc, sqrt = math.tanh, math.erf, math.erfc, math.sqrt


@_jit
def fabs(x):
    return abs(x)


@_jit
def fma(a, b, c):
    return a * b + c


@_jit
def max(a, b):
    # NaN in either argument comes through
    return a if a > b or a != a else b


@_jit
def min(a, b):
    return a if a < b or a != a else b


@_jit
def select(c, a, b):
    return a if c else b


@_jit
def sign(x):
    # ±0 and NaN stay what they are
    return math.copysign(1.0, x) if x > 0 or x < 0 else x


@_jit
def sigmoid(x):
    # exp never overflows; each side keeps full relative accuracy
    e = math.exp(-abs(x))
    return (1.0 if x >= 0 else e) / (1.0 + e)
