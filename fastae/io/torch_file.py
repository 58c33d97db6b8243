"""Tensors and plain values out of a PyTorch ``.pt`` file, without PyTorch and without unpickling.

Such a file is a zip: ``<name>/data.pkl`` describes the object, ``<name>/data/<key>`` holds each storage's bytes. The
description is a program for a stack machine, and Python's own machine calls whatever function it names. The one here
is written for tensors alone: it knows the opcodes that `torch.save` writes for numbers, strings, tuples, lists,
dictionaries and tensors, knows four names (OrderedDict, Size and two that rebuild tensors), and refuses every other.
Nothing in a file can reach a module, an attribute or a ``__setstate__``.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..exceptions import ModelFileError
from .torch_archive import STORAGES, Archive, widen_bfloat16

MAX_DIMENSIONS = 32
MAX_INTEGER_BYTES = 16

# what zipfile and pickletools raise on a damaged file; NotImplementedError is a RuntimeError
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, OverflowError, IndexError, MemoryError)


def read(path: Any) -> Any:
    """The object in a file of ``torch.save``: containers of numbers, strings and NumPy arrays (read-only views).

    bfloat16 becomes float32. Raises ModelFileError for anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {str(path)!r}")
    try:
        if not zipfile.is_zipfile(path):
            raise ModelFileError(_not_a_zip(path))
        with zipfile.ZipFile(path) as archive:
            return _Machine(path, Archive(path, archive)).run()
    except ModelFileError:
        raise
    except (*_UNREADABLE, zipfile.BadZipFile, struct.error) as error:
        raise ModelFileError(f"{str(path)!r} is damaged ({error}); fetch or save it again") from error


def _not_a_zip(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        return (
            f"{str(path)!r} is in PyTorch's form before 1.6 (a bare pickle or tar), which is not read; with PyTorch: "
            "torch.save(torch.load(old, weights_only=True), new)"
        )
    return f"{str(path)!r} is not a PyTorch file (no zip archive), or it is cut short; fetch it again"


class _Storage:
    __slots__ = ("values",)

    def __init__(self, values: np.ndarray):
        self.values = values


class _Global:
    """A name that the description may use; never the thing itself."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_CALLED = (
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8".split())


class _Machine:
    """Runs the description. Values are ints, floats, strings, None, tuples, lists, dicts, arrays, storages, names."""

    def __init__(self, path: Path, archive: Archive):
        self.path, self.archive = path, archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, tuple[str, int, _Storage]] = {}

    def error(self, what: str) -> ModelFileError:
        return ModelFileError(f"{str(self.path)!r}: {what}")

    def run(self) -> Any:
        program = self.archive.program()
        for opcode, argument, _ in pickletools.genops(program):
            name = opcode.name
            if name == "STOP":
                if len(self.stack) != 1:
                    raise self.error("the description does not end with one object; it is damaged")
                return self.pop()
            if name in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > 8 * MAX_INTEGER_BYTES:
                    raise self.error("an integer of more than 128 bits; it is no size or count")
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                self.memo[len(self.memo) if argument is None else int(argument)] = self.top()
            elif name in ("BINGET", "LONG_BINGET"):
                if argument not in self.memo:
                    raise self.error(f"the description recalls {argument}, which it never stored; it is damaged")
                self.stack.append(self.memo[argument])
            elif name not in ("PROTO", "FRAME"):
                act: Callable[[Any], None] | None = getattr(self, f"do_{name.lower()}", None)
                if act is None:
                    raise self.error(
                        f"refuses the pickle instruction {name}; only tensors and plain containers are read"
                    )
                act(argument)
        raise self.error("the description has no end; it is cut short")

    # ---- the stack ---

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.error("the description takes from an empty stack; it is damaged")
        return self.stack[-1]

    def pop(self, kind: type | tuple[type, ...] = object) -> Any:
        value = self.top()
        if not isinstance(value, kind):
            raise self.error(f"the description uses a {type(value).__name__} where it cannot; it is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise self.error("the description takes from an empty stack; it is damaged")
        self.stack.pop()
        return items[::-1]

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    # ---- containers ---

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_append(self, _: Any) -> None:
        item = self.pop()
        self.into(list).append(item)

    def do_appends(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.into(list).extend(items)

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.put([key, value])

    def do_setitems(self, _: Any) -> None:
        self.put(self.pop_to_mark())

    def into(self, kind: type) -> Any:
        if not isinstance(self.top(), kind):
            raise self.error(f"the description adds items to a {type(self.top()).__name__}; it is damaged")
        return self.top()

    def put(self, pairs: list[Any]) -> None:
        target = self.into(dict)
        if len(pairs) % 2:
            raise self.error("a dictionary has a key without a value; it is damaged")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise self.error(f"a dictionary's key is a {type(key).__name__}; strings and integers are read")
            target[key] = value

    # ---- names, calls, storages ---

    def named(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _CALLED and not (module == "torch" and name in STORAGES):
            raise self.error(f"refuses to unpickle {full[:200]}; only tensors and plain containers are read")
        self.stack.append(_Global(full))

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.named(module, name)

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(str), self.pop(str)
        self.named(module, name)

    def do_build(self, _: Any) -> None:
        """State of an OrderedDict (the versions in a state dict) is dropped; nothing else has any."""
        self.pop(dict)
        if not isinstance(self.top(), dict):
            raise self.error(f"refuses to set the state of a {type(self.top()).__name__}; only tensors are read")

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(tuple), self.pop(_Global)
        if function.name == "collections.OrderedDict":
            if arguments:
                raise self.error("an OrderedDict with arguments is not read")
            self.stack.append({})
        elif function.name == "torch.Size":
            if len(arguments) != 1:
                raise self.error("torch.Size takes one argument; it is damaged")
            self.stack.append(self.integers(arguments[0], "a size"))
        elif function.name == "torch._utils._rebuild_parameter":
            if not arguments or not isinstance(arguments[0], np.ndarray):
                raise self.error("a parameter is not made of a tensor; it is damaged")
            self.stack.append(arguments[0])
        elif function.name == "torch._utils._rebuild_tensor_v2":
            self.stack.append(self.tensor(arguments))
        else:
            raise self.error(f"refuses to call {function.name}; only tensors and plain containers are read")

    def integers(self, values: Any, what: str) -> tuple[int, ...]:
        if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
            raise self.error(f"{what} is not a tuple of at most {MAX_DIMENSIONS} integers; it is damaged")
        if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
            raise self.error(f"{what} has entries that are no counts; it is damaged")
        return tuple(values)

    def tensor(self, arguments: tuple[Any, ...]) -> np.ndarray:
        """A view of a storage: sizes and strides stay inside, and an element is not counted more often than it is."""
        if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage):
            raise self.error("a tensor is not made of a storage; it is damaged")
        storage = arguments[0].values
        (offset,) = self.integers(arguments[1:2], "a tensor's offset")
        size = self.integers(arguments[2], "a tensor's size")
        stride = self.integers(arguments[3], "a tensor's stride")
        if len(size) != len(stride):
            raise self.error(f"a tensor has {len(size)} sizes and {len(stride)} strides; it is damaged")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.size:
            raise self.error(f"a tensor of shape {size} reaches element {last} of {storage.size}; it is damaged")
        if math.prod(size) > storage.size:
            raise self.error(f"an expanded tensor of shape {size} is not read; save it after .contiguous()")
        if 0 in size:
            values = np.zeros(size, storage.dtype)
        else:
            steps = tuple(s * storage.itemsize for s in stride)
            values = np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
        return values

    def do_binpersid(self, _: Any) -> None:
        """('storage', type, key, device, number of elements)"""
        parts = self.pop(tuple)
        if len(parts) != 5 or parts[0] != "storage" or not isinstance(parts[1], _Global):
            raise self.error("refers to something outside of itself that is no storage; only tensors are read")
        kind, key = parts[1].name.removeprefix("torch."), parts[2]
        (numel,) = self.integers(parts[4:5], "a storage's length")
        if kind not in STORAGES or not isinstance(key, str):
            raise self.error(f"refers to a storage of {kind[:200]}; it is damaged")
        if key not in self.storages:
            values = self.archive.storage(kind, key, numel)
            values = widen_bfloat16(values) if STORAGES[kind] == "bfloat16" else values
            self.storages[key] = (kind, numel, _Storage(values))
        known_kind, known_numel, storage = self.storages[key]
        if (known_kind, known_numel) != (kind, numel):
            raise self.error(f"storage {key!r} is {numel} of {kind} and {known_numel} of {known_kind}; it is damaged")
        self.stack.append(storage)
