"""The device code: where it lies, as one text for NVRTC, and compiled ahead as fatbins."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

OPTIONS = ("-std=c++17", "--fmad=false", "-DFASTAE_DEVICE", "-diag-suppress=177")  # 177: shared headers hold more
NVRTC_OPTIONS = (*OPTIONS, "-default-device")  # generic lambdas, which CUDA 12's takes for host code
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def folder() -> Path:
    """The folder of csrc: inside the installed package, or beside it in a working copy."""
    here = Path(__file__).parent
    for candidate in (here / "csrc", here.parents[2] / "csrc"):
        if (candidate / "cuda" / "kernels.cu").exists():
            return candidate
    raise ImportError("the sources of the CUDA kernels are missing from this installation; install fastae again")


def flatten(root: Path, name: str = "cuda/kernels.cu") -> str:
    """A source with every quoted include in its place, once; so NVRTC has no headers to look for."""
    seen: set[str] = set()

    def text(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        source = (root / file).read_text(encoding="utf-8").replace("#pragma once", "")
        return _INCLUDE.sub(lambda match: text(match.group(1)), source)

    return text(name)


@cache
def kernels() -> str:
    """All device kernels as one text."""
    return flatten(folder())


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fatbin(real: str) -> Path | None:
    """Kernels compiled when the package was built, for ``float`` or ``double``; None where there are none.

    A fatbin of other sources than those that lie beside it is not used.
    """
    path = Path(__file__).parent / f"kernels_{real}.fatbin"
    mark = path.with_suffix(".sha256")
    try:
        return path if mark.read_text().strip() == digest(kernels()) else None
    except OSError:
        return None
