"""Anomaly detection beside its peers: ``python -m benchmarks.anomaly [--pyod-python PATH] [--embeddings]``.

The ten ADBench sets: 60 % of the rows (stratified) to fit without labels, ROC-AUC on the other 40 %, mean over the
seeds. All contestants see the same splits; PyOD runs in a process and an interpreter of its own, in turn with fastae,
each on its default threads. These sets took part in choosing the detector's defaults; the embeddings did not. Fit
times are those of one fit, including the scores of the training rows, which both keep.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import fastae

from .common import HERE, data_dir, record

SETS = ("annthyroid", "cardio", "mammography", "mnist", "musk", "optdigits", "pendigits", "satimage-2", "shuttle",
        "vowels")  # fmt: skip
COLUMNS = {
    "fastae": "AutoencoderDetector, defaults",
    "standardized": "the same, scoring='standardized'",
    "plain": "the same, scoring='plain'",
    "pca": "error of scikit-learn's PCA with as many components, on standardised rows",
    "rows": "no model: Mahalanobis distance of the standardised rows (scikit-learn's LedoitWolf)",
    "pyod": "PyOD's AutoEncoder, defaults",
}


def split(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to fit, rows to judge, and the labels of the latter."""
    path = data_dir() / (f"adbench/{name}.npz" if name in SETS else f"{name}.npz")
    with np.load(path) as file:
        X, y = file["X"].astype(np.float64), file["y"]
    train, test, _, labels = train_test_split(X, y, train_size=0.6, stratify=y, random_state=seed)
    return train, test, labels


def detector(train: np.ndarray, test: np.ndarray, seed: int, scoring: str = "auto") -> tuple[np.ndarray, float, int]:
    begin = time.perf_counter()
    model = fastae.AutoencoderDetector(scoring=scoring, random_state=seed).fit(train)
    seconds = time.perf_counter() - begin
    return model.anomaly_scores(test), seconds, model.n_components_


def linear(train: np.ndarray, test: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores by PCA's reconstruction error and by the Mahalanobis distance of the rows."""
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    pca = PCA(n_components).fit(train)
    errors = np.square(test - pca.inverse_transform(pca.transform(test))).mean(axis=1)
    return errors, LedoitWolf().fit(train).mahalanobis(test)


class PyOD:
    """The worker process; ``versions`` is None where PyOD can't be imported."""

    def __init__(self, python: str):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "VIRTUAL_ENV"))}
        self.process = subprocess.Popen(
            [python, str(HERE / "pyod_worker.py")], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        answer = self.process.stdout.readline()
        self.versions = json.loads(answer) if answer else None
        if self.versions is None:
            reason = self.process.communicate()[1].strip().splitlines()
            print(f"skipped: PyOD does not run in {python} ({reason[-1] if reason else 'no output'}); --pyod-python")

    def run(self, train: np.ndarray, test: np.ndarray, folder: Path) -> tuple[np.ndarray, float]:
        data, scores = str(folder / "rows.npz"), str(folder / "scores.npy")
        np.savez(data, train=train, test=test)
        self.process.stdin.write(json.dumps({"data": data, "scores": scores}) + "\n")
        self.process.stdin.flush()
        seconds = json.loads(self.process.stdout.readline())["seconds"]
        return np.load(scores), seconds

    def close(self) -> None:
        if self.versions is not None:
            self.process.communicate()


def judge(name: str, seeds: int, pyod: PyOD, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Mean AUC of each contestant and mean fit seconds of fastae and PyOD."""
    aucs: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(seeds):
        train, test, labels = split(name, seed)
        found = {}
        found["fastae"], spent, width = detector(train, test, seed)
        seconds.setdefault("fastae", []).append(spent)
        if pyod.versions is not None:
            found["pyod"], spent = pyod.run(train, test, folder)
            seconds.setdefault("pyod", []).append(spent)
        for scoring in ("standardized", "plain"):
            found[scoring] = detector(train, test, seed, scoring)[0]
        found["pca"], found["rows"] = linear(train, test, width)
        for label, scores in found.items():
            aucs.setdefault(label, []).append(float(roc_auc_score(labels, scores)))
    return {k: float(np.mean(v)) for k, v in aucs.items()}, {k: float(np.mean(v)) for k, v in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    python = os.environ.get("FASTAE_PYOD_PYTHON", sys.executable)
    parser.add_argument("--pyod-python", default=python, help="with PyOD and PyTorch; default: FASTAE_PYOD_PYTHON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--embeddings", action="store_true", help="CIFAR-10 embeddings too, not part of the means")
    options = parser.parse_args()
    pyod = PyOD(options.pyod_python)
    detector(*split("vowels", 0)[:2], 0)  # imports and first-time work, as PyOD has had its own
    columns = [c for c in COLUMNS if c != "pyod" or pyod.versions]
    for column in columns:
        print(f"{column:>13}: {COLUMNS[column]}")
    header = "".join(f"{c:>13}" for c in columns)
    print(" " * 14 + header + "    fit s" + ("  PyOD s  ratio" if pyod.versions else ""))
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*SETS, *(("cifar10_resnet18_embeddings",) if options.embeddings else ())):
            auc, seconds = judge(name, options.seeds, pyod, Path(folder))
            results[name] = {"auc": auc, "seconds": seconds}
            print(line(name, auc, seconds, columns), flush=True)
    pyod.close()
    means = {c: float(np.mean([results[n]["auc"][c] for n in SETS])) for c in columns}
    totals = {c: sum(results[n]["seconds"][c] for n in SETS) for c in results[SETS[0]]["seconds"]}
    print(line("mean, total", means, totals, columns))
    record("anomaly", {"seeds": options.seeds, "mean_auc": means, "total_fit_seconds": totals,
                       "ratio": totals["pyod"] / totals["fastae"] if pyod.versions else None,
                       "peer_versions": pyod.versions, "sets": results})  # fmt: skip


def line(name: str, auc: dict[str, float], seconds: dict[str, float], columns: list[str]) -> str:
    text = f"{name[:13]:14}" + "".join(f"{auc[c]:13.4f}" for c in columns) + f"{seconds['fastae']:9.3f}"
    if "pyod" in seconds:
        text += f"{seconds['pyod']:8.2f}{seconds['pyod'] / seconds['fastae']:7.1f}"
    return text


if __name__ == "__main__":
    main()
