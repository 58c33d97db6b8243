"""Which format a folder or file is in, by the names of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...exceptions import ModelFileError
from . import (
    dictionary_learning,
    gemma_scope,
    language_model_saes,
    llama_scope,
    openai,
    saelens,
    sentence_transformers,
    sparsify,
)
from .checkpoint import SparseCheckpoint

READERS: dict[str, Callable[[Any], SparseCheckpoint]] = {
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "openai": openai.read,
    "gemma_scope": gemma_scope.read,
    "gemma_scope_2": gemma_scope.read_second,
    "llama_scope": llama_scope.read,
    "language_model_saes": language_model_saes.read,
    "sentence_transformers": sentence_transformers.read,
}
# files that a format's folder has, first match wins
_FILES = (
    ("saelens", (saelens.CONFIG, saelens.WEIGHTS)),
    ("sparsify", (sparsify.CONFIG, sparsify.WEIGHTS)),
    ("dictionary_learning", (dictionary_learning.WEIGHTS,)),
    ("gemma_scope", (gemma_scope.ARCHIVE,)),
    ("gemma_scope_2", (gemma_scope.WEIGHTS,)),
    ("llama_scope", (llama_scope.CONFIG,)),
    ("language_model_saes", (language_model_saes.CONFIG, language_model_saes.WEIGHTS)),
    ("sentence_transformers", (sentence_transformers.CONFIG, sentence_transformers.WEIGHTS)),
    ("sentence_transformers", (sentence_transformers.CONFIG, sentence_transformers.PICKLED)),
)
SHOWN = 20  # subfolders that an error lists


def reader(name: str) -> Callable[[Any], SparseCheckpoint]:
    if name not in READERS:
        raise ValueError(f"format={name!r} must be 'auto' or one of {sorted(READERS)}")
    return READERS[name]


def _by_files(folder: Path) -> str | None:
    for name, files in _FILES:
        if all((folder / file).is_file() for file in files):
            return name
    if sentence_transformers.module_of(folder) is not None:
        return "sentence_transformers"
    return "openai" if len(list(folder.glob("*.pt"))) == 1 else None


def detect(path: Any) -> str:
    """The format at a path, a name in READERS; by file names only, nothing is loaded.

    path : a checkpoint's folder, one of its files, a .npz of Gemma Scope or a .pt of OpenAI's

    Raises FileNotFoundError where nothing is, ModelFileError where the format is not known; for a folder of several
    checkpoints (hookpoints, layers) it lists them.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {str(path)!r}; give a local folder or file (nothing is downloaded)")
    if path.is_file():
        if path.suffix == ".npz":
            return "gemma_scope"
        if path.suffix in (".pt", ".pth") and path.name != dictionary_learning.WEIGHTS:
            return "openai"
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    else:
        folder = path
    found = _by_files(folder)
    if found is not None and not (found == "openai" and path.is_file()):  # a .pt beside it says nothing of this one
        return found
    inside = [entry for entry in _subfolders(folder) if _by_files(entry) is not None] if path.is_dir() else []
    if inside:
        names = [str(entry.relative_to(folder)) for entry in inside]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ModelFileError(
            f"{str(path)!r} holds {len(names)} checkpoints, {', '.join(names[:SHOWN])}{more}; "
            f"give the path of one, such as {str(inside[0])!r}"
        )
    raise ModelFileError(
        f"{str(path)!r} is in no format that fastae knows by its files; give format=, one of {sorted(READERS)}; "
        "files of fastae's own are for fastae.load"
    )


def _subfolders(folder: Path) -> list[Path]:
    """Folders one and two levels below, in the order of their names with numbers as numbers."""
    import re

    first = [entry for entry in folder.iterdir() if entry.is_dir()]
    both = first + [entry for parent in first for entry in parent.iterdir() if entry.is_dir()]
    return sorted(both, key=lambda entry: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", str(entry))])
