"""Training cost over batch sizes, widths and depths: ``python -m benchmarks.sweep [--plot FILE] [--threads 1]``.

GFLOP/s of whole training steps (forward, both products of the backward pass, Adam) of autoencoders of square layers,
beside the measured ceiling of fused multiply-adds. A cliff would show as a fall between neighbouring points. Fits of
the widest layers have a step or a few, so that what a fit costs besides (allocation, copies of weights) is in them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import fastae
from fastae.backends import get_backend
from fastae.bench import layer_flops

from .common import record

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
WIDTHS = (1, 2, 4, 8, 16, 30, 64, 100, 128, 256, 500, 512, 1000, 1024, 2048, 4096, 10_000)
DEPTHS = (1, 2, 4, 8, 12, 16, 20)
SECONDS = 0.5  # of training per point


def flops(widths: tuple[int, ...]) -> float:
    """Of a training step, per row: the first layer has no gradient of its input."""
    return 3 * layer_flops(widths) - 2 * widths[0] * widths[1]


def rate(width: int, depth: int, batch: int, threads: int) -> float:
    """GFLOP/s of steps with ``depth`` layers of ``width`` units on each side, best of three."""
    widths = (width,) * (2 * depth + 1)
    work = flops(widths) * batch
    steps = int(np.clip(SECONDS * 1e11 / (work + 1e6), 1, 2000))
    X = np.random.default_rng(0).normal(size=(min(steps, 4) * batch, width)).astype(np.float32)
    model = fastae.Autoencoder(
        width, hidden_layer_sizes=(width,) * (depth - 1), batch_size=batch, max_iter=-(-steps * batch // len(X)),
        tol=0.0, n_iter_no_change=10**9, warm_start=True, random_state=0, n_jobs=threads, learning_rate=1e-5,
        callbacks=(),
    ).fit(X[:batch])  # fmt: skip
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        model.fit(X)
        best = max(best, model.max_iter * flops(widths) * len(X) / (time.perf_counter() - begin) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", help="picture to write")
    options = parser.parse_args()
    ceiling = get_backend("native").peak_gflops("float32") * options.threads
    sweeps = {
        "batch, width 512, depth 2": [(b, rate(512, 2, b, options.threads)) for b in BATCHES],
        "batch, width 64, depth 2": [(b, rate(64, 2, b, options.threads)) for b in BATCHES],
        "width, batch 128, depth 2": [(w, rate(w, 1 if w > 4096 else 2, 128, options.threads)) for w in WIDTHS],
        "depth, width 128, batch 128": [(d, rate(128, d, 128, options.threads)) for d in DEPTHS],
    }
    for title, points in sweeps.items():
        print(f"{title}; ceiling {ceiling:.0f} GFLOP/s")
        for x, value in points:
            print(f"  {x:6}  {value:7.1f} GFLOP/s  {100 * value / ceiling:5.1f} %  {'#' * int(60 * value / ceiling)}")
    record("sweep", {"threads": options.threads, "ceiling_gflops": ceiling, "gflops": sweeps})
    if options.plot:
        plot(sweeps, ceiling, options.plot)


def plot(sweeps: dict[str, list[tuple[int, float]]], ceiling: float, path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.2), sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes, sweeps.items(), strict=True):
        axis.semilogx(*zip(*points, strict=True), marker=".", base=2)
        axis.axhline(ceiling, color="0.6", linestyle=":")
        axis.set(xlabel=title.partition(",")[0], title=title.partition(", ")[2], ylim=(0, None))
    axes[0].set_ylabel("GFLOP/s, training steps")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
