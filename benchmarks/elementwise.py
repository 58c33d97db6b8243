"""Dropout, sigmoid and Adam over arrays larger than caches: ``python -m benchmarks.elementwise [--threads 1]``.

GB/s of the bytes that the operation must move (dropout and sigmoid: x read, y written; Adam: parameter, gradient and
two moments read, three of them written), beside PyTorch in a process of its own and the speed of a copy by NumPy. A
store that does not bypass the cache reads its line first; those bytes are not counted, for anyone.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics

from .common import race, record

N = 1 << 24  # float32 elements: 64 MiB an array
CALLS = 5  # a round: the first one alone would find a processor that has just been idle
ARRAYS = {"copy": 2, "dropout": 2, "sigmoid": 2, "adam": 7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for op, arrays in ARRAYS.items():
        libraries = ["numpy"] if op == "copy" else ["fastae"]
        if op != "copy" and importlib.util.find_spec("torch"):
            libraries.append("torch")
        specs = {name: {"workload": op, "library": name, "elements": N, "calls": CALLS} for name in libraries}
        rounds = race(specs, options.threads, options.rounds)
        best = {name: min(r["seconds"] for r in each) for name, each in rounds.items()}
        rates = {name: arrays * 4 * N / seconds / 1e9 for name, seconds in best.items()}
        print(f"{op}, {options.threads} thread(s): " + ", ".join(f"{n} {rate:.1f} GB/s" for n, rate in rates.items()))
        if "torch" in rounds and "fastae" in rounds:
            pairs = zip(rounds["torch"], rounds["fastae"], strict=True)
            median = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
            print(f"  fastae is {best['torch'] / best['fastae']:.2f} × as fast (best), {median:.2f} × (median)")
        record("elementwise", {"op": op, "threads": options.threads, "elements": N, "gigabytes_a_second": rates})


if __name__ == "__main__":
    main()
