"""Ops of a sparse autoencoder's step beside the encoder: ``python -m benchmarks.sparse_step [--batch 1024]``.

Times of each record at p = 768, n = 24,576, k = 32 and Adam, with the bytes that it must move and their rate, beside
the speed of a copy measured in the same run. Weight rows that several entries name are counted once per entry.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fastae.backends import get_backend
from fastae.catalog import INDEX, UPDATE_RULES
from fastae.plan import schema
from fastae.plan.fuse import fuse_updates
from fastae.plan.plan import Job, PlanBuilder

from .common import record

P, N, K = 768, 24_576, 32
M = schema.BATCH_ROWS
ADAM = INDEX["update"]["adam"]


def step_plan(batch: int, ops: tuple[str, ...]):
    """A plan with the named ops of the step; weights and their states in theta."""
    b = PlanBuilder(np.float32, batch)
    for space, prefix in ((schema.THETA, ""), (schema.GRAD, "d")):
        for name, rows, columns in (("w_enc", N, P), ("w_dec", N, P), ("b_enc", 1, N), ("b_dec", 1, P)):
            b.buffer(prefix + name, rows, columns, space)
    b.flat(("m", "v"))
    for name, columns, dtype in (("x", P, 0), ("centred", P, 0), ("y", P, 0), ("val", K, 0), ("dval", K, 0),
                                 ("idx", K, schema.INT32), ("count", 1, schema.INT32)):  # fmt: skip
        b.external(name, M, columns, dtype)
    b.external("start", 1, N + 1, schema.INT64)
    b.external("entry", M, K, schema.INT64)
    b.external("since", 1, N, schema.INT64)
    code = {"val": "val", "idx": "idx", "count": "count"}
    listed = {"start": "start", "entry": "entry", "capacity": K}
    records = {
        "decode": ("decode", code | {"w": "w_dec", "b": "b_dec", "y": "y"}),
        "squared_error": ("squared_error", {"y": "y", "target": "x", "dy": "y", "value": b.value(), "scale": 1.0,
                                            "variance": -1}),
        "code_grad": ("code_grad", {"dy": "y", "idx": "idx", "count": "count", "w": "w_dec", "dval": "dval"}),
        "relu_grad": ("relu_grad", {"val": "val", "count": "count", "dval": "dval"}),
        "by_latent": ("by_latent", {"idx": "idx", "count": "count", "start": "start", "entry": "entry",
                                    "capacity": K}),
        "bias_grad": ("bias_grad", {"dy": "y", "db": "db_dec"}),
        "latent_sum": ("latent_sum", {"coef": "dval", "start": "start", "entry": "entry", "sum": "db_enc"}),
        "latent_grad dec": ("latent_grad", {"coef": "val", "u": "y", "w": "w_dec", "dw": "dw_dec", "unit": 1,
                                            **listed}),
        "pre_bias_grad": ("pre_bias_grad", {"db": "db_enc", "w": "w_enc", "dbias": "db_dec", "scale": 1.0}),
        "latent_grad enc": ("latent_grad", {"coef": "dval", "u": "centred", "w": "w_enc", "dw": "dw_enc", **listed}),
        "fired": ("fired", code | {"since": "since"}),
    }  # fmt: skip
    for name in ops:
        if name in records:
            kind, attributes = records[name]
            b.op(kind, **attributes)
    if "update" in ops:
        b.op("update", schema.UPDATE, w="theta", g="grad", s0="state_m", s1="state_v", rule=ADAM,
             scalar=b.scalars(len(UPDATE_RULES[ADAM].step)), p0=0.9, p1=0.999, p2=6.25e-10)  # fmt: skip
    if "project" in ops:
        b.op("project", schema.UPDATE, w="w_dec", kind=schema.PROJECT_KINDS.index("unit"))
    return b.build()


STEP = ("decode", "squared_error", "code_grad", "relu_grad", "by_latent", "bias_grad", "latent_sum", "latent_grad dec",
        "pre_bias_grad", "latent_grad enc", "fired", "update", "project")  # fmt: skip


def bytes_of(name: str, batch: int) -> float:
    """What must be read and written, in bytes."""
    rows, entries, w = 4.0 * batch * P, 4.0 * batch * K * P, 4.0 * N * P
    return {
        "decode": entries + rows, "squared_error": 3 * rows, "code_grad": entries + rows, "relu_grad": 12.0 * batch * K,
        "by_latent": 16.0 * batch * K + 8 * N, "bias_grad": rows, "latent_sum": 16.0 * batch * K,
        "latent_grad dec": entries + 2 * w, "pre_bias_grad": w, "latent_grad enc": entries + w,
        "fired": 16.0 * N + 8 * batch * K, "update": 2 * 7 * w, "project": 2 * w,
        "whole step, fused": 2 * entries + 2 * (6 * w + entries), "decode to code_grad": entries + 3 * rows,
    }[name]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    batch, rng = options.batch, np.random.default_rng(0)
    # frequencies of latents fall like a power, as those of trained ones do
    weight = 1.0 / (10 + np.arange(N)) ** 0.7
    order, cumulative = rng.permutation(N), np.cumsum(weight / weight.sum())
    idx = np.empty((batch, K), np.int32)
    for r in range(batch):
        drawn = np.unique(np.searchsorted(cumulative, rng.random(4 * K)))
        idx[r] = np.sort(order[rng.choice(drawn, K, False)])
    real = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    external = [real(batch, P), real(batch, P), real(batch, P), np.abs(real(batch, K)), real(batch, K), idx,
                np.full((batch, 1), K, np.int32), np.zeros((1, N + 1), np.int64), np.zeros((batch, K), np.int64),
                np.zeros((1, N), np.int64)]  # fmt: skip
    backend = get_backend("native")
    memory = step_plan(batch, STEP).allocate()
    theta = step_plan(batch, STEP).view(memory, "theta")
    theta[...] = 0.03 * rng.normal(size=theta.shape)
    plans = {name: step_plan(batch, (name,)) for name in STEP}
    plans["decode to code_grad"] = step_plan(batch, ("decode", "squared_error", "code_grad"))
    plans["whole step, fused"] = fuse_updates(step_plan(batch, STEP))
    plans = {name: plan for name, plan in plans.items() if options.only in name or name == "by_latent"}
    handles = {name: backend.compile(plan) for name, plan in plans.items()}
    source, target = np.ones(1 << 25, np.float32), np.zeros(1 << 25, np.float32)
    best = dict.fromkeys(["copy", *STEP, "decode to code_grad", "whole step, fused"], np.inf)
    scalars = np.full((1, 8), 1e-4)
    for _ in range(options.rounds):
        begin = time.perf_counter()
        np.copyto(target, source)
        best["copy"] = min(best["copy"], time.perf_counter() - begin)
        for name, handle in handles.items():
            job = Job([*memory, *external], (), batch, n_threads=options.threads, scalars=scalars,
                      values=np.zeros((1, 1)))  # fmt: skip
            begin = time.perf_counter()
            backend.run(handle, job)
            best[name] = min(best[name], time.perf_counter() - begin)
    copy = 2 * source.nbytes / best["copy"] / 1e9
    used = len(np.unique(idx))
    print(f"batch {batch}, {options.threads} thread(s), {used} latents with entries; copy {copy:.1f} GB/s")
    for name in handles:
        rate = bytes_of(name, batch) / best[name] / 1e9
        print(f"  {name:22} {best[name] * 1e3:8.2f} ms {rate:7.1f} GB/s")
    if not options.only:
        record("sparse_step", {"batch": batch, "threads": options.threads, "copy_gb_s": copy,
                               "milliseconds": {name: best[name] * 1e3 for name in handles}})  # fmt: skip


if __name__ == "__main__":
    main()
