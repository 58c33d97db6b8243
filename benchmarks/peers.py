"""fastae beside its peers: ``python -m benchmarks.peers [--workload w1 w2 w4a] [--threads 1] [--rounds 5]``.

Each contestant runs in a process of its own, in turn. Printed: best time, the ratio of the best times, the median of
the per-round ratios, the ratio of the best processor times (what a shared machine says more about), the loss after the
same number of epochs, and the median share of the ceiling of fused multiply-adds that was measured at each round's end.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics

from fastae.bench import layer_flops

from .common import race, record
from .worker import WIDTHS

# workload: (batch, calls per round); training rounds have EPOCHS epochs, so that no start-up is in them
CASES = {
    "w1": [(32, 1), (256, 1)],
    "w2": [(128, 1), (1024, 1)],
    "w4a": [(1, 2000), (8, 1000), (65_536, 1)],
}
EPOCHS = {"w1": 20, "w2": 1, "w4a": 1}
ROWS = {"w1": 20_000, "w2": 60_000}


def contestants(workload: str, batch: int, calls: int) -> dict[str, dict]:
    base = {"workload": workload, "batch": batch, "calls": calls, "epochs": EPOCHS[workload]}
    found = {"fastae": base | {"library": "fastae"}}
    if workload != "w1":
        found["fastae, bfloat16"] = base | {"library": "fastae", "precision": "bfloat16"}
    if importlib.util.find_spec("torch"):
        if workload == "w4a":
            found["torch"] = base | {"library": "torch"}
        else:
            found["torch, fused Adam"] = base | {"library": "torch", "fused": True}
            found["torch, eager"] = base | {"library": "torch"}
        if workload != "w1":
            found["torch, bf16 autocast"] = base | {"library": "torch", "fused": True, "bf16": True}
    if workload == "w1":
        found["scikit-learn"] = base | {"library": "sklearn"}
    if workload == "w4a":
        found["fastae, int8"] = base | {"library": "fastae", "precision": "int8"}
    if workload == "w4a" and importlib.util.find_spec("openvino"):
        found["openvino"] = base | {"library": "openvino"}
    if workload == "w4a" and importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        found["onnxruntime"] = base | {"library": "onnxruntime"}
    return found


def flops(workload: str, batch: int) -> float:
    """Arithmetic of one round's call: forward, and both products of the backward pass but the first layer's dx."""
    widths = WIDTHS[workload]
    if workload == "w4a":
        return batch * layer_flops(widths)
    return ROWS[workload] * (3 * layer_flops(widths) - 2 * widths[0] * widths[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for workload in options.workload:
        for batch, calls in CASES[workload]:
            rounds = race(contestants(workload, batch, calls), options.threads, options.rounds)
            ours = rounds["fastae"]
            best = min(r["seconds"] for r in ours)
            gflops = flops(workload, batch) / best / 1e9
            ceiling = statistics.median(r["ceiling"] for r in ours)
            share = statistics.median(flops(workload, batch) / 1e9 / r["seconds"] / r["ceiling"] for r in ours)
            share /= options.threads
            print(f"{workload}, batch {batch}, {options.threads} thread(s), ceiling {ceiling:.0f} GFLOP/s a thread")
            figures = {}
            theirs = rounds.get("torch, bf16 autocast")
            if theirs:
                mine = rounds["fastae, bfloat16"]
                ratios = [b["seconds"] / a["seconds"] for a, b in zip(mine, theirs, strict=True)]
                fastest = [min(r["seconds"] for r in side) for side in (theirs, mine)]
                print(f"  bfloat16: fastae is {fastest[0] / fastest[1]:.2f} × as fast as torch's autocast (best), "
                      f"{statistics.median(ratios):.2f} × (median)")  # fmt: skip
            for label, theirs in rounds.items():
                fastest = min(r["seconds"] for r in theirs)
                median = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
                loss = "" if theirs[-1]["loss"] is None else f"  loss {theirs[-1]['loss']:.5g}"
                shown = f"{fastest * 1e6:10.1f} µs" if fastest < 1e-3 else f"{fastest:10.4f} s "
                busy, our_busy = (min(r["processor"] for r in side) for side in (theirs, ours))
                part = f"  {100 * share:.0f} % of ceiling" if label == "fastae" else (
                    f"  fastae is {fastest / best:.2f} × as fast (best), {median:.2f} × (median), "
                    f"{busy / our_busy:.2f} × (processor)")  # fmt: skip
                print(f"  {label:20} {shown}{part}{loss}")
                figures[label] = {"best_seconds": fastest, "ratio_best": fastest / best, "ratio_median": median,
                                  "best_processor_seconds": busy, "loss": theirs[-1]["loss"]}  # fmt: skip
            record("peers", {"workload": workload, "batch": batch, "threads": options.threads, "rounds": options.rounds,
                             "ceiling_gflops": ceiling, "share": share, "gflops": gflops,
                             "figures": figures})  # fmt: skip


if __name__ == "__main__":
    main()
