"""The zip archive that a PyTorch ``.pt`` file is: names checked, nothing extracted, nothing decompressed."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from ..exceptions import ModelFileError

MAX_PICKLE_BYTES = 16 << 20  # a state dict has a few kilobytes
MAX_ENTRIES = 1 << 16

# storages by name: the element type of the bytes
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16's 16 bits: they are its upper half, so nothing is rounded."""
    return np.left_shift(bits, np.uint32(16), dtype=np.uint32, out=np.empty(bits.shape, np.uint32)).view(np.float32)


class Archive:
    """Program and storages of an open archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(names) > MAX_ENTRIES or len(set(names)) != len(names):
            raise ModelFileError(f"{str(path)!r} has repeated or too many entries ({len(names)}); it is damaged")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ModelFileError(f"{str(path)!r}: entry {entry.filename!r} is packed; PyTorch stores entries as is")
            if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
                raise ModelFileError(f"{str(path)!r}: entry {entry.filename!r} points outside of the archive")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ModelFileError(f"{str(path)!r}: entries overlap or are longer than the file; it is damaged")
        self.entries = {entry.filename: entry for entry in entries}
        found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise ModelFileError(f"{str(path)!r} is a zip without PyTorch's data.pkl; give a file of torch.save")
        self.folder = found[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        word = self._bytes(order, 16) if order in self.entries else sys.byteorder.encode()
        if word not in (b"little", b"big"):
            raise ModelFileError(f"{str(path)!r}: byte order {word[:16]!r}; little or big are known")
        self.order: Literal["<", ">"] = "<" if word == b"little" else ">"

    def _bytes(self, name: str, most: int) -> bytes:
        if self.entries[name].file_size > most:
            raise ModelFileError(f"{str(self.path)!r}: {name!r} has more than {most} bytes")
        return self.archive.read(self.entries[name])

    def program(self) -> bytes:
        return self._bytes(f"{self.folder}data.pkl", MAX_PICKLE_BYTES)

    def storage(self, kind: str, key: str, numel: int) -> np.ndarray:
        """The elements of a storage; of bfloat16 its bits."""
        name = f"{self.folder}data/{key}"
        if not key.isalnum() or name not in self.entries:
            raise ModelFileError(f"{str(self.path)!r} lacks the storage {key!r}; it is damaged")
        word = STORAGES[kind]
        dtype = np.dtype("u2" if word == "bfloat16" else word).newbyteorder(self.order)
        size = self.entries[name].file_size
        if size != numel * dtype.itemsize:
            raise ModelFileError(
                f"{str(self.path)!r}: storage {key!r} has {size} bytes; {numel} elements of {kind} need "
                f"{numel * dtype.itemsize}; it is damaged"
            )
        values = np.frombuffer(self.archive.read(self.entries[name]), dtype)
        if not values.dtype.isnative:
            values = values.astype(dtype.newbyteorder("="))
        if word == "?" and values.size and values.view(np.uint8).max() > 1:
            raise ModelFileError(f"{str(self.path)!r}: storage {key!r} of bool has bytes other than 0 and 1")
        return values
