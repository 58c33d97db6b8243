"""The demo: an autoencoder of scikit-learn's digits, beside PCA at the same code size."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any

import numpy as np

CODE, HIDDEN, EPOCHS = 8, (256, 64), 120


def _compiler() -> str | None:
    """A C++ compiler that an installation would have used."""
    wanted = os.environ.get("CXX")
    if wanted:
        return shutil.which(wanted.split()[0])
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def _rate(run: Any, rows: int, seconds: float = 0.3) -> float:
    """Rows a second of repeated calls."""
    run()
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run()
        calls += 1
    return calls * rows / (time.perf_counter() - begin)


def run_demo(*, check: bool = False, picture: str | None = "fastae-demo.png", out: Any = None) -> int:
    """Trains, compares, prints; returns the exit status: 1 when ``check`` and Numba ran despite a compiler."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    from . import __version__
    from .backends import get_backend
    from .models.autoencoder import Autoencoder
    from .threads import resolve_threads

    out = sys.stdout if out is None else out

    def say(text: str = "") -> None:
        print(text, file=out, flush=True)

    begin = time.perf_counter()
    backend = get_backend()
    isa = getattr(backend, "isa", "-")
    say(f"fastae {__version__}: backend {backend.name}, instruction set {isa}, {resolve_threads(None)} thread(s)")
    X = (load_digits().data / 16).astype(np.float32)
    order = backend.permutation(0, 0, len(X))
    train, test = X[order[300:]], X[order[:300]]
    widths = "-".join(map(str, (64, *HIDDEN, CODE, *HIDDEN[::-1], 64)))
    say(
        f"digits: {len(train)} images to train on, {len(test)} held out; {widths}, squared error, Adam, {EPOCHS} epochs"
    )

    model = Autoencoder(
        CODE, hidden_layer_sizes=HIDDEN, learning_rate=2e-3, batch_size=128, max_iter=EPOCHS, tol=0.0, random_state=0
    )
    model.partial_fit(train[:256])  # compiles, where something is compiled
    start = time.perf_counter()
    model.fit(train)
    seconds = time.perf_counter() - start
    pca = PCA(CODE, random_state=0).fit(train)
    error = -model.score(test)
    pca_error = float(np.mean((test - pca.inverse_transform(pca.transform(test))) ** 2))
    encoding = _rate(lambda: model.transform(train), len(train))

    say(f"reconstruction error on held-out images, code of {CODE}:")
    say(f"  autoencoder {error:.5f}")
    say(f"  PCA         {pca_error:.5f}   ({pca_error / error:.2f} times the autoencoder's)")
    say(f"training: {seconds:.2f} s, {model.n_iter_ * len(train) / seconds:,.0f} rows/s")
    say(f"encoding: {encoding:,.0f} rows/s")
    if picture:
        try:
            from .plot import save_reconstructions

            save_reconstructions(picture, test[:12], model.reconstruct(test[:12]), (8, 8))
            say(f"picture of originals and reconstructions: {picture}")
        except ImportError:
            say("no picture: matplotlib is not installed (pip install 'fastae[plot]')")
        except OSError as error_:
            say(f"no picture: {error_}")
    say(f"done in {time.perf_counter() - begin:.1f} s")

    compiler = _compiler()
    if backend.name == "numba" and compiler and not os.environ.get("FASTAE_BACKEND"):
        from .config import build_report

        say("=" * 80)
        say(f"WARNING: this ran on Numba although a C++ compiler exists ({compiler}).")
        say(f"Why the compiled kernels are missing: {build_report().get('error') or 'they were not built'}")
        say("Install fastae again: pip install -e '.[test]' --force-reinstall --no-deps")
        say("=" * 80)
        return int(check)
    return 0
