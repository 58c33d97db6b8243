"""Sparse encoding by path against the ceiling of float32: ``python -m benchmarks.encode [isa …]``.

Times are CPU time of one thread, as the machine is shared.

FLOPs are those of the product of (m × p) with (p × n), whatever a path computes, so that more than 100 % of the
ceiling, the rate of float32's multiply-adds from registers, is what candidates in fewer bits gain. As in training
(weights are rounded within the timed call), or packed beforehand as for inference; there bytes are what a row block
reads at least. "codes in bfloat16" are those of ``precision="bfloat16"``; all others are float32's.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from fastae.backends.native import NativeBackend, instruction_sets
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, aligned_bytes

from .common import record

ROUNDED = "codes in bfloat16"
P, N, K = 768, 24576, 32  # W3, W4b
CASES = [  # rows, packed
    (1, True), (4, True), (16, True), (32, True), (192, True), (1024, True), (192, False), (1024, False), (4096, False),
]  # fmt: skip


def encoder(backend: NativeBackend, x: np.ndarray, w: np.ndarray, path: str, packed: bool, kind: str = "topk"):
    """A call that encodes x once; weights are packed, where asked for, before it returns."""
    (m, p), n = x.shape, len(w)
    arrays = {"x": x, "w": w, "b": np.zeros((1, n), np.float32), "val": np.empty((m, K), np.float32),
              "idx": np.empty((m, K), np.int32), "count": np.empty((m, 1), np.int32)}  # fmt: skip
    if packed:
        rows, columns = -(-n // 64) * 64, schema.pack_columns(p)
        arrays["packed"] = aligned_bytes(rows * columns).view(np.int8).reshape(rows, columns)
    codes = {np.dtype(np.int32): schema.INT32, np.dtype(np.int8): schema.INT8}
    builder = PlanBuilder(np.float32, m, "encode")
    for name, array in arrays.items():
        rows = len(array) if name in ("w", "b", "packed") else schema.BATCH_ROWS
        builder.external(name, rows, array.shape[1], codes.get(array.dtype, schema.REAL))
    if packed:
        builder.op("pack_encoder", schema.PREPARE, w="w", packed="packed", bf16=path == ROUNDED)
    builder.op("encode", **{name: name for name in arrays}, kind=schema.CODE_KINDS.index(kind), k=K, k_scalar=-1,
               path=schema.ENCODE_PATHS.index("auto" if path == ROUNDED else path), bf16=path == ROUNDED,
               overflow=-1)  # fmt: skip
    plan = builder.build()
    handle, spaces = backend.compile(plan), [*plan.allocate(), *arrays.values()]

    def run(phases: int = schema.GRADIENT) -> None:
        backend.run(handle, Job(spaces, n_rows=m, phases=phases))

    run(schema.PREPARE | schema.GRADIENT)
    return run


def main() -> None:
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(N, P)) / P**0.5).astype(np.float32)
    for isa in sys.argv[1:] or instruction_sets()[-1:]:
        backend = NativeBackend(isa)
        ceiling = backend.peak_gflops("float32", 0.1)
        print(f"{isa}: ceiling {ceiling:.0f} GFLOP/s; p {P}, n {N:,}, k {K}")
        results = []
        for m, packed in CASES:
            x = rng.normal(size=(m, P)).astype(np.float32)
            paths = ("float32", "bfloat16", "int8", "auto", ROUNDED)
            calls = {path: encoder(backend, x, w, path, packed) for path in paths if packed or path != "int8"}
            best = dict.fromkeys(calls, np.inf)
            for _ in range(3 if m > 1024 else 7):  # in turn, as the machine's speed varies
                for path, call in calls.items():
                    begin = time.thread_time()
                    call()
                    best[path] = min(best[path], time.thread_time() - begin)
            for path, seconds in best.items():
                gflops = 2e-9 * m * N * P / seconds
                print(f"  batch {m:5d} {'packed' if packed else '      '} {path:17s} {seconds * 1e3:8.2f} ms "
                      f"{m / seconds:9,.0f} rows/s {gflops:7.0f} GFLOP/s {gflops / ceiling:6.0%}")  # fmt: skip
                results.append({"batch": m, "packed": packed, "path": path, "ms": round(seconds * 1e3, 3)})
        record("encode", {"isa": isa, "ceiling_gflops": round(ceiling, 1), "shape": [P, N, K], "results": results})


if __name__ == "__main__":
    main()
