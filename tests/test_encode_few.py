"""Codes of one to three rows on packed weights: two looks at bounds, then chains (csrc/coarse.h); the same bits."""

import numpy as np
import pytest
from test_encode import DATA, any_native, assert_rows, codes, dense, duplicates, encoded, real_numbers, run

from fastae.plan import schema

__all__ = ["any_native"]
SIZES = [(1, 1, 1, 1), (1, 40, 3, 4), (2, 100, 65, 10), (1, 65, 64, 40), (3, 1030, 257, 7), (2, 4161, 130, 32),
         (1, 9000, 70, 32), (3, 9001, 96, 24), (1, 16450, 48, 250)]  # fmt: skip


def packed(arrays):
    n, p = arrays["w"].shape
    return arrays | {"packed": np.zeros((-(-n // 64) * 64, schema.pack_columns(p)), np.int8)}


def check(backend, arrays, k, paths=(0, 3), threads=(1, 2, 3)):
    z = dense(backend, arrays)
    given = packed(arrays) | codes(len(z), k)
    for kind in (0, 1):
        rows = encoded(z, schema.CODE_KINDS[kind], k)
        for path in paths:
            for n in threads:
                got, _ = run(backend, "encode", given, kind=kind, k=k, path=path, threads=n,
                             prepare=("pack_encoder", "w", "packed"))  # fmt: skip
                assert_rows(got, rows)


@pytest.mark.parametrize("make", DATA, ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_few_rows(any_native, size, make):
    m, n, p, k = size
    check(any_native, make(m, n, p), k)


def integers(w, drop):
    """What 8-bit integers of these weights stand for; drop: their upper six bits, and the middle of the rest."""
    most = np.abs(w).max(axis=1, keepdims=True)
    q = np.rint(w * (np.float32(127) / most))
    if drop:
        q = np.floor((q + 128) / 4) * 4 - 126.5
    return q.astype(np.float64) * (most / np.float32(127))


@pytest.mark.parametrize("six", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_errors_as_large_as_their_bounds(any_native, six, sign):
    """Rows that lie along what rounding left of a latent, which is in the code by a hair, or is not."""
    n, p, k = 9000, 96, 32
    arrays = real_numbers(1, n, p)
    w = arrays["w"]
    left = w - integers(w, six)
    for j in (5, 1500, 8999):
        for change in (1e-4, -1e-4):
            x = (sign * 30 / np.linalg.norm(left[j]) * left[j])[None].astype(np.float32)
            b = np.zeros((1, n), np.float32)
            z = dense(any_native, {"x": x, "w": w, "b": b})
            b[0, j] = np.sort(np.delete(z[0], j))[-k] - z[0, j] + change
            check(any_native, {"x": x, "w": w, "b": b}, k, threads=(1,))


def test_ties_at_the_last_place(any_native):
    """The first of many equal latents come in, wherever groups and parts of them end."""
    n, p, k = 12_000, 64, 40
    arrays = real_numbers(2, n, p)
    z = dense(any_native, arrays)
    best = np.argsort(-z[0])[:30]
    for at in ([10, 1023, 1024, 2047, 2048, 6000, 11_999], range(900, 12_000, 150)):
        at = np.setdiff1d(list(at), best)
        again = {name: a.copy() for name, a in arrays.items()}
        again["w"][at], again["b"][0, at] = arrays["w"][best[20]], arrays["b"][0, best[20]]
        check(any_native, again, k)


def test_more_candidates_than_a_list_holds(any_native):
    """Everything begins again, by 8 bits."""
    for n in (9000, 17_000):
        arrays = duplicates(3, n, 520)
        arrays["w"][:] = arrays["w"][:1]
        arrays["b"][:] = 0.25
        check(any_native, arrays, 20)
        arrays["b"][0, n - 10 :] = 0.5
        arrays["b"][0, 2000] = 0.75
        check(any_native, arrays, 20)


def test_weights_whose_bounds_overflow(any_native):
    arrays = real_numbers(3, 9000, 70)
    arrays["w"][5000] *= np.float32(1e34)
    arrays["b"][0, 3000] = 1e33
    arrays["x"][1] = 0
    check(any_native, arrays, 16)


def test_rows_that_are_not_finite(any_native):
    arrays = real_numbers(2, 9000, 70)
    rows = encoded(dense(any_native, arrays), "topk", 16)
    arrays["x"] = np.concatenate([np.full((1, 70), np.inf, np.float32), arrays["x"]])
    got, _ = run(any_native, "encode", packed(arrays) | codes(3, 16), k=16, path=0,
                 prepare=("pack_encoder", "w", "packed"))  # fmt: skip
    assert got["count"][0, 0] == -1
    assert_rows({name: a[1:] for name, a in got.items()}, rows)
