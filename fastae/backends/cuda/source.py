"""The device code: where it lies, as one text for NVRTC, and compiled ahead as fatbins.

Of the standard library alone: setup.py runs this file before the package can be imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

OPTIONS = ("-std=c++17", "--fmad=false", "-DFASTAE_DEVICE", "-diag-suppress=177")  # 177: shared headers hold more
NVRTC_OPTIONS = (*OPTIONS, "-default-device")  # generic lambdas, which CUDA 12's takes for host code
REALS = ("float", "double")
ARCHITECTURES = (80, 90, 100, 120)  # compiled ahead; whatever is newer compiles the PTX of the last one
UNITS = ("cuda/kernels.cu",)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def folder() -> Path:
    """The folder of csrc: inside the installed package, or beside it in a working copy."""
    here = Path(__file__).parent
    for candidate in (here / "csrc", here.parents[2] / "csrc"):
        if (candidate / "cuda" / "kernels.cu").exists():
            return candidate
    raise ImportError("the sources of the CUDA kernels are missing from this installation; install fastae again")


def parts(root: Path, name: str) -> dict[str, str]:
    """A source and every quoted include below it, each with its text, in the order in which they are first met."""
    found: dict[str, str] = {}

    def visit(file: str) -> None:
        if file not in found:
            found[file] = (root / file).read_text(encoding="utf-8")
            for include in _INCLUDE.findall(found[file]):
                visit(include)

    visit(name)
    return found


def flatten(root: Path, name: str = UNITS[0]) -> str:
    """A source with every quoted include in its place, once; so NVRTC has no headers to look for."""
    left = parts(root, name)

    def text(file: str) -> str:
        source = left.pop(file, "").replace("#pragma once", "")
        return _INCLUDE.sub(lambda match: text(match.group(1)), source)

    return text(name)


def shipped(root: Path) -> list[str]:
    """Files below csrc that an installation needs to compile the kernels."""
    return sorted({file for unit in UNITS for file in parts(root, unit)})


@cache
def kernels() -> str:
    """All device kernels as one text."""
    return flatten(folder())


def digest(text: str) -> str:
    """Of a source and of how it is compiled."""
    return hashlib.sha256(repr((text, OPTIONS)).encode()).hexdigest()


def fatbin(real: str) -> Path | None:
    """Kernels compiled when the package was built, for ``float`` or ``double``; None where there are none.

    A fatbin of other sources than those that lie beside it is not used.
    """
    path = Path(__file__).parent / f"kernels_{real}.fatbin"
    mark = path.with_suffix(".sha256")
    try:
        return path if path.exists() and mark.read_text().strip() == digest(kernels()) else None
    except OSError:
        return None


# ---- ahead of time ---


def run_nvcc(*arguments: str | Path) -> str:
    """What nvcc says; RuntimeError where it fails or is missing."""
    command = shutil.which("nvcc")
    if command is None:
        raise RuntimeError("nvcc is not on the PATH")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"nvcc failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout + done.stderr


def compile_fatbin(root: Path, real: str, target: Path) -> dict:
    """Compiles the kernels for every architecture that this nvcc knows, with a mark of the source beside the fatbin.

    Does nothing where the target is of this source already. Returns what it holds, for the build's report.
    """
    mark, report = target.with_suffix(".sha256"), target.with_suffix(".json")
    wanted, version = digest(flatten(root)), run_nvcc("--version").split("release ")[-1].partition(",")[0]
    try:
        built = json.loads(report.read_text())
        if target.exists() and mark.read_text().strip() == wanted and built["cuda"] == version:
            return built
    except (OSError, ValueError, KeyError):
        pass  # none yet, or not whole
    for old in (mark, report):
        old.unlink(missing_ok=True)
    known = {int(code) for code in re.findall(r"sm_(\d+)\b", run_nvcc("--list-gpu-code"))}
    numbers = [number for number in ARCHITECTURES if number in known]
    if not numbers:
        raise RuntimeError(f"this nvcc knows none of the architectures {ARCHITECTURES}")
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    codes.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    # code that a driver unpacks when it loads it: a fifth of the size, where this nvcc can
    small = ["-compress-mode=size"] if "-compress-mode" in run_nvcc("--help") else ["-Xfatbin=-compress-all"]
    target.parent.mkdir(parents=True, exist_ok=True)
    run_nvcc("-fatbin", "--threads=2", f"-I{root}", *OPTIONS, f"-DFASTAE_REAL={real}", *codes, *small,
             root / UNITS[0], "-o", target)  # fmt: skip
    mark.write_text(wanted + "\n")
    built = {"cuda": version, "architectures": numbers, "bytes": target.stat().st_size}
    report.write_text(json.dumps(built))
    return built
