"""Batch encoding: any number of rows → codes in .npy files, block by block, resumable after a crash.

`encode_to` writes a folder: ``values.npy`` and ``indices.npy`` (m, k) for codes of fixed size; ``data.npy``,
``indices.npy`` and ``indptr.npy`` (CSR) for ragged ones; ``codes.npy`` (m, n) for dense ones; and ``manifest.json``.
Data are synced before the manifest says that they are there, so whatever ends the process, the manifest's rows are
whole; what lies beyond them is cut off when the work is taken up again. The files are the same bytes as without the
interruption, as a code depends on its row alone.

manifest.json, format version 1: ``format_version``, ``fastae`` (version), ``kind`` ("fixed", "csr", "dense"),
``complete`` (bool), ``rows`` done, ``entries`` stored (csr), ``k`` (fixed), ``n_components``, ``dtype``, ``model``
(name or fingerprint), ``source`` {``n_rows`` or null, ``n_features``, ``dtype``, ``digest`` of its first 16 rows,
its middle and last one, of an iterable's first 16}. Later versions only add keys.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from . import __version__
from .io.model_file import write_atomically
from .models.feed import names_of, without_names
from .models.fingerprint import fingerprint
from .spec.options import number
from .stream import check_finite, open_rows

FORMAT_VERSION = 1
HEADER = 128  # bytes; any shape fits
CHECKPOINT_SECONDS = 1.0  # between syncs: what a crash costs at most
_DTYPES = ("float16", "float32", "float64")
_FILES = {"fixed": ("values", "indices"), "csr": ("data", "indices", "indptr"), "dense": ("codes",)}


class _GrowingFile:
    """A .npy file of ``rows`` so far, with room in its header for any number."""

    def __init__(self, path: Path, dtype: Any, tail: tuple[int, ...], rows: int):
        self.dtype, self.tail, self.rows = np.dtype(dtype), tail, rows
        self.item = self.dtype.itemsize * math.prod(tail)
        self._file = open(path, "r+b" if rows else "w+b")
        size = self._file.seek(0, os.SEEK_END)
        if rows and size < HEADER + rows * self.item:
            self._file.close()
            raise ValueError(f"{str(path)!r} has {size} bytes; its manifest speaks of {rows} rows; use resume=False")
        self._file.truncate(HEADER + rows * self.item)
        self._file.seek(0, os.SEEK_END)

    def append(self, array: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(array, self.dtype).reshape(-1).view(np.uint8).data)
        self.rows += len(array)

    def sync(self) -> None:
        """Header and data on the disk."""
        shape = (self.rows, *self.tail)
        text = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        self._file.seek(0)
        length = (HEADER - 10).to_bytes(2, "little")
        self._file.write(b"\x93NUMPY\x01\x00" + length + text.ljust(HEADER - 11).encode() + b"\n")
        self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Writer:
    """The files of one kind of code, and the manifest."""

    def __init__(self, folder: Path, manifest: dict, dtype: np.dtype | None):
        """dtype : of the values; None for that of the codes"""
        self.folder, self.manifest, self.wanted = folder, manifest, dtype
        self.files: dict[str, _GrowingFile] = {}
        self.rows, self.entries = manifest.get("rows", 0), manifest.get("entries", 0)
        self.last = time.monotonic()  # when the last checkpoint was

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    def open(self) -> None:
        """Opens the files, once the manifest says which."""
        kind = self.manifest["kind"]
        shapes: dict[str, tuple[Any, tuple[int, ...], int]]
        if kind == "csr":
            shapes = {"data": (self.dtype, (), self.entries), "indices": (np.int32, (), self.entries),
                      "indptr": (np.int64, (), self.rows + 1 if self.rows else 0)}  # fmt: skip
        elif kind == "fixed":
            k = (self.manifest["k"],)
            shapes = {"values": (self.dtype, k, self.rows), "indices": (np.int32, k, self.rows)}
        else:
            shapes = {"codes": (self.dtype, (self.manifest["n_components"],), self.rows)}
        for name, (dtype, tail, rows) in shapes.items():
            self.files[name] = _GrowingFile(self.folder / f"{name}.npy", dtype, tail, rows)
        if kind == "csr" and not self.rows:
            self.files["indptr"].append(np.zeros(1, np.int64))

    def append(self, code: Any, n_rows: int) -> None:
        kind, arrays, shape = _parts(code)
        found = {"kind": kind, **({"k": shape[1]} if kind == "fixed" else {"n_components": shape[1]})}
        if self.wanted is None:
            stored = arrays[_FILES[kind][0]].dtype.name
            found["dtype"] = stored if stored in _DTYPES else "float32"
        if not self.files:
            self.manifest |= {key: value for key, value in found.items() if self.manifest.get(key) is None}
            self._save_manifest(False)  # before the files, so that files without one are somebody else's
            self.open()
        wrong = {key: (value, self.manifest[key]) for key, value in found.items() if value != self.manifest[key]}
        if wrong or shape[0] != n_rows:
            told = "; ".join(f"{key} {got!r}, wanted {wanted!r}" for key, (got, wanted) in wrong.items())
            told = told or f"{shape[0]} codes of {n_rows} rows"
            raise ValueError(f"encode gave {told}; codes must be of one kind; for another k or dtype take another "
                             "folder")  # fmt: skip
        values = arrays.pop(_FILES[kind][0])
        with np.errstate(over="ignore"):
            small = np.asarray(values, self.dtype)
        if self.dtype == np.float16 and values.size and not np.isfinite(small).all():
            raise ValueError(f"a code is {np.abs(values).max():g}, too large for dtype='float16'; take 'float32'")
        if "indices" in arrays and arrays["indices"].size:
            _check_indices(arrays["indices"], self.manifest["n_components"])
        if kind == "csr":
            arrays["indptr"] = arrays["indptr"][1:].astype(np.int64) + self.entries
        for name, array in {_FILES[kind][0]: small, **arrays}.items():
            self.files[name].append(array)
        self.rows, self.entries = self.rows + n_rows, self.entries + values.size

    def write(self, code: Any, n_rows: int) -> None:
        """`append`, and `checkpoint` when it is time."""
        self.append(code, n_rows)
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS:
            self.checkpoint()
            self.last = time.monotonic()

    def checkpoint(self, complete: bool = False) -> None:
        """What was appended becomes what a crash leaves."""
        if not self.files:
            return
        for file in self.files.values():
            file.sync()
        self._save_manifest(complete)

    def _save_manifest(self, complete: bool) -> None:
        self.manifest |= {"rows": self.rows, "complete": complete}
        if self.manifest["kind"] == "csr":
            self.manifest["entries"] = self.entries
        text = json.dumps(self.manifest, indent=1).encode()
        write_atomically(self.folder / "manifest.json", lambda file: file.write(text))

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _parts(code: Any) -> tuple[str, dict[str, np.ndarray], tuple[int, int]]:
    if isinstance(code, tuple):
        values, indices = (np.asarray(part) for part in code)
        if values.dtype == np.int8 and values.shape[:1] == indices.shape:
            raise ValueError("encode gave int8 codes with a scale for each row, of which there are no files; store "
                             "codes of model.encoder(output='float16')")  # fmt: skip
        if values.ndim != 2 or values.shape != indices.shape or indices.dtype.kind not in "iu":
            raise ValueError(f"encode gave values {values.shape} and indices {indices.shape} {indices.dtype}; wanted "
                             "both (rows, k), the indices integers")  # fmt: skip
        return "fixed", {"values": values, "indices": indices}, values.shape
    if hasattr(code, "tocsr"):
        csr = code.tocsr()
        return "csr", {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr}, csr.shape
    dense = np.asarray(code)
    if dense.ndim != 2:
        raise ValueError(f"encode gave an array of shape {dense.shape}; wanted (rows, n)")
    return "dense", {"codes": dense}, dense.shape


def _check_indices(indices: np.ndarray, n_components: int | None) -> None:
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high > 2**31 - 1 or (n_components is not None and high >= n_components):
        raise ValueError(f"encode gave indices from {low} to {high}; wanted [0, n_components={n_components})")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer per folder; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process writes to {str(folder)!r}; wait, or give another folder") from None
        yield
    finally:
        os.close(descriptor)


def _begin(folder: Path, wanted: dict, resume: bool, known: bool) -> dict:
    """The manifest to go on with: what the folder has, or a new one.

    known : whether ``wanted["model"]`` says what encodes
    """
    path = folder / "manifest.json"
    names = {name for kind in _FILES.values() for name in kind}
    if not resume:
        path.unlink(missing_ok=True)
        for name in names:
            (folder / f"{name}.npy").unlink(missing_ok=True)
        return dict(wanted)
    if not path.is_file():
        strange = sorted(name for name in names if (folder / f"{name}.npy").exists())
        if strange:
            raise ValueError(f"{str(folder)!r} has {strange[0]}.npy but no manifest.json; give another folder, or "
                             "resume=False to replace it")  # fmt: skip
        return dict(wanted)
    found = read_manifest(folder)
    if not known and not found.get("model"):
        raise ValueError(f"{str(folder)!r} holds codes, and nothing says whether they are of this function; where they "
                         "are, give model='' (or a name, model=…, from the first call on); else give another folder, "
                         "or resume=False to write it anew")  # fmt: skip
    checked = wanted.keys() - {"fastae", "format_version"}
    differing = [f"{key} {found.get(key)!r}, now {value!r}" for key, value in wanted.items()
                 if key in checked and value is not None and found.get(key) != value]  # fmt: skip
    if differing:
        raise ValueError(f"{str(folder)!r} holds other codes: {'; '.join(differing)}; give another folder, or "
                         "resume=False to write it anew")  # fmt: skip
    return found


def encode_to(
    encode: Callable[[Any], Any], path: Any, source: Any, *, block_rows: int = 8192, resume: bool = True,
    dtype: Any = None, model: str | None = None, k: int | None = None, n_components: int | None = None,
    n_features: int | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> dict:  # fmt: skip
    """Encodes all rows of ``source`` into the folder ``path``; returns the manifest.

    encode : block (rows, p) → (values, indices), both (rows, k); or CSR (rows, n); or dense (rows, n).
        What it gives must stay as it is while the next block is encoded
    source : what `fastae.stream.open_rows` takes
    n_features : width that the rows must have, or None
    block_rows : rows encoded at a time; the result does not depend on it
    resume : go on with what an earlier call left there (at once done where that was complete); False writes anew
    dtype : of the values, "float32", "float16", or "float64"; None: as the codes are, float32 if they are none of these
    model : name of what encodes, such as a hash: codes of another name are not continued. None makes one from weights
        and options where ``encode`` is a fastae model's own method, as ``model.transform``, or an `Encoder`; nothing
        is known of other functions, and codes that are there already are then refused. "" says that they are the same
        function's
    k : entries a row, where that is known beforehand: codes of another k are not continued
    n_components : number of latents, kept in the manifest and checked against the indices
    progress : called with (rows done, rows of the source or None) after each block
    Raises ValueError for a folder that holds codes of another model (or, of functions without a name, any codes), k,
    dtype or source (another by its shape, dtype, first 16 rows, middle or last row; of an iterable by the first 16),
    for rows that are not finite (with the row's number) and codes that don't fit; what was done until then stays.
    """
    values = None if dtype is None else np.dtype(dtype)
    if values is not None and values.name not in _DTYPES:
        raise ValueError(f"dtype={dtype!r} must be 'float16', 'float32' or 'float64'")
    size = number("block_rows", block_rows, 1, math.inf, integer=True)
    owner = getattr(encode, "__self__", None)
    rows = open_rows(source, n_features, names=names_of(owner))
    known = fingerprint(encode) if model is None else str(model)
    if isinstance(encode, MethodType) and names_of(owner) is not None:
        encode = MethodType(encode.__func__, without_names(owner))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "format_version": FORMAT_VERSION, "fastae": __version__, "model": known or "", "k": k,
        "n_components": n_components, "dtype": None if values is None else values.name,
        "source": {"n_rows": rows.n_rows, "n_features": rows.n_features, "dtype": rows.dtype.name,
                   "digest": rows.digest()},
    }  # fmt: skip
    with _locked(folder):
        manifest = _begin(folder, wanted, resume, known is not None)
        if manifest.get("complete"):
            return manifest
        writer = _Writer(folder, manifest, values)
        try:
            if "kind" in manifest:
                writer.open()
            done, written = writer.rows, None
            with ThreadPoolExecutor(1) as thread:  # a block is written while the next one is encoded
                for block in rows.blocks(size, done):
                    code, n = _encoded(encode, block, done), block.shape[0]
                    if written is not None:
                        written.result()
                    written, done = thread.submit(writer.write, code, n), done + n
                    if progress is not None:
                        progress(done, rows.n_rows)
            if written is not None:
                written.result()
            writer.checkpoint(complete=True)
        except BaseException:
            with suppress(OSError):  # a full disk: what the last checkpoint has stays
                writer.checkpoint()
            raise
        finally:
            writer.close()
    return writer.manifest


def _encoded(encode: Callable, block: Any, first_row: int) -> Any:
    try:
        return encode(block)
    except ValueError:
        check_finite(block, first_row)  # says which row, where that is what was wrong
        raise


def read_manifest(path: Any) -> dict:
    """The manifest of a folder that `encode_to` wrote; ValueError for one that cannot be read."""
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text())
        if manifest["format_version"] > FORMAT_VERSION or manifest["kind"] not in _FILES:
            raise ValueError("it is of a newer version; upgrade fastae")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the manifest in {str(path)!r} cannot be read ({error}); use resume=False") from None
    return manifest


def open_codes(path: Any, *, partial: bool = False) -> Any:
    """Codes of a folder as memory maps: (values, indices), a csr_array, or a dense array.

    path : of the folder that `encode_to` wrote
    Raises ValueError where the encoding has not ended, unless ``partial``: then the rows done so far.
    """
    folder, manifest = Path(path), read_manifest(path)
    if not (manifest["complete"] or partial):
        raise ValueError(f"{str(path)!r} has {manifest['rows']} rows and has not ended; resume, or partial=True")
    n_rows = manifest["rows"]
    parts = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES[manifest["kind"]]}
    if manifest["kind"] == "dense":
        return parts["codes"][:n_rows]
    if manifest["kind"] == "fixed":
        return parts["values"][:n_rows], parts["indices"][:n_rows]
    from scipy.sparse import csr_array

    entries = manifest["entries"]
    shape = (n_rows, manifest["n_components"])
    return csr_array((parts["data"][:entries], parts["indices"][:entries], parts["indptr"][: n_rows + 1]), shape=shape)


__all__ = ["encode_to", "open_codes", "read_manifest"]
