"""A quick self-check of speed: a few workloads of every day, each held against this machine's measured ceiling.

JSON schema (``fastae bench --json``), version 1:

- ``schema_version`` int; ``fastae``, ``python``, ``numpy`` version strings; ``processor``, ``backend``,
  ``instruction_set`` (null off the native backend); ``threads`` int
- ``ceiling_gflops``: measured rate of float32 fused multiply-adds of one thread, GFLOP/s; null off the native backend
- ``results``: list of {``name``, ``unit`` ("s/epoch" or "rows/s"), ``value``, ``flops_per_row``, ``gflops``,
  ``fraction_of_ceiling`` (of all threads' ceilings together; null without a ceiling)}

Later versions only add keys.
"""

from __future__ import annotations

import platform
import time
from typing import Any

import numpy as np

from . import __version__
from .backends import get_backend
from .models.autoencoder import Autoencoder
from .threads import resolve_threads

SCHEMA_VERSION = 1


def layer_flops(widths: tuple[int, ...]) -> int:
    """Floating-point operations of one row's forward pass."""
    return 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def _best(run: Any, repeats: int) -> float:
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def run_bench(n_jobs: int | None = None, repeats: int = 3) -> dict:
    """Runs the self-check; returns the report described above."""
    backend = get_backend()
    n_threads = resolve_threads(n_jobs)
    ceiling = backend.peak_gflops("float32") if hasattr(backend, "peak_gflops") else None
    rng = np.random.default_rng(0)
    results = []

    def record(name: str, unit: str, value: float, rows_per_second: float, flops: int) -> None:
        gflops = rows_per_second * flops / 1e9
        fraction = None if ceiling is None else gflops / (ceiling * n_threads)
        results.append({"name": name, "unit": unit, "value": value, "flops_per_row": flops, "gflops": gflops,
                        "fraction_of_ceiling": fraction})  # fmt: skip

    tabular = rng.normal(size=(20_000, 30)).astype(np.float32)
    for batch in (32, 256):
        model = Autoencoder(32, hidden_layer_sizes=(64,), code_activation="relu", batch_size=batch, max_iter=1, tol=0.0,
                            random_state=0, n_jobs=n_jobs)  # fmt: skip
        seconds = _best(lambda m=model: m.fit(tabular), repeats)
        flops = 3 * layer_flops((30, 64, 32, 64, 30)) - 2 * 30 * 64
        record(f"train 30-64-32-64-30, batch {batch}", "s/epoch", seconds, len(tabular) / seconds, flops)

    rows = rng.normal(size=(16_384, 768)).astype(np.float32)
    encoder = Autoencoder(64, hidden_layer_sizes=(256,), code_activation="relu", max_iter=1, random_state=0,
                          n_jobs=n_jobs).fit(rows[:512])  # fmt: skip
    for n in (1, 16_384):
        calls = 1 if n > 1 else 200
        block = rows[:n]
        out = encoder.transform(block)

        def encode(block: np.ndarray = block, out: np.ndarray = out, calls: int = calls) -> None:
            for _ in range(calls):
                encoder.transform(block, out=out)

        rate = n * calls / _best(encode, repeats)
        record(f"encode 768-256-64, {n} rows a call", "rows/s", rate, rate, layer_flops((768, 256, 64)))

    from .config import configuration

    info = configuration()
    return {
        "schema_version": SCHEMA_VERSION,
        "fastae": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": info["processor"],
        "backend": backend.name,
        "instruction_set": getattr(backend, "isa", None),
        "threads": n_threads,
        "ceiling_gflops": ceiling,
        "results": results,
    }


def show(report: dict) -> str:
    """The report as text."""
    isa, ceiling = report["instruction_set"] or "-", report["ceiling_gflops"]
    lines = [
        f"fastae {report['fastae']}, {report['processor']}, backend {report['backend']}, {isa}, "
        f"{report['threads']} thread(s)" + (f", ceiling {ceiling:.0f} GFLOP/s a thread" if ceiling else "")
    ]
    for row in report["results"]:
        part = "" if row["fraction_of_ceiling"] is None else f"  {100 * row['fraction_of_ceiling']:5.1f} % of ceiling"
        value = f"{row['value']:.4f}" if row["unit"] == "s/epoch" else f"{row['value']:,.0f}"
        lines.append(f"  {row['name']:36} {value:>14} {row['unit']:8} {row['gflops']:7.1f} GFLOP/s{part}")
    return "\n".join(lines)
