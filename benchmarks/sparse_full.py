"""Training steps of codes that are more or less full: ``python -m benchmarks.sparse_full [--kind relu] [--threads 1]``.

384 → 12,288 at batches of 1,024, with a given share of the latents active, as in the first steps of an L1 run. The
learning rate is 0, so every step is the same work. The ceiling is the arithmetic of five dense products (encoder,
decoder, the code's gradient and two of weights) at the rate of multiply-adds from registers.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fastae.backends import get_backend
from fastae.plan.plan import Job, Source
from fastae.plan.sparse import L0, sparse_training_plan
from fastae.spec.sparse import Gated, JumpReLU, ReLUCode, sparse_network

from .common import record

KINDS = {"relu": ReLUCode(1e-3), "jumprelu": JumpReLU(), "gated": Gated()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="relu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--latents", type=int, default=12_288)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.5, 0.25, 0.1, 0.05, 0.02, 0.005])
    options = parser.parse_args()
    p, n, batch, rng = options.features, options.latents, options.batch, np.random.default_rng(0)
    backend = get_backend("native")
    network = sparse_network(p, n_components=n, sparsity=KINDS[options.kind], unit_norm=True)
    plan = sparse_training_plan(network, np.float32, batch)
    handle, memory = backend.compile(plan), plan.allocate()
    x = rng.normal(size=(batch, p)).astype(np.float32)
    for name in ("encoder", "decoder"):
        w = plan.view(memory, name)
        w[...] = rng.normal(size=(n, p))
        w /= np.linalg.norm(w, axis=1, keepdims=True)
    z = np.sort((x[:64] @ plan.view(memory, "encoder").T).ravel())
    bias = plan.view(memory, "gate_bias" if options.kind == "gated" else "encoder_bias")
    scalars = np.ones((1, plan.n_scalars))
    scalars[:, :2] = 0.0  # the rate, and Adam's own
    best = dict.fromkeys(options.shares, np.inf)
    active = {}
    for _ in range(options.rounds):
        for share in options.shares:
            bias[...] = -z[min(len(z) - 1, int((1 - share) * len(z)))]
            values = np.zeros((1, plan.n_values))
            job = Job(memory, [Source(x)], batch, n_threads=options.threads, scalars=scalars, values=values)
            begin = time.process_time() if options.threads == 1 else time.perf_counter()
            assert backend.run(handle, job) == 1
            end = time.process_time() if options.threads == 1 else time.perf_counter()
            best[share] = min(best[share], end - begin)
            active[share] = values[0, L0] / n
    ceiling = 10.0 * batch * n * p / (backend.peak_gflops(np.float32, 0.1) * 1e9 * options.threads)
    print(
        f"{options.kind}, {p} -> {n}, batch {batch}, {options.threads} thread(s); products alone {ceiling * 1e3:.0f} ms"
    )
    for share, seconds in best.items():
        print(f"  {active[share]:7.2%} active {seconds * 1e3:9.1f} ms")
    record("sparse_full", {"kind": options.kind, "features": p, "latents": n, "batch": batch,
                           "threads": options.threads, "ceiling_ms": ceiling * 1e3,
                           "milliseconds": {str(share): seconds * 1e3 for share, seconds in best.items()}})  # fmt: skip


if __name__ == "__main__":
    main()
