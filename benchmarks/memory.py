"""Memory that training W2 takes beyond the data, beside PyTorch's: ``python -m benchmarks.memory [--batch 128 1024]``.

784-512-128-32 mirrored, dropout 0.2, binary cross-entropy, Adam, one epoch of MNIST, one thread. Each contestant is a
fresh process: its peak of resident memory during training (VmHWM, reset before) less what it held with the library
imported and the rows loaded. The least that is needed: parameters, gradients and Adam's two moments, and a batch's
activations.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from .common import HERE, record
from .worker import WIDTHS


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def contestant(spec: dict) -> None:
    from .worker import MAKERS

    run = MAKERS[spec["library"]](spec)  # imports, rows, the model
    forget_peak()
    before = resident("VmRSS")
    _, loss = run()
    print(json.dumps({"bytes": resident("VmHWM") - before, "loss": loss}))


def least(batch: int) -> int:
    """Bytes of parameters with gradients and moments, and of one batch's activations and their gradients."""
    widths = WIDTHS["w2"]
    parameters = sum(k * n + n for k, n in zip(widths, widths[1:], strict=False))
    return 4 * (4 * parameters + 2 * batch * sum(widths[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        return contestant(json.loads(options.contestant))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTAE_NUM_THREADS")
    for batch in options.batch:
        base = {"workload": "w2", "batch": batch, "threads": 1, "epochs": 1}
        specs = {"fastae": base | {"library": "fastae"},
                 "fastae, bfloat16": base | {"library": "fastae", "precision": "bfloat16"}}  # fmt: skip
        if importlib.util.find_spec("torch"):
            specs["torch, fused Adam"] = base | {"library": "torch", "fused": True}
        figures = {}
        for label, spec in specs.items():
            made = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", "--contestant", json.dumps(spec)], cwd=HERE.parent,
                env=os.environ | dict.fromkeys(names, "1"), capture_output=True, text=True, check=True,
            )  # fmt: skip
            figures[label] = json.loads(made.stdout)["bytes"]
        print(f"W2, batch {batch}; at least {least(batch) / 2**20:.1f} MiB: "
              + ", ".join(f"{label} {size / 2**20:.1f} MiB" for label, size in figures.items()))  # fmt: skip
        record("memory", {"workload": "w2", "batch": batch, "least_bytes": least(batch), "bytes": figures})


if __name__ == "__main__":
    main()
