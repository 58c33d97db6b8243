"""Each micro-kernel against its ceiling, for each compiler: ``python -m benchmarks.guard [g++ clang++ …]``.

Compilers spoil kernels without a word (copies around intrinsics, spilled accumulators), so each one builds the library
into a temporary folder (minutes), and the builds are measured in turn, each in a process of its own, one thread;
``--built g++=FOLDER clang++=FOLDER`` measures builds that are there. Printed and recorded: the best median rate of a
round and its share in the ceiling: for products the rate of their instructions from registers, measured just before
and after each call (a clock that sinks under load is no fault of a kernel; a compiler that spoils that loop as well
shows in the rates); for elementwise operations the rate of a copy by NumPy of arrays as large. Sigmoid and Adam within
L2 are bound by arithmetic, so a copy is far above them: there compare compilers, and with earlier runs in the ledger.
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
Rates = dict[str, tuple[float, float, float | None]]  # best, median, share in the ceiling
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


def best_of(rounds: list[Rates]) -> Rates:
    """Of each kernel the round with the highest median."""
    return {name: max((r[name] for r in rounds), key=lambda rate: rate[1]) for name in rounds[0]}


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
    rates = {worker.label: best_of(worker.rounds) for worker in workers}
    print(f"{'':40}" + "".join(f"{label:>22}" for label in rates))
    for kernel in next(iter(rates.values())):
        if kernel.startswith("copy"):
            continue
        where = kernel.rpartition(" in ")[2] if " in " in kernel else None
        copy = max(r[f"copy in {where}"][1] for r in rates.values()) if where else None
        builds = {}
        for label, found in rates.items():
            best, median, share = found[kernel]
            share = share if copy is None else median / copy
            builds[label] = {"version": version_of(label), "best": best, "median": median, "share": share}
        print(f"{kernel:40}" + "".join(f"{b['median']:12.1f} {100 * b['share']:7.1f} %" for b in builds.values()))
        record("guard", {"kernel": kernel, "copy": copy, "rounds": options.rounds, "builds": builds})


def version_of(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    main()
