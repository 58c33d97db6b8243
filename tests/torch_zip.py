"""Writes PyTorch's .pt files without PyTorch, well-formed ones and others, opcode by opcode."""

import struct
import zipfile

import numpy as np

STORAGE = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char"}
STORAGE |= {"u1": "Byte", "b1": "Bool"}
ORDERED = b"ccollections\nOrderedDict\n"


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def storage(key, numel, kind="FloatStorage", module="torch"):
    name = f"c{module}\n{kind}\n".encode()
    return tuple_of(text("storage"), name, text(key), text("cpu"), integer(numel)) + b"Q"


def tensor(pid, offset, size, stride, function="_rebuild_tensor_v2"):
    numbers = [tuple_of(*map(integer, values)) for values in (size, stride)]
    arguments = tuple_of(pid, integer(offset), *numbers, b"\x89", ORDERED + b")R")
    return f"ctorch._utils\n{function}\n".encode() + arguments + b"R"


class Bfloat16(np.ndarray):
    """uint16 bits that stand for bfloat16."""


def bfloat16(values):
    """The upper halves of float32 values that have nothing below."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(Bfloat16)


def dump(value, storages):
    """Opcodes of a value; storages get the bytes of its arrays."""
    if isinstance(value, np.ndarray):
        kind = "BFloat16" if isinstance(value, Bfloat16) else STORAGE[value.dtype.str[1:]]
        base = np.ascontiguousarray(value.T if value.flags.f_contiguous else value)
        key = str(len(storages))
        storages[key] = base.tobytes()
        strides = [s // value.itemsize for s in value.strides]
        strides = strides if value.flags.f_contiguous else [s // value.itemsize for s in base.strides]
        return tensor(storage(key, value.size, f"{kind}Storage"), 0, value.shape, strides)
    if isinstance(value, dict):
        return b"}(" + b"".join(dump(item, storages) for pair in value.items() for item in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(dump(item, storages) for item in value) + b"e"
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    return integer(value) if isinstance(value, int) else b"G" + struct.pack(">d", value)


def write_program(path, program, storages, folder="archive", extra=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr(f"{folder}/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"{folder}/data/{key}", data)
        archive.writestr(f"{folder}/version", b"3\n")
        for name, data in extra:
            archive.writestr(name, data)
    return path


def save(path, value):
    """What torch.save would write for dicts, lists, strings, numbers and arrays in the place of tensors."""
    storages = {}
    program = dump(value, storages)
    return write_program(path, program, storages)
