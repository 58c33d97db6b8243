"""Each micro-kernel against its ceiling, for each compiler: ``python -m benchmarks.guard [g++ clang++ …]``.

Compilers spoil kernels without a word (copies around intrinsics, spilled accumulators), so each one builds the library
into a temporary folder (minutes), and the builds are measured in turn, each in a process of its own, one thread;
``--built g++=FOLDER clang++=FOLDER`` measures builds that are there. Printed and recorded: the median rate with its
share of the median ceiling, and the share of the best rate in the best ceiling. Ceilings of products are rates of their
instructions from registers, of elementwise operations the rate of a copy by NumPy of arrays as large; the highest that
any build showed counts, as a compiler may spoil the ceiling's loop too. Sigmoid and Adam within L2 are bound by
arithmetic, so a copy is far above them: there compare compilers, and with earlier runs in the ledger.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import HERE, Contestant, record

SOURCES = ("csrc", "fastae", "setup.py", "pyproject.toml", "README.md", "LICENSE")
Rates = dict[str, tuple[float, float]]  # best, median
C_OF = {"g++": "gcc", "clang++": "clang", "icpx": "icx"}


def build(compiler: str, folder: Path) -> None:
    """Sources as they are now, compiled in place in ``folder``."""
    for name in SOURCES:
        source = HERE.parent / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
        else:
            shutil.copy(source, folder / name)
    shutil.copytree(HERE, folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    environment = os.environ | {"CXX": compiler, "CC": C_OF.get(compiler, compiler)}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=environment, check=True
    )


def ceiling_of(kernel: str, ceilings: Rates, rates: Rates) -> tuple[float, float]:
    isa, _, what = kernel.partition(", ")
    if " in " in kernel:
        return rates["copy in " + kernel.rpartition(" in ")[2]]
    return ceilings["int8" if what.startswith("int8") else f"{isa}, {what.split()[0]}"]


def best_of(parts: list[Rates]) -> Rates:
    """The highest best and the highest median of several measurements."""
    return {name: tuple(max(part[name][i] for part in parts) for i in range(2)) for name in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compilers", nargs="*", default=[c for c in ("g++", "clang++") if shutil.which(c)])
    parser.add_argument("--built", nargs="+", metavar="COMPILER=FOLDER", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastae-guard-") as temporary:
        places = {name: Path(folder) for name, _, folder in (item.partition("=") for item in options.built)}
        if not places:
            places = {name: Path(temporary, name.replace("/", "_")) for name in options.compilers}
            for compiler, place in places.items():
                print(f"building with {compiler} …", flush=True)
                place.mkdir()
                build(compiler, place)
        workers = [Contestant(name, {}, 1, "benchmarks.guard_worker", place) for name, place in places.items()]
        try:
            for _ in range(options.rounds):
                for worker in workers:
                    worker.round()
        finally:
            for worker in workers:
                worker.close()
    ceilings = best_of([r["ceilings"] for w in workers for r in w.rounds])
    best = {worker.label: best_of([r["rates"] for r in worker.rounds]) for worker in workers}
    top = best_of(list(best.values()))
    print("ceilings, best and median: " + ", ".join(f"{name} {a:.0f} {b:.0f}" for name, (a, b) in ceilings.items()))
    print(f"{'':40}" + "".join(f"{label:>30}" for label in best))
    for kernel in top:
        if kernel.startswith("copy"):
            continue
        high, middle = ceiling_of(kernel, ceilings, top)
        shares = {label: (rates[kernel][0] / high, rates[kernel][1] / middle) for label, rates in best.items()}
        print(f"{kernel:40}" + "".join(
            f"{best[label][kernel][1]:10.1f} {100 * b:5.1f} % ({100 * a:5.1f} %)" for label, (a, b) in shares.items()
        ))  # fmt: skip
        builds = {}
        for label, (a, b) in shares.items():
            most, median = best[label][kernel]
            builds[label] = {"version": version_of(label), "best": most, "median": median, "share_of_best": a,
                             "share_of_median": b}  # fmt: skip
        record("guard", {"kernel": kernel, "ceiling": [high, middle], "rounds": options.rounds, "builds": builds})


def version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    main()
