"""What fastae found on this machine."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

from . import __version__


def build_report() -> dict:
    """What the installation built, and why something was not; empty when unknown."""
    try:
        return json.loads(Path(__file__).with_name("_build.json").read_text())
    except (OSError, ValueError):
        return {}


def configuration() -> dict[str, Any]:
    """Version, backends (None: usable, else the reason), instruction sets, threads, processor."""
    from .backends import available, get_backend
    from .threads import resolve_threads

    info: dict[str, Any] = {
        "fastae": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "backends": available(),
    }
    backend = get_backend()
    info["backend"] = backend.name
    info["threads"] = resolve_threads(None)
    try:
        from . import _core

        info["processor"] = _core.cpu_brand()
        info["compiler"] = _core.compiler()
        info["instruction_sets"] = _core.instruction_sets()
        info["instruction_set"] = getattr(backend, "isa", None)
    except ImportError:
        info["processor"] = platform.processor() or platform.machine()
        info["build"] = build_report().get("error")
    return info


def show_config(file: Any = None) -> None:
    """Prints version, backends found and why one is missing, instruction set, threads and processor.

    file : to print to; None is standard output
    """
    out = sys.stdout if file is None else file
    info = configuration()
    backends = info.pop("backends")
    for name, value in info.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name.replace('_', ' ') + ':':18} {shown}", file=out)
    print("backends:", file=out)
    for name, reason in backends.items():
        print(f"  {name:15} {'yes' if reason is None else 'no: ' + reason}", file=out)
