"""Encoding with a sparse autoencoder as it grows: ``python -m benchmarks.sparse_scaling [--threads 1]``.

Time per row and latent over 8,192 to 262,144 latents (width 384, k 32), time per row over batches of 256 to 16,384
(768 → 24,576), both as processor time, best of some; and the peak memory of encoding 65,536 rows with 131,072 latents,
beside what the model, its packed weights, the rows and the codes take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np

from fastae.plan.schema import pack_columns

from .common import record

K = 32
LATENTS = (8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16_384)


def rows(n: int, p: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, p)) + rng.exponential(size=(n, 16)) @ rng.normal(size=(16, p))).astype(np.float32)


def model(n: int, p: int, threads: int):
    from fastae import SparseAutoencoder

    w = np.random.default_rng(1).normal(size=(n, p)).astype(np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    return SparseAutoencoder.from_arrays(w, None, w, None, k=K, n_jobs=threads)


def seconds(encode, rounds: int) -> float:
    encode()
    best = np.inf
    for _ in range(rounds):
        begin = time.process_time()
        encode()
        best = min(best, time.process_time() - begin)
    return best


def by_latents(threads: int) -> dict:
    x, found = rows(1024, 384), {}
    for n in LATENTS:
        m = model(n, 384, threads)
        found[n] = seconds(lambda m=m: m.encode(x), max(3, 131_072 // n)) / len(x) / n
        print(
            f"{n:9,} latents  {found[n] * 1e12:8.1f} ps a row and latent  "
            f"{found[n] / found[LATENTS[0]]:.2f} × the first"
        )
    return found


def by_batch(threads: int) -> dict:
    m, found = model(24_576, 768, threads), {}
    x = rows(BATCHES[-1], 768)
    for batch in BATCHES:
        found[batch] = seconds(lambda batch=batch: m.encode(x[:batch]), max(2, 8192 // batch)) / batch
        print(
            f"batch {batch:6,}  {found[batch] * 1e6:8.1f} µs a row  {found[batch] / found[BATCHES[0]]:.2f} × the first"
        )
    return found


def memory(threads: int) -> dict:
    """In a process of its own: bytes at the peak, and of what must be there."""
    import gc

    n, p, m = 131_072, 384, 65_536
    x = rows(m, p)
    sae = model(n, p, threads)
    gc.collect()
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    now = int(status["VmRSS"].split()[0]) * 1024
    with open("/proc/self/clear_refs", "w") as file:  # the peak from here on
        file.write("5")
    values, indices = sae.encode(x)
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {"before": now, "peak": peak, "weights": sae._theta.nbytes, "result": values.nbytes + indices.nbytes,
            "packs": n * pack_columns(p)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.threads)))
        return
    command = [sys.executable, "-m", "benchmarks.sparse_scaling", "--memory", "--threads", str(options.threads)]
    used = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mb = {name: value / 1e6 for name, value in used.items()}
    beyond = mb["peak"] - mb["before"] - mb["result"] - mb["packs"]
    print(f"131,072 latents of width 384, 65,536 rows: weights {mb['weights']:.0f} MB, packs "
          f"{mb['packs']:.0f} MB, codes {mb['result']:.0f} MB; the process grew by "
          f"{mb['peak'] - mb['before']:.0f} MB while encoding, {beyond:.0f} MB beyond packs and codes")  # fmt: skip
    grown = {"latents": by_latents(options.threads), "batches": by_batch(options.threads)}
    record("sparse_scaling", {"threads": options.threads, "memory": used, "beyond_mb": beyond} | grown)


if __name__ == "__main__":
    main()
