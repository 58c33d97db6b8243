"""Each instruction set's products against its own ceiling, one thread: ``python -m benchmarks.gemm [isa …]``.

FLOPs of a product of (m × k) with (k × n): 2 m k n. Operands are packed within the timed call, as in a training step.
The ceiling of a precision is the rate of the instructions that its products are made of, from registers.
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np

from fastae.backends.native import NativeBackend, instruction_sets
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, aligned_bytes

from .common import record

LARGE = [(4096, 768, 24576), (8192, 784, 512), (256, 784, 128)]
SMALL = [(m, k, n) for m in (1, 8, 32) for k, n in ((30, 64), (64, 32))]


def product(backend: NativeBackend, x: np.ndarray, w: np.ndarray, precision: str = "float32"):
    """A call that makes the product; small ones many times within it, as in an epoch. Returns (call, times)."""
    (m, k), n = x.shape, len(w)
    times = max(1, int(2e7 // (m * k * n)))
    builder = PlanBuilder(np.float32, m, "product", bf16=precision == "bfloat16")
    for name, rows, columns in (("x", schema.BATCH_ROWS, k), ("w", n, k), ("y", schema.BATCH_ROWS, n)):
        builder.external(name, rows, columns)
    builder.op("dense", x="x", w="w", y="y")
    plan = builder.build()
    handle, empty = backend.compile(plan), np.empty(0, np.uint8)
    y = aligned_bytes(times * m * n * 4).view(np.float32).reshape(-1, n)  # as a plan's own buffers are
    spaces = [*plan.allocate(), np.tile(x, (times, 1)), w, y]
    spaces[1:4] = [empty] * 3
    job = Job(spaces, n_rows=times * m, n_steps=times, phases=schema.GRADIENT)
    return lambda: backend.run(handle, job), times


def best_seconds(made, flops: float) -> float:
    run, times = made
    repeats = int(min(max(3e9 / flops / times, 5), 2000))
    best = np.inf
    run()  # touches the pages
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best / times


def main() -> None:
    rng = np.random.default_rng(0)
    for isa in sys.argv[1:] or instruction_sets():
        backend = NativeBackend(isa)
        # the sets that only multiply bfloat16 in another way are avx512 in float32
        precisions = ["bfloat16"] if isa.startswith("avx512_") else ["float32", "bfloat16"]
        for (m, k, n), precision in itertools.product(LARGE + SMALL, precisions):
            if isa == "baseline" and m * k * n > 1e10:
                continue
            x = rng.normal(size=(m, k)).astype(np.float32)
            w = rng.normal(size=(n, k)).astype(np.float32)
            flops = 2.0 * m * k * n
            seconds = best_seconds(product(backend, x, w, precision), flops)
            ceiling = backend.peak_gflops(precision, 0.1)
            gflops = flops / seconds / 1e9
            print(
                f"{isa:11} {precision:8} ({m}×{k})·({k}×{n}): {gflops:7.1f} GFLOP/s, "
                f"{100 * gflops / ceiling:5.1f} % of {ceiling:.0f}"
            )
            record("gemm", {"isa": isa, "precision": precision, "shape": [m, k, n], "gflops": gflops,
                            "ceiling_gflops": ceiling})  # fmt: skip


if __name__ == "__main__":
    main()
