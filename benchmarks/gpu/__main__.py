"""``python -m benchmarks.gpu``: see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import traceback
from pathlib import Path

from . import __doc__ as about
from . import checks, dense, elementwise, machine, sparse
from .device import Device

PARTS = {  # the test suite last: it takes what time is left
    "machine": machine.facts, "ceilings": machine.ceilings, "fits": checks.fits, "graphs": checks.graphs,
    "elementwise": elementwise.run, "dense": dense.run, "sparse": sparse.run, "kernels": checks.kernels,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(about).splitlines()[0])
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="no part is begun later than this")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    begin = time.perf_counter()
    device = Device(options.rehearse, options.out)
    result: dict = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "rehearsal": options.rehearse}
    for name in options.parts:
        left = options.seconds - (time.perf_counter() - begin)
        if left < 0:
            result[name] = {"skipped": "no time was left"}
            continue
        start = time.perf_counter()
        try:
            result[name] = PARTS[name](device, left)
        except Exception as error:
            traceback.print_exc()
            result[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"== {name}: {time.perf_counter() - start:.1f} s", flush=True)
        Path(options.out).write_text(json.dumps(result, indent=1, default=str) + "\n")
    failed = [name for name in options.parts if result[name].get("failed")]
    print(f"written to {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
