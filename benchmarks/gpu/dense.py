"""Training steps of a dense autoencoder, 784-512-128-32 mirrored, beside PyTorch eager, compiled and as a graph."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import numpy as np

import fastae
from fastae import training
from fastae.backends.cuda import binder, tensor
from fastae.plan.plan import Source

from .device import Device, show, torch_seconds

WIDTHS = (784, 512, 128, 32, 128, 512, 784)
BATCHES = (1024, 65_536)
# batches at which the thresholds of small layers in bfloat16 are looked at, and what is left out of their ways
SMALL = (128, 1024, 2048, 4096)
WITHOUT: dict[str, list[tuple[Any, str]]] = {
    "": [],
    ", a launch a layer": [(tensor, "CHAIN_BLOCKS")],
    ", cuBLASLt alone": [(tensor, "CHAIN_BLOCKS"), (tensor, "MOST_TILES"), (binder, "FEW_ROWS")],
}
_SHARE = 0.4  # of the time that is left, after which PyTorch's remaining ways are left out


def flops(batch: int) -> float:
    pairs = list(pairwise(WIDTHS))
    return batch * 2.0 * (3 * sum(a * b for a, b in pairs) - pairs[0][0] * pairs[0][1])


@contextmanager
def without(limits: list[tuple[Any, str]]) -> Iterator[None]:
    """Meanwhile some limits of sizes are 0."""
    before = [getattr(module, name) for module, name in limits]
    for module, name in limits:
        setattr(module, name, 0)
    try:
        yield
    finally:
        for (module, name), value in zip(limits, before, strict=True):
            setattr(module, name, value)


def ours(device: Device, X: np.ndarray, batch: int, precision: str, products: str) -> dict[str, Any]:
    """Seconds of a step: of an epoch over rows that lie on the device, in sequence, less one of a single step."""
    steps = len(X) // batch
    model = fastae.Autoencoder(
        32, hidden_layer_sizes=(512, 128), activation="relu", output_activation="sigmoid", loss="binary_cross_entropy",
        batch_size=batch, max_iter=1, tol=0, random_state=0, backend=device.backend(products), precision=precision,
        shuffle=False,
    )  # fmt: skip
    model.fit(X[: 2 * batch])
    backend = device.backend(products)
    plan, handle = model.plan_, backend.compile(model.plan_)
    state = model._begin(backend, model.network_, Source(X, columns=784), np.dtype(np.float32), len(X), None)
    settings = model._settings(model.network_, 0)
    sources = {n: backend.place((Source(X[: n * batch], columns=784),)) for n in (1, steps)}

    def run(n: int) -> float:
        return training.run_epoch(backend, plan, handle, state, training.Held(backend, settings, sources[n]), settings)

    loss = run(steps)
    short, long = (device.seconds(lambda n=n: run(n), 3) for n in (1, steps))
    kernels = device.kernels_of(lambda: run(1))
    show(f"kernels of batch {batch}, {precision} {products}", kernels)
    return {"seconds": (long - short) / max(steps - 1, 1), "loss": loss, "kernels": kernels}


def torch_steps(device: Device, batch: int, way: str, precision: str, steps: int) -> dict[str, float]:
    """way : "eager", "compile" or "graph" """
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    layers: list[Any] = []
    for i, (a, b) in enumerate(pairwise(WIDTHS)):
        layers += [torch.nn.Linear(a, b)] + ([torch.nn.ReLU()] if i not in (2, len(WIDTHS) - 2) else [])
    model = torch.nn.Sequential(*layers).cuda()
    adam = torch.optim.Adam(model.parameters(), fused=True, capturable=way == "graph")
    X = torch.rand(batch, 784, device="cuda")
    loss_of = torch.nn.BCEWithLogitsLoss()
    forward = torch.compile(model) if way == "compile" else model

    def step() -> Any:
        adam.zero_grad(set_to_none=way != "graph")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(forward(X), X)
        loss.backward()
        adam.step()
        return loss

    if way == "graph":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        call = graph.replay
    else:
        call = step
    for _ in range(5):
        call()
    seconds = torch_seconds(call, steps)
    result = loss if way == "graph" else call()
    return {"seconds": seconds, "loss": float(result)}


def run(device: Device, left: float) -> dict[str, Any]:
    begin = time.perf_counter()
    batches = (32,) if device.rehearse else BATCHES
    steps = {batch: device.size(500 if batch < 10_000 else 8, 3) for batch in batches}
    out: dict[str, Any] = {str(batch): {} for batch in batches}

    def note(batch: int, name: str, entry: dict[str, Any]) -> None:
        out[str(batch)][name] = entry
        if "seconds" not in entry:
            print(f"batch {batch}, {name}: {entry}", flush=True)
            return
        entry["flop/s"] = flops(batch) / entry["seconds"]
        print(f"batch {batch}, {name}: {entry['seconds'] * 1e6:.1f} µs, {entry['flop/s'] / 1e12:.1f} TFLOP/s, "
              f"loss {entry['loss']:.4f}", flush=True)  # fmt: skip

    def rows(batch: int, steps: int) -> np.ndarray:
        return np.random.default_rng(0).random((batch * steps, 784), dtype=np.float32)

    for batch in (32,) if device.rehearse else SMALL:
        out.setdefault(str(batch), {})
        for name, limits in WITHOUT.items():
            with without(limits):
                entry = ours(device, rows(batch, device.size(200, 3)), batch, "bfloat16", "cublas")
            note(batch, f"fastae bfloat16 cublas{name}", entry)
    for batch in batches:
        X = rows(batch, steps[batch])
        for precision, products in (("float32", "exact"), ("float32", "cublas"), ("tf32", "cublas"),
                                    ("bfloat16", "cublas")):  # fmt: skip
            note(batch, f"fastae {precision} {products}", ours(device, X, batch, precision, products))
    if device.rehearse:
        return out
    for way, batch, precision in product(("graph", "eager", "compile"), batches, ("bfloat16", "tf32", "float32")):
        entry: dict[str, Any] = {"failed": "no time was left"}
        if time.perf_counter() - begin < _SHARE * left:  # compiling may take its time, and comes last
            try:
                entry = torch_steps(device, batch, way, precision, max(steps[batch], 30))
            except Exception as error:
                entry = {"failed": str(error)[:200]}
        note(batch, f"torch {way} {precision}", entry)
    return out
