"""Sparse autoencoders beside peers: ``python -m benchmarks.sparse_peers [--workload w3 w4b] [--threads] [--rounds]``.

Each contestant in a process of its own, in turn, fastae also with ``precision="bfloat16"``. W3, a step of training: the
dense product alone is 2 m p n FLOPs, Adam moves 6 arrays of n p floats both ways. W4b, encoding: the same product; for
one row it is the weights' bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics

from fastae.backends import get_backend

from .common import race, record
from .sparse_worker import K, N, P

# batch, calls of a round
CASES = {"w3": [(1024, 3), (4096, 1)], "w4b": [(1, 100), (32, 10), (4096, 1)]}
PEERS = {"w3": ("torch",), "w4b": ("torch", "onnxruntime", "openvino")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    native = get_backend("native")
    for workload in options.workload:
        for batch, calls in CASES[workload]:
            base = {"workload": workload, "batch": batch, "calls": calls}
            peers = [name for name in PEERS[workload] if importlib.util.find_spec(name)]
            ceiling = native.peak_gflops("float32")
            contestants = {"fastae": {"library": "fastae"},
                           "in bfloat16": {"library": "fastae", "precision": "bfloat16"},
                           **{name: {"library": name} for name in peers}}  # fmt: skip
            rounds = race({name: base | spec for name, spec in contestants.items()}, options.threads,
                          options.rounds, "benchmarks.sparse_worker")  # fmt: skip
            ours = rounds["fastae"]
            best = min(r["seconds"] for r in ours)
            product = 2 * batch * P * N
            print(f"{workload}, {P} → {N}, k {K}, batch {batch}, {options.threads} thread(s); float32 ceiling "
                  f"{ceiling:.0f} GFLOP/s a thread; the float32 product alone would take at least "
                  f"{product / ceiling / options.threads / 1e6:.1f} ms")  # fmt: skip
            figures = {}
            for label, theirs in rounds.items():
                fastest = min(r["seconds"] for r in theirs)
                median = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
                loss = "" if theirs[-1]["loss"] is None else f"  loss {theirs[-1]['loss']:.6g}"
                part = f"  {batch / best:,.0f} rows/s" if label == "fastae" else (
                    f"  fastae is {fastest / best:.2f} × as fast (best), {median:.2f} × (median)")  # fmt: skip
                print(f"  {label:12} {fastest * 1e3:10.2f} ms{part}{loss}")
                figures[label] = {"best_seconds": fastest, "ratio_best": fastest / best, "ratio_median": median,
                                  "loss": theirs[-1]["loss"]}  # fmt: skip
            settings = {"workload": workload, "batch": batch, "threads": options.threads, "rounds": options.rounds}
            record("sparse_peers", settings | {"ceiling_gflops": ceiling, "figures": figures})


if __name__ == "__main__":
    main()
