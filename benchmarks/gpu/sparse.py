"""A TopK sparse autoencoder's step, D 4096, M 131,072, k 64, batch 8192, and batch encoding, exact and in bfloat16,
beside PyTorch.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np

import fastae
from fastae.plan.plan import Source
from fastae.training import Block

from .device import Device, show, torch_seconds


def sizes(device: Device) -> tuple[int, int, int, int]:
    return (4096, 131_072, 64, 8192) if not device.rehearse else (48, 256, 8, 32)


def model_of(device: Device, precision: str) -> tuple[fastae.SparseAutoencoder, np.ndarray]:
    p, n, k, batch = sizes(device)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4 * batch, p), dtype=np.float32)
    model = fastae.SparseAutoencoder(
        n, sparsity=fastae.TopK(k, aux=None), batch_size=batch, max_iter=1, random_state=0, backend=device.backend(),
        shuffle=False, learning_rate=1e-4, precision=precision,
    )  # fmt: skip
    return model, X


def steps_of(device: Device, model: fastae.SparseAutoencoder, X: np.ndarray, batch: int) -> dict[str, Any]:
    """A step with rows and weights on the device; ``partial_fit`` brings the weights back each time."""
    model.partial_fit(X[:batch])
    trainer: Any = model._live
    block = trainer.placed(Block((Source(X, columns=X.shape[1]),), len(X)))
    steps = len(X) // batch
    seconds = device.seconds(lambda: trainer.run(block, 0, steps), 3) / steps
    return {"seconds": seconds, "kernels": device.kernels_of(lambda: trainer.run(block, 0, 1))}


def figures(device: Device, precision: str) -> tuple[dict[str, Any], np.ndarray]:
    """Of a mode: the first fit, a step, encoding; and the rows."""
    batch = sizes(device)[3]
    out: dict[str, Any] = {}
    print(f"precision={precision!r}", flush=True)
    model, X = model_of(device, precision)
    start = time.perf_counter()
    model.fit(X)
    out["first fit"] = {"seconds": time.perf_counter() - start, "fvu": model.fvu_curve_[-1]}
    print(out["first fit"], flush=True)
    out["step"] = steps_of(device, model, X, batch)
    print(f"step: {out['step']['seconds'] * 1e3:.2f} ms", flush=True)
    show("a step's kernels", out["step"]["kernels"])
    resident = X
    if not device.rehearse:
        import cupy

        resident = cupy.asarray(X)
    seconds = device.seconds(lambda: model.encode(resident), 3)
    kernels = device.kernels_of(lambda: model.encode(resident))
    out["encode"] = {"seconds": seconds, "rows/s": len(X) / seconds, "kernels": kernels}
    print(f"encode: {len(X) / seconds:.0f} rows/s", flush=True)
    show("encode's kernels", kernels)
    if not device.rehearse:
        del model, resident
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()  # the next mode's, and PyTorch has a pool of its own
    return out, X


def run(device: Device, left: float) -> dict[str, Any]:
    p, n, k, batch = sizes(device)
    own, X = figures(device, "float32")
    out: dict[str, Any] = {"sizes": {"p": p, "n": n, "k": k, "batch": batch}, **own}
    out["bfloat16"], _ = figures(device, "bfloat16")
    if not device.rehearse:
        out["torch"] = torch_figures(X, p, n, k, batch)
    return out


def torch_figures(X: np.ndarray, p: int, n: int, k: int, batch: int) -> dict[str, Any]:
    """The dense step by autograd, sparsify's, and encoding in float32, tf32 and bfloat16."""
    import torch

    torch.manual_seed(0)
    x = torch.from_numpy(X[:batch]).cuda()
    out: dict[str, Any] = {}
    for name, measure in (("dense step", torch_step), ("sparsify step", sparsify_step)):
        try:
            out[name] = measure(x, n, k)
        except Exception as error:  # not installed, or not with this PyTorch
            out[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        gc.collect()
        torch.cuda.empty_cache()
    encoder = torch.randn(n, p, device="cuda").mul_(p**-0.5)
    for name, tf32, dtype in (("float32", False, torch.float32), ("tf32", True, torch.float32),
                              ("bfloat16", False, torch.bfloat16)):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, w = x.to(dtype), encoder.to(dtype)
        seconds = torch_seconds(lambda a=a, w=w: (a @ w.T).topk(k, dim=1), 5)
        out[f"encode {name}"] = {"rows/s": batch / seconds}
    print(out, flush=True)
    return out


def torch_step(x: Any, n: int, k: int) -> float:
    """Seconds of a dense step with bfloat16 autocast and fused Adam."""
    import torch

    encoder = torch.randn(n, x.shape[1], device="cuda").mul_(x.shape[1] ** -0.5).requires_grad_()
    decoder = encoder.detach().clone().requires_grad_()
    adam = torch.optim.Adam([encoder, decoder], lr=1e-4, fused=True)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            z = x @ encoder.T
            values, indices = z.topk(k, dim=1)
            code = torch.zeros_like(z).scatter(1, indices, values.relu())
            error = (code @ decoder - x).float()
        error.square().sum(1).mean().backward()
        adam.step()

    return torch_seconds(step, 5)


def sparsify_step(x: Any, n: int, k: int) -> float:
    """Seconds of a step as EleutherAI's sparsify makes it: bfloat16 autocast, Triton decoder, unit rows, fused Adam."""
    import torch
    from sparsify import Sae, SaeConfig

    sae = Sae(x.shape[1], SaeConfig(num_latents=n, k=k), device="cuda", dtype=torch.float32)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        sae.set_decoder_norm_to_unit_norm()

    return torch_seconds(step, 5)
