"""Published sparse-autoencoder checkpoints: read nine formats, write two; one file per family.

`read` gives a `SparseCheckpoint`: arrays in fastae's orientation and the few facts that say how to run them. `write`
makes folders that SAELens and sparsify load. Nothing is unpickled and nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

from .checkpoint import ARCHITECTURES, SparseCheckpoint
from .detection import READERS, detect, reader
from .saelens import write as _write_saelens
from .sparsify import write as _write_sparsify

WRITERS = {"saelens": _write_saelens, "sparsify": _write_sparsify}

__all__ = ["ARCHITECTURES", "READERS", "WRITERS", "SparseCheckpoint", "detect", "read", "write"]


def read(path: Any, format: str = "auto") -> SparseCheckpoint:
    """The checkpoint at a local path.

    path : a checkpoint's folder, or one of its files
    format : "auto" (see `detect`), "saelens", "sparsify", "dictionary_learning", "openai", "gemma_scope",
        "gemma_scope_2", "llama_scope", "language_model_saes", "sentence_transformers"
    returns : SparseCheckpoint, arrays float32 (float64 where the file is)

    Raises FileNotFoundError where nothing is; ModelFileError for a file that is damaged, contradicts its config or
    asks for something that fastae does not do; ValueError for an unknown format.
    """
    name = detect(path) if format == "auto" else format
    return reader(name)(path).checked(str(path))


def write(path: Any, checkpoint: SparseCheckpoint, format: str) -> None:
    """Writes a checkpoint as a folder ``path`` that another package loads; it is made where it is missing.

    format : "saelens" (version 6; relu, top-k, |top-k|, JumpReLU, gated, ReLU and JumpReLU transcoders; batch top-k
        and Matryoshka as JumpReLU at their threshold) or "sparsify" (top-k only)

    Raises ValueError, naming the format that can, where this one cannot say what the checkpoint is. Files are written
    atomically, the config last.
    """
    if format not in WRITERS:
        raise ValueError(f"format={format!r} cannot be written; it must be one of {sorted(WRITERS)}")
    WRITERS[format](path, checkpoint.checked("checkpoint"))
