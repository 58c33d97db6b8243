"""Which kernels were verified on a GPU as they are now: csrc/cuda/verified.json, which ``benchmarks.gpu`` writes.

A kernel is known by a digest of all that its file is made of, headers included, and of how it is compiled. Left out are
what headers hold for the host, and the slots and numbers of ops that it never speaks of.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import source

_KERNEL = re.compile(r"^FASTAE_KERNEL\((\w+),", re.MULTILINE)
_ENUMS = re.compile(r"^namespace (\w+) \{\n(?:enum .*\n)+\}\n", re.MULTILINE)
FILE = Path("cuda", "verified.json")


def of_device(text: str) -> str:
    """A source without what FASTAE_DEVICE leaves out."""
    kept: list[str] = []
    dropping: list[bool | None] = []  # for each open condition whether its lines go; None where nobody knows
    for line in text.splitlines():
        word = line.split() if line.startswith("#") else [""]
        if word[0] in ("#if", "#ifdef", "#ifndef"):
            dropping.append({"#ifdef": False, "#ifndef": True}.get(word[0]) if "FASTAE_DEVICE" in word[1:] else None)
        elif word[0] == "#else" and dropping[-1] is not None:
            dropping[-1] = not dropping[-1]
        if not any(dropping):
            kept.append(line)
        if word[0] == "#endif":
            dropping.pop()
    return "\n".join(kept)


def spoken_of(text: str) -> str:
    """A source without the namespaces of enums alone whose names it never takes up."""
    times = Counter(re.findall(r"\w+", text))
    return _ENUMS.sub(lambda found: found[0] if times[found[1]] > 1 else "", text)


def kernel_digests(root: Path) -> dict[str, str]:
    """Every kernel, with the digest of what it is made of."""
    found: dict[str, str] = {}
    for unit in source.UNITS:
        for name, text in source.parts(root, unit).items():
            if name.endswith((".cuh", ".cu")) and (kernels := _KERNEL.findall(text)):
                found |= dict.fromkeys(kernels, source.digest(spoken_of(of_device(source.flatten(root, name)))))
    return dict(sorted(found.items()))


def read(root: Path) -> dict[str, dict]:
    """Kernel → digest, date, machine and CUDA version of its last verification on a GPU."""
    try:
        return json.loads((root / FILE).read_text())["kernels"]
    except FileNotFoundError:
        return {}


def record(root: Path, verified: Iterable[str], date: str, machine: str, cuda: str) -> None:
    """Writes down that kernels gave the right results on a GPU as they are now; the others keep what they had."""
    now, old = kernel_digests(root), read(root)
    new = {name: {"digest": now[name], "date": date, "machine": machine, "cuda": cuda} for name in verified}
    kernels = {name: (old | new)[name] for name in now if name in old | new}
    (root / FILE).write_text(json.dumps({"kernels": kernels}, indent=1) + "\n")


@dataclass(frozen=True)
class State:
    """Names of kernels by what is known of them."""

    verified: list[str]
    changed: list[str]
    never: list[str]


def state(root: Path) -> State:
    """What holds of the kernels as they are now."""
    now, old = kernel_digests(root), read(root)
    return State(
        verified=[name for name in now if name in old and old[name]["digest"] == now[name]],
        changed=[name for name in now if name in old and old[name]["digest"] != now[name]],
        never=[name for name in now if name not in old],
    )


def summary(root: Path, launched: Iterable[str]) -> list[str]:
    """Lines for the end of a test run. launched : kernels that ran on the host"""
    found = state(root)
    everything = {*found.verified, *found.changed, *found.never}
    missing = sorted(everything.difference(launched))

    def names(kernels: list[str]) -> str:
        few = ", ".join(kernels[:8])
        return few + (f" and {len(kernels) - 8} more" if len(kernels) > 8 else "")

    lines = [f"CUDA kernels: {len(everything)}; run on the host here: {len(everything) - len(missing)}"]
    if missing and len(missing) < len(everything):
        lines[0] += f", not: {names(missing)}"
    lines.append(f"verified on a GPU as they are: {len(found.verified)}")
    for what, kernels in (("changed since", found.changed), ("never verified", found.never)):
        if kernels:
            which = "" if len(kernels) == len(everything) else f" ({names(kernels)})"
            lines[1] += f"; {what}: {len(kernels)}{which}"
    return lines
