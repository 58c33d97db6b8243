"""One build's kernels for `benchmarks.guard`: reads a line, measures all of them once, writes JSON.

{kernel: [best rate, median rate, median share in the ceiling or null]}.

Products: 10⁹ operations a second; elementwise: 10⁹ bytes a second of what must be read and written, over arrays that
lie in L2 (where arithmetic counts) and over arrays larger than caches (where memory does). One thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from fastae import ops
from fastae.backends.native import NativeBackend, instruction_sets
from fastae.plan import schema
from fastae.plan.build import inference_plan
from fastae.plan.plan import Job, PlanBuilder, Source, aligned_bytes

SHAPE = (1024, 784, 512)  # m, k, n of W2's widest layer
ELEMENTS = {"L2": 1 << 16, "memory": 1 << 24}
ARRAYS = {"dropout": 2, "sigmoid": 2, "adam": 7}  # read and written

Ceiling = Callable[[], float]
# a call, its operations or bytes, and the rate that its instructions reach from registers (none for what memory bounds)
Kernel = tuple[Callable[[], object], float, Ceiling | None]


def aligned(*shape: int) -> np.ndarray:
    return aligned_bytes(4 * int(np.prod(shape))).view(np.float32).reshape(shape)


def layer(backend: NativeBackend, kind: str, bf16: bool = False) -> Kernel:
    """y = x wᵀ, dx = dz w or dw = dzᵀ x of one layer; operands are packed within the call, as in a step."""
    m, k, n = SHAPE
    rng = np.random.default_rng(0)
    builder = PlanBuilder(np.float32, m, kind, bf16=bf16)
    shapes = {"x": (m, k), "w": (n, k), "y": (m, n), "dx": (m, k), "dw": (n, k)}
    slots = {
        "forward": ("x", "w", "y"),
        "input gradient": ("y", "x", "w", "dx"),
        "weight gradient": ("y", "x", "w", "dw"),
    }
    names = slots[kind]
    for name in names:
        rows, columns = shapes[name]
        builder.external(name, schema.BATCH_ROWS if rows == m else rows, columns)
    given = {name: name for name in names if name != "y"} | {"y" if kind == "forward" else "dz": "y"}
    builder.op("dense" if kind == "forward" else "dense_grad", **given)
    plan = builder.build()
    handle, empty = backend.compile(plan), np.empty(0, np.uint8)
    arrays = [aligned(*shapes[name]) for name in names]
    for array in arrays:
        array[...] = rng.normal(size=array.shape)
    job = Job([plan.allocate()[0], *[empty] * 3, *arrays], n_rows=m, phases=schema.GRADIENT)
    dtype = "bfloat16" if bf16 else "float32"
    return lambda: backend.run(handle, job), 2.0 * m * k * n, lambda: backend.peak_gflops(dtype, 0.0)


def int8_encoding(backend: NativeBackend) -> Kernel:
    """768-256-64 in 8 bits."""
    import fastae
    from fastae.bench import layer_flops

    from .worker import WIDTHS, encoder_weights

    X = np.random.default_rng(0).normal(size=(4096, 768)).astype(np.float32)
    pairs = encoder_weights()
    model = fastae.Autoencoder.from_arrays(pairs, [(w.T.copy(), None) for w, _ in reversed(pairs)],
                                           code_activation="relu")  # fmt: skip
    plan = inference_plan(model.network_.encoding, np.float32, 512, int8=True)
    handle, spaces = backend.compile(plan), plan.allocate()
    for i, (w, b) in enumerate(pairs):
        plan.view(spaces, f"w{i}")[...], plan.view(spaces, f"b{i}")[...] = w, b
    out = np.empty((len(X), 64), np.float32)
    job = Job([*spaces, out], (Source(X, columns=768),), len(X), n_steps=8, phases=schema.PREPARE | schema.GRADIENT)
    backend.run(handle, job)
    job.phases = schema.GRADIENT
    return lambda: backend.run(handle, job), len(X) * layer_flops(WIDTHS["w4a"]), lambda: backend.peak_int8_gops(0.0)


def elementwise(backend: NativeBackend, op: str, elements: int) -> Kernel:
    x = aligned(elements // 1024, 1024)
    x[...] = np.random.default_rng(0).normal(size=x.shape)
    y, states = aligned(*x.shape), [aligned(*x.shape) for _ in range(2)]
    for state in states:
        state[...] = 1e-3
    given = {"backend": backend, "n_threads": 1}
    call = {
        "copy": lambda: np.copyto(y, x),
        "dropout": lambda: ops.dropout(x, 0.5, (1, 2, 3), out=y, **given),
        "sigmoid": lambda: ops.activation("sigmoid", x, out=y, **given),
        "adam": lambda: ops.update("adam", y, x, states, 1e-3, 10, **given),
    }[op]
    return call, 4.0 * elements * ARRAYS.get(op, 2), None


def kernels() -> dict[str, Kernel]:
    """What is measured on this machine: "instruction set, kernel"."""
    found: dict[str, Kernel] = {}
    sets = [isa for isa in instruction_sets() if isa not in ("baseline", "neon")] or instruction_sets()
    for isa in sets:
        backend = NativeBackend(isa)
        only_bf16 = isa.startswith("avx512_")
        for kind in ("forward", "input gradient", "weight gradient"):
            name = "bfloat16" if only_bf16 else "float32"
            found[f"{isa}, {name} {kind}"] = layer(backend, kind, only_bf16)
    best = NativeBackend(sets[-1])
    found[f"{sets[-1]}, int8 encoding"] = int8_encoding(best)
    for isa in (isa for isa in sets if not isa.startswith("avx512_")):
        for op in ARRAYS:
            for where, elements in ELEMENTS.items():
                found[f"{isa}, {op} in {where}"] = elementwise(NativeBackend(isa), op, elements)
    found |= {f"copy in {where}": elementwise(best, "copy", elements) for where, elements in ELEMENTS.items()}
    return found


def rate(kernel: Kernel, seconds: float = 0.06) -> tuple[float, float, float | None]:
    """Best and median of the calls that fit in a moment, in 10⁹ a second, and the median share in the ceiling.

    The ceiling is measured just before and after each call: processors lower their clock under products. By the
    thread's own processor time: other programs then cost a cold cache now and then, not their time slices.
    """
    call, amount, ceiling = kernel
    clock = time.thread_time
    call()
    begin = clock()
    call()
    times = max(1, int(2e-4 / max(clock() - begin, 1e-9)))
    rates, shares, end = [], [], clock() + seconds
    while clock() < end or len(rates) < 5:
        before = ceiling() if ceiling else 0.0
        begin = clock()
        for _ in range(times):
            call()
        rates.append(amount * times / (clock() - begin) / 1e9)
        if ceiling:
            shares.append(2 * rates[-1] / (before + ceiling()))
    return max(rates), float(np.median(rates)), float(np.median(shares)) if shares else None


def main() -> None:
    measured = kernels()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: rate(kernel) for name, kernel in measured.items()}), flush=True)


if __name__ == "__main__":
    main()
