"""Which kernels were verified on a GPU as they are now: csrc/cuda/verified.json, which ``benchmarks.gpu`` writes.

A kernel is known by a digest of its body, of all that its file is made of besides kernels, headers included, and of how
it is compiled. Left out are comments, what headers hold for the host, and the slots and numbers of ops that it never
speaks of.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from . import source

_KERNEL = re.compile(r"^FASTAE_KERNEL\((\w+),.* \{(?:.*\}\n|\n(?:(?!\}).*\n)*\}\n)", re.MULTILINE)
_ENUMS = re.compile(r"^namespace (\w+) \{\n(?:enum .*\n)+\}\n", re.MULTILINE)
_WORD = re.compile(r"\w+")
FILE = Path("cuda", "verified.json")


def of_device(text: str) -> str:
    """A source without comments, empty lines and what FASTAE_DEVICE leaves out."""
    kept: list[str] = []
    dropping: list[bool | None] = []  # for each open condition whether its lines go; None where nobody knows
    for line in text.splitlines():
        word = line.split() if line.startswith("#") else [""]
        if word[0] in ("#if", "#ifdef", "#ifndef"):
            dropping.append({"#ifdef": False, "#ifndef": True}.get(word[0]) if "FASTAE_DEVICE" in word[1:] else None)
        elif word[0] == "#else" and dropping[-1] is not None:
            dropping[-1] = not dropping[-1]
        code = line.partition("//")[0].rstrip()
        if code and not any(dropping):
            kept.append(code + "\n")
        if word[0] == "#endif":
            dropping.pop()
    return "".join(kept)


def spoken_of(text: str, names: Container[str]) -> str:
    """A source without the namespaces of enums alone whose names are none of these."""
    return _ENUMS.sub(lambda found: found[0] if found[1] in names else "", text)


def kernel_digests(root: Path) -> dict[str, str]:
    """Every kernel, with the digest of what it is made of."""
    found: dict[str, str] = {}
    for unit in source.UNITS:
        for name, text in source.parts(root, unit).items():
            own = {kernel[1]: kernel[0] for kernel in _KERNEL.finditer(of_device(text))}
            if own and name.startswith("cuda/"):
                rest = _KERNEL.sub("", of_device(source.flatten(root, name)))
                taken_up = {word for word, times in Counter(_WORD.findall(rest)).items() if times > 1}
                for kernel, body in own.items():
                    found[kernel] = source.digest(spoken_of(rest, taken_up.union(_WORD.findall(body))) + body)
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
