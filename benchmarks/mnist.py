"""Two autoencoders on MNIST: ``python -m benchmarks.mnist``. The test rows are the first 3,000 of MNIST's 10,000.

784-512-128-32-128-512-784, ReLU, sigmoid with binary cross-entropy, Adam, batch 128, 10 epochs, beside the same network
in PyTorch (fused Adam) on one and two threads; 784-32-784 for 50 epochs.
"""

from __future__ import annotations

import importlib.util
import time

import numpy as np

import fastae

from .common import mnist, record


def cross_entropy(model: fastae.Autoencoder, X: np.ndarray) -> float:
    """Mean over rows and features."""
    p = np.clip(model.reconstruct(X).astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-(X * np.log(p) + (1 - X) * np.log1p(-p)).mean())


def deep(train: np.ndarray, test: np.ndarray, threads: int, epochs: int = 10, **parameters) -> tuple[float, float]:
    model = fastae.Autoencoder(
        32, hidden_layer_sizes=(512, 128), code_activation="relu", loss="binary_cross_entropy", batch_size=128,
        max_iter=epochs, tol=0.0, random_state=0, n_jobs=threads, **parameters,
    )  # fmt: skip
    begin = time.perf_counter()
    model.fit(train)
    return time.perf_counter() - begin, cross_entropy(model, test)


def deep_torch(train: np.ndarray, test: np.ndarray, threads: int, epochs: int = 10) -> tuple[float, float]:
    import torch

    from .worker import torch_network

    net = torch_network({"workload": "w2", "threads": threads})
    net = torch.nn.Sequential(*(layer for layer in net if not isinstance(layer, torch.nn.Dropout)))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    criterion = torch.nn.BCEWithLogitsLoss()
    X = torch.from_numpy(train)
    begin = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(X))
        for start in range(0, len(X), 128):
            x = X[order[start : start + 128]]
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(net(x), x)
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - begin
    with torch.inference_mode():
        return seconds, float(criterion(net(torch.from_numpy(test)), torch.from_numpy(test)))


def both_precisions(train: np.ndarray, test: np.ndarray) -> None:
    """The deep one with dropout 0.2, in float32 and with products in bfloat16."""
    found = {p: deep(train, test, 1, dropout=0.2, precision=p) for p in ("float32", "bfloat16")}
    for precision, (seconds, loss) in found.items():
        print(f"784-512-128-32, dropout 0.2, 10 epochs, {precision}: {seconds:.1f} s, test loss {loss:.5f}", flush=True)
    print(f"  bfloat16's loss is {100 * (found['bfloat16'][1] / found['float32'][1] - 1):+.2f} % of float32's away")
    record("mnist", {"threads": 1, "network": "deep, dropout 0.2", **found})


def main() -> None:
    train, test = mnist()
    both_precisions(train, test)
    for threads in (1, 2):
        seconds, loss = deep(train, test, threads)
        print(
            f"784-512-128-32, 10 epochs, {threads} thread(s): fastae {seconds:.1f} s, test loss {loss:.5f}", flush=True
        )
        entry = {"threads": threads, "network": "deep", "fastae": [seconds, loss]}
        if importlib.util.find_spec("torch"):
            theirs, their_loss = deep_torch(train, test, threads)
            print(f"  torch {theirs:.1f} s, test loss {their_loss:.5f}: {theirs / seconds:.2f} ×", flush=True)
            entry["torch"] = [theirs, their_loss]
        record("mnist", entry)
    model = fastae.Autoencoder(32, activation="relu", loss="binary_cross_entropy", batch_size=256, max_iter=50, tol=0.0,
                               random_state=0)  # fmt: skip
    begin = time.perf_counter()
    model.fit(train)
    seconds, loss = time.perf_counter() - begin, cross_entropy(model, test)
    print(f"784-32-784, 50 epochs: {seconds:.1f} s, test loss {loss:.5f}")
    record("mnist", {"network": "784-32-784", "fastae": [seconds, loss]})


if __name__ == "__main__":
    main()
