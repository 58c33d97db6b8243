"""Adam and dropout over large arrays, beside the speed of a copy and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastae.catalog import INDEX, UPDATE_RULES
from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder

from .device import Device, torch_seconds

ADAM = INDEX["update"]["adam"]


def adam_plan(n: int):
    b = PlanBuilder(np.float32, 1, "adam")
    b.buffer("w", 1, n, schema.THETA)
    b.buffer("dw", 1, n, schema.GRAD)
    b.flat(("m", "v"))
    b.op("update", schema.UPDATE, w="theta", g="grad", s0="state_m", s1="state_v", rule=ADAM,
         scalar=b.scalars(len(UPDATE_RULES[ADAM].step)), p0=0.9, p1=0.999, p2=1e-8)  # fmt: skip
    return b.build()


def dropout_plan(rows: int, columns: int):
    b = PlanBuilder(np.float32, rows, "dropout")
    b.buffer("x", rows, columns, schema.THETA)
    b.buffer("y", rows, columns, schema.GRAD)
    b.buffer("rows", rows, 1, schema.STATE, schema.INT64)
    b.op("dropout", x="x", y="y", rows="rows", stream=0, rate=0.5)
    return b.build()


def step_seconds(device: Device, plan: Any, steps: int) -> float:
    """Seconds of a step, from the difference of a long and a short run."""
    backend = device.backend()
    handle, spaces = backend.compile(plan), backend.allocate(plan)

    def run(n: int) -> None:
        job = Job(spaces, n_rows=plan.batch * n, n_steps=n, scalars=np.full((n, max(plan.n_scalars, 1)), 0.5))
        backend.run(handle, job)

    short, long = (device.seconds(lambda n=n: run(n), 3) for n in (1, steps + 1))
    return (long - short) / steps


def run(device: Device, left: float) -> dict[str, Any]:
    n = device.size(1_000_000_000 // 4, 4096)
    out: dict[str, Any] = {"elements": n}
    rows, columns = n // 1024, 1024
    for name, plan, moved in (("adam", adam_plan(n), 7 * 4 * n),
                              ("dropout", dropout_plan(rows, columns), 2 * 4 * n)):  # fmt: skip
        seconds = step_seconds(device, plan, device.size(20, 2))
        out[name] = {"seconds": seconds, "bytes": moved, "bytes/s": moved / seconds}
        print(f"{name}: {seconds * 1e3:.3f} ms, {moved / seconds / 1e12:.2f} TB/s", flush=True)
    if not device.rehearse:
        out["torch"] = torch_figures(device, n)
    return out


def torch_figures(device: Device, n: int) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    w = torch.zeros(n, device="cuda", requires_grad=True)
    w.grad = torch.ones_like(w)
    adam = torch.optim.Adam([w], fused=True)

    x = torch.ones(n, device="cuda")
    out = {"adam": torch_seconds(adam.step, 20),
           "dropout": torch_seconds(lambda: torch.nn.functional.dropout(x, 0.5), 20)}  # fmt: skip
    print({name: f"torch {seconds * 1e3:.3f} ms" for name, seconds in out.items()}, flush=True)
    return out
