"""The GPU of a run, or in a rehearsal the kernels on the host: backends, clocks, sizes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastae.backends import cuda_backend


class Device:
    """What the parts ask: a backend by its way of multiplying, and times."""

    def __init__(self, rehearse: bool, out: str = "gpu.json"):
        self.rehearse, self.out = rehearse, out
        self._made: dict[str, Any] = {}

    def backend(self, products: str = "cublas") -> Any:
        """products : "cublas" or "exact" """
        if products not in self._made:
            self._made[products] = self._host(products) if self.rehearse else cuda_backend(0, products)
        return self._made[products]

    def _host(self, products: str) -> Any:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
        from cuda_host import HostDriver

        from fastae.backends.cuda import CudaBackend

        return CudaBackend(HostDriver(products=products))

    def size(self, full: int, tiny: int) -> int:
        """A size, or that of a rehearsal."""
        return tiny if self.rehearse else full

    def seconds(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Best time of a call that ends when the device is done."""
        call()
        best = float("inf")
        for _ in range(1 if self.rehearse else repeats):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return best

    def events(self, launch: Callable[[], object], count: int) -> float:
        """Seconds of one of ``count`` launches in a row, by the device's own clock."""
        launch()
        if self.rehearse:
            start = time.perf_counter()
            launch()
            return time.perf_counter() - start
        driver = self.backend().driver
        import cupy

        with driver.device:
            first, last = cupy.cuda.Event(), cupy.cuda.Event()
            driver.synchronize()
            first.record(driver.stream)
            for _ in range(count):
                launch()
            last.record(driver.stream)
            last.synchronize()
            return cupy.cuda.get_elapsed_time(first, last) / 1e3 / count

    def kernels_of(self, call: Callable[[], object]) -> dict[str, Any]:
        """What the device does in a call, by PyTorch's profiler: name -> times, µs altogether; {} without it."""
        if self.rehearse:
            return {}
        try:
            import torch
        except ImportError:
            return {}
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        table: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                entry = table.setdefault(event["name"][:60], [0, 0.0])
                entry[0] += 1
                entry[1] += event["dur"]
        return dict(sorted(table.items(), key=lambda item: -item[1][1]))


def show(title: str, table: dict[str, Any]) -> None:
    print(title)
    for name, (count, total) in list(table.items())[:25]:
        print(f"  {total:10.1f} µs  {count:5d} x  {name}", flush=True)


def torch_seconds(call: Callable[[], object], count: int) -> float:
    """Seconds of one of ``count`` calls in a row of something of PyTorch's, by the device's clock."""
    import torch

    call()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(count):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / count
