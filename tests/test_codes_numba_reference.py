"""What only the Numba backend's selection does: blocks of products, pools of candidates, sums that decide ties."""

import numpy as np
import pytest
from conftest import assert_close

from fastae.backends import get_backend
from fastae.backends.numba import selection
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder
from fastae.plan.schema import BATCH_ROWS, INT32


def code_of(backend, x, w, k, kind, capacity=None, threshold=None):
    """(val, idx, count) of encode, or of batch_topk."""
    m, capacity = len(x), capacity or k
    builder = PlanBuilder(x.dtype, m)
    arrays = {"x": x, "w": w, "val": np.zeros((m, capacity), x.dtype), "idx": np.zeros((m, capacity), np.int32),
              "count": np.zeros((m, 1), np.int32), "threshold": threshold}  # fmt: skip
    arrays = {name: a for name, a in arrays.items() if a is not None}
    for name, a in arrays.items():
        rows = len(a) if name in ("w", "threshold") else BATCH_ROWS
        builder.external(name, rows, a.shape[1], *([INT32] if a.dtype == np.int32 else []))
    common = {**{name: name for name in arrays}, "k": k, "k_scalar": -1, "overflow": -1}
    if kind == "batch_topk":
        builder.op("batch_topk", **common, decay=0.0)
    else:
        builder.op("encode", **common, kind=schema.CODE_KINDS.index(kind), margin=0.0)
    plan, backend = builder.build(), get_backend(backend)
    backend.run(backend.compile(plan), Job([*plan.allocate(), *arrays.values()], (), m))
    return arrays["val"], arrays["idx"], arrays["count"][:, 0]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(selection, "ROWS", 7)
    monkeypatch.setattr(selection, "LATENTS", 33)


@pytest.mark.parametrize("kind", ["topk", "abs_topk", "threshold", "batch_topk"])
@pytest.mark.parametrize(("m", "p", "n", "k"), [(1, 1, 1, 1), (7, 33, 131, 5), (23, 7, 1031, 3), (15, 1, 997, 61)])
def test_blocks_and_pools_give_the_reference_code(small_blocks, kind, m, p, n, k):
    """Small integers: sums are exact and many latents tie, more than a pool has room for."""
    rng = np.random.default_rng(m * n)
    x = rng.integers(-2, 3, (m, p)).astype(np.float32)
    w = rng.integers(-2, 3, (n, p)).astype(np.float32)
    x[m // 2] = 0
    threshold = rng.integers(0, 5, (1, n)).astype(np.float32) if kind == "threshold" else None
    capacity = k if kind.endswith("topk") and kind != "batch_topk" else n
    got = code_of("numba", x, w, k, kind, capacity, threshold)
    for a, b in zip(got, code_of("reference", x, w, k, kind, capacity, threshold), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
@pytest.mark.parametrize(("p", "n"), [(33, 67), (384, 67), (61, 700)])
def test_equal_latents_tie_wherever_they_lie(small_blocks, kind, dtype, p, n):
    """BLAS gives other bits at a block's edge; of equal latents those with the lowest index are taken all the same."""
    rng = np.random.default_rng(n)
    m, k = 13, 10
    x = rng.normal(size=(m, p)).astype(dtype)
    of = rng.integers(0, 9, n)
    w = rng.normal(size=(9, p)).astype(dtype)[of]
    val, idx, count = code_of("numba", x, w, k, kind, n)
    cut = 0
    for r in range(m):
        chosen = idx[r, : count[r]]
        for group in np.unique(of[chosen]):
            members = chosen[of[chosen] == group]
            everyone = np.flatnonzero(of == group)
            np.testing.assert_array_equal(members, everyone[: len(members)])
            assert len(np.unique(val[r, : count[r]][of[chosen] == group])) == 1
            cut += len(members) < len(everyone)
    assert cut


@pytest.mark.parametrize("kind", ["topk", "abs_topk", "batch_topk"])
def test_a_row_has_the_same_code_in_any_block(monkeypatch, kind):
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(19, 61)).astype(np.float32), rng.normal(size=(3001, 61)).astype(np.float32)
    whole = code_of("numba", x, w, 29, kind, 100)
    want = code_of("reference", x, w, 29, kind, 100)
    np.testing.assert_array_equal(whole[1], want[1])
    assert_close(whole[0], want[0], length=61)
    monkeypatch.setattr(selection, "ROWS", 2)
    monkeypatch.setattr(selection, "LATENTS", 7)
    for a, b in zip(whole, code_of("numba", x, w, 29, kind, 100), strict=True):
        np.testing.assert_array_equal(a, b)
