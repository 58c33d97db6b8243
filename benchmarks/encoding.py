"""Encoding 768-256-64, ReLU: ``python -m benchmarks.encoding [--threads 1] [--rounds 9]``. Peers: `benchmarks.peers`.

At batch 1 and 8: microseconds of a call over the arithmetic, which is the same batch many times within one call of the
compiled plan. At 65,536 rows: rows a second, the fraction of the ceiling (multiply-adds from registers, float32 or
8-bit, measured between the rounds), the same for the best 576 rows that are in no cache, as a shared machine seldom
leaves a long call alone, and memory beyond input and output. Beside each speed the error of the codes.
Rounds go in turn; the best of each is printed.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

import fastae
from fastae.backends import get_backend
from fastae.bench import layer_flops
from fastae.plan import schema
from fastae.plan.build import inference_plan
from fastae.plan.plan import Job, Source

from .common import record
from .worker import WIDTHS, encoder_model, rows_of

SMALL = {1: 300, 8: 100}  # batch: calls a round
ROWS = 65_536
KINDS = [("float32", "float32"), ("float32", "float16"), ("float32", "int8"), ("int8", "float32"), ("int8", "int8")]


def arithmetic(encoder, X: np.ndarray, times: int):
    """A call that encodes the batch ``times`` times without coming back to Python."""
    backend, int8 = get_backend("native"), encoder.precision == "int8"
    plan = inference_plan(encoder._network, np.float32, len(X), int8=int8)
    handle, spaces = backend.compile(plan), plan.allocate()
    for name, array in zip(("w0", "b0", "w1", "b1"), (a for pair in _pairs(encoder) for a in pair), strict=True):
        plan.view(spaces, name)[...] = array
    rows = np.broadcast_to(X[:1], (times * len(X), X.shape[1]))
    out = np.empty((len(rows), encoder.n_components), np.float32)
    job = Job([*spaces, out], (Source(rows, columns=X.shape[1]),), len(rows), n_steps=times, phases=3)
    backend.run(handle, job)
    job.phases = schema.GRADIENT
    return lambda: backend.run(handle, job)


def _pairs(encoder) -> list:
    return encoder.__reduce__()[1][1][0]


def seconds(call, times: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def small(model: fastae.Autoencoder, encoders: dict, X: np.ndarray, rounds: int) -> None:
    for batch, times in SMALL.items():
        rows = X[:batch]
        calls = {}
        for precision in ("float32", "int8"):
            encoder = encoders[precision, "float32"]
            loop = arithmetic(encoder, rows, times)
            calls[f"arithmetic, {precision}"] = lambda loop=loop, times=times: seconds(loop) / times
            calls[f"encoder, {precision}"] = lambda e=encoder, times=times: seconds(lambda: e(rows), times)  # noqa: B023
        calls["transform"] = lambda times=times: seconds(lambda: model.transform(rows), times)  # noqa: B023
        best = dict.fromkeys(calls, np.inf)
        for _ in range(rounds * 5):
            for name, call in calls.items():
                best[name] = min(best[name], call())
        for name, value in best.items():
            base = best["arithmetic, int8" if "int8" in name else "arithmetic, float32"]
            over = "" if name.startswith("arithmetic") else f", {1e6 * (value - base):6.2f} µs over the arithmetic"
            print(f"batch {batch}: {name:20} {1e6 * value:8.2f} µs{over}")
        record("encoding", {"batch": batch, "best_seconds": best})


def large(encoders: dict, X: np.ndarray, threads: int, rounds: int) -> None:
    backend, work = get_backend("native"), len(X) * layer_flops(WIDTHS["w4a"])
    # ceilings of the clock that each call leaves behind: it sinks under products
    best, shares = dict.fromkeys(encoders, np.inf), {kind: [] for kind in encoders}
    peaks = {"float32": lambda: backend.peak_gflops("float32", 0.0), "int8": lambda: backend.peak_int8_gops(0.0)}
    piece, part_of_best = dict.fromkeys(encoders, np.inf), 576
    outs = {kind: encoder(X) for kind, encoder in encoders.items()}
    for _ in range(rounds):
        for kind, encoder in encoders.items():
            took = seconds(lambda e=encoder, k=kind: e(X, outs[k]))
            best[kind] = min(best[kind], took)
            shares[kind].append(work / took / 1e9 / peaks[kind[0]]() / threads)
            for start in range(0, len(X) - part_of_best, 16 * part_of_best):
                rows = slice(start, start + part_of_best)
                out = tuple(o[rows] for o in outs[kind]) if isinstance(outs[kind], tuple) else outs[kind][rows]
                piece[kind] = min(piece[kind], seconds(lambda e=encoder, r=rows, o=out: e(X[r], o)))
    ceiling = {name: peak() for name, peak in peaks.items()}
    print(f"ceilings of a thread: {ceiling['float32']:.0f} GFLOP/s in float32, {ceiling['int8']:.0f} GOP/s in 8 bits")
    for kind, encoder in encoders.items():
        precision, output = kind
        tracemalloc.start()
        encoder(X, outs[kind])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        part = float(np.median(shares[kind]))
        of_piece = work * part_of_best / len(X) / piece[kind] / 1e9 / ceiling[precision] / threads
        error = encoder.error
        print(
            f"{precision:7} to {output:7}: {len(X) / best[kind] / 1e3:7.0f} krows/s, {100 * part:3.0f} % of the "
            f"ceiling ({100 * of_piece:.0f} % at best), Python memory {peak / 1024:.0f} KiB, relative RMS error "
            f"{error.relative_rms:.1e}, largest {error.largest:.1e}"
        )
        record("encoding", {"batch": len(X), "precision": precision, "output": output, "threads": threads,
                            "best_seconds": best[kind], "fraction_of_ceiling": part,
                            "fraction_at_best": of_piece, "ceiling": ceiling[precision],
                            "relative_rms": error.relative_rms, "largest_error": error.largest})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    X, model = rows_of("w4a"), encoder_model(options.threads)
    encoders = {
        (precision, output): model.encoder(precision, output=output, sample=X[:4096]) for precision, output in KINDS
    }
    small(model, encoders, X, options.rounds)
    large(encoders, X, options.threads, options.rounds)


if __name__ == "__main__":
    main()
