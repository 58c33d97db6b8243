"""What the benchmarks share: data, the ledger, and contestants that run in turn in processes of their own."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
LEDGER = HERE / "results"


def data_dir() -> Path:
    """Folder of the real data; ends the program visibly when it isn't there."""
    folder = Path(os.environ.get("FASTAE_DATA", HERE.parents[1] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"skipped: no real data at {folder}; set FASTAE_DATA")
    return folder


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """(60000, 784) and (3000, 784) float32 in [0, 1]; the test rows are the first 3,000 of MNIST's 10,000."""
    with np.load(data_dir() / "mnist_63k.npz") as file:
        return tuple(
            (file[name].reshape(-1, 784) / np.float32(255)).astype(np.float32) for name in ("x_train", "x_test")
        )


def tabular() -> np.ndarray:
    """(20000, 30) float32: eight factors, unit variance."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 8)) @ rng.normal(size=(8, 30))
    return (X / X.std()).astype(np.float32)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    """Where and with what a figure was measured."""
    from fastae.config import configuration

    info = configuration()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or None,
        "processor": info["processor"],
        "cores": os.cpu_count(),
        "compiler": info.get("compiler"),
        "instruction_set": info.get("instruction_set"),
        "python": platform.python_version(),
        "versions": {
            p: version(p) for p in ("numpy", "torch", "scikit-learn", "onnxruntime", "openvino") if version(p)
        },
    }


def record(name: str, entry: dict) -> None:
    """Appends one run to ``results/<name>.jsonl``."""
    LEDGER.mkdir(exist_ok=True)
    with open(LEDGER / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(machine() | entry) + "\n")


class Contestant:
    """A worker process that runs one round each time it is asked: ``python -m <worker> <spec>``.

    folder : where the package is that it runs, None for the one here
    """

    def __init__(self, label: str, spec: dict, threads: int, worker: str, folder: Path | None = None):
        self.label = label
        self.rounds: list[dict] = []
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTAE_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads))
        if folder is not None:
            environment["PYTHONPATH"] = str(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", worker, json.dumps(spec | {"threads": threads})],
            cwd=folder or HERE.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        ready = self.process.stdout.readline()
        if ready.strip() != "ready":
            raise RuntimeError(f"{label} did not start: {ready!r}")

    def round(self) -> dict:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(json.loads(self.process.stdout.readline()))
        return self.rounds[-1]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def race(
    contestants: dict[str, dict], threads: int, rounds: int, worker: str = "benchmarks.worker"
) -> dict[str, list[dict]]:  # fmt: skip
    """Rounds of all contestants in turn, A B C A B C …, after one warm-up round each."""
    workers = [Contestant(label, spec, threads, worker) for label, spec in contestants.items()]
    try:
        for one in workers:
            one.round()
            one.rounds.clear()
        for _ in range(rounds):
            for one in workers:
                one.round()
    finally:
        for one in workers:
            one.close()
    return {one.label: one.rounds for one in workers}
