"""Each instruction set's products against its own ceiling, one thread: ``python -m benchmarks.gemm [isa …]``.

FLOPs of a product of (m × k) with (k × n): 2 m k n. Operands are packed within the timed call, as in a training step;
those of 8 bits are packed and quantised before it, as an encoder's weights are and, row by row, its input.
The ceiling of a precision is the rate of the instructions that its products are made of, from registers, measured just
before and after every call: processors lower their clock under products (one here by 15 %, for about a millisecond),
so that a ceiling of another moment says little. Printed: the best rate, the median share in the ceiling beside it, and
the share of the best rate in the highest ceiling.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

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


def int8_product(backend: NativeBackend, x: np.ndarray, w: np.ndarray):
    """The product of operands that are integers already; (call, 1)."""
    (m, k), n = x.shape, len(w)
    half = -(-k // 2)
    builder = PlanBuilder(np.float32, m, "int8 product")
    for name, rows, columns in (("x", schema.BATCH_ROWS, k), ("w", n, k), ("y", schema.BATCH_ROWS, n),
                                ("packed", -(-n // 64) * 64, 1 + half), ("w_scale", 1, n),
                                ("q", schema.BATCH_ROWS, half), ("x_scale", schema.BATCH_ROWS, 1)):  # fmt: skip
        builder.external(name, rows, columns)
    builder.op("pack_int8", schema.PREPARE, w="w", packed="packed", scale="w_scale")
    builder.op("quantize", schema.PREPARE, x="x", q="q", scale="x_scale")
    builder.op("dense_int8", q="q", x_scale="x_scale", packed="packed", w_scale="w_scale", y="y", depth=k)
    plan = builder.build()
    handle, empty = backend.compile(plan), np.empty(0, np.uint8)
    shapes = ((m, n), (-(-n // 64) * 64, 1 + half), (1, n), (m, half), (m, 1))
    made = [aligned_bytes(4 * a * b).view(np.float32).reshape(a, b) for a, b in shapes]
    job = Job([plan.allocate()[0], empty, empty, empty, x, w, *made], n_rows=m, n_steps=1)
    job.phases = schema.PREPARE | schema.GRADIENT
    backend.run(handle, job)
    job.phases = schema.GRADIENT
    return lambda: backend.run(handle, job), 1


def measured(made, flops: float, ceiling: Callable[[], float]) -> tuple[float, float, float]:
    """Best rate, median share in the ceiling of the moment, highest ceiling; rates in GFLOP/s."""
    run, times = made
    repeats = int(min(max(3e9 / flops / times, 9), 2000))
    rates, shares, ceilings = [], [], []
    run()  # touches the pages
    for _ in range(repeats):
        before = ceiling()
        begin = time.perf_counter()
        run()
        rate = flops * times / (time.perf_counter() - begin) / 1e9
        ceilings.append(0.5 * (before + ceiling()))
        rates.append(rate)
        shares.append(rate / ceilings[-1])
    return max(rates), float(np.median(shares)), max(ceilings)


def main() -> None:
    rng = np.random.default_rng(0)
    for isa in sys.argv[1:] or instruction_sets():
        backend = NativeBackend(isa)
        # the sets that only multiply bfloat16 in another way are avx512 in float32
        precisions = ["bfloat16"] if isa.startswith("avx512_") else ["float32", "bfloat16", "int8"]
        for (m, k, n), precision in itertools.product(LARGE + SMALL, precisions):
            if precision == "int8" and (m, k, n) in SMALL:  # a single call would be mostly the call
                continue
            if isa == "baseline" and m * k * n > 1e10:
                continue
            x = rng.normal(size=(m, k)).astype(np.float32)
            w = rng.normal(size=(n, k)).astype(np.float32)
            flops = 2.0 * m * k * n
            if precision == "int8":
                made, ceiling = int8_product(backend, x, w), lambda b=backend: b.peak_int8_gops(0.0)
            else:
                made, ceiling = (
                    product(backend, x, w, precision),
                    lambda b=backend, p=precision: b.peak_gflops(p, 0.0),
                )
            best, share, highest = measured(made, flops, ceiling)
            print(
                f"{isa:11} {precision:8} ({m}×{k})·({k}×{n}): {best:7.1f} GFLOP/s, {100 * share:5.1f} % of the ceiling "
                f"beside it, {100 * best / highest:5.1f} % of the highest, {highest:.0f}"
            )
            record("gemm", {"isa": isa, "precision": precision, "shape": [m, k, n], "gflops": best, "share": share,
                            "ceiling_gflops": highest})  # fmt: skip


if __name__ == "__main__":
    main()
