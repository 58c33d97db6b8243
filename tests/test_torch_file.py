"""The .pt reader: what it reads, and that nothing in a file is ever run."""

import os
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_zip import Bfloat16, bfloat16, integer, save, storage, tensor, text, tuple_of, write_program

from fastae.exceptions import ModelFileError
from fastae.io import torch_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pt"


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 1, 4), (0, 3)])
def test_every_dtype(path, dtype, shape):
    values = np.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    got = torch_file.read(save(path, {"a": values}))["a"]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


def test_bfloat16_becomes_float32(path):
    values = np.array([1.0, -2.5, 0.0, 3.0e38, 1.5], np.float32)
    bits = bfloat16(values)
    assert isinstance(bits, Bfloat16)
    got = torch_file.read(save(path, [bits]))[0]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, (np.asarray(bits).astype(np.uint32) << 16).view(np.float32))


def test_containers_transposed_and_shared_storages(path):
    matrix = np.arange(15, dtype=np.float32).reshape(3, 5)
    value = {"t": matrix.T, "nested": {"k": 32, "name": "ReLU", "list": [1, 2.5, None, True, False]}, "big": 2**40}
    got = torch_file.read(save(path, value))
    np.testing.assert_array_equal(got.pop("t"), matrix.T)
    assert got == {key: value[key] for key in ("nested", "big")}
    pid = storage("0", 6)
    both = b"](" + tensor(pid, 0, (2,), (1,)) + tensor(pid, 1, (2, 2), (3, 1)) + b"e"
    first, second = torch_file.read(write_program(path, both, {"0": np.arange(6, dtype="<f4").tobytes()}))
    assert first.tolist() == [0, 1]
    assert second.tolist() == [[1, 2], [4, 5]]
    assert not second.flags.writeable


class _Executed(Exception):
    pass


def trap(*_):
    raise _Executed("the file ran code")


def evil(module, name, arguments=None):
    """GLOBAL and REDUCE of any callable."""
    return f"c{module}\n{name}\n".encode() + (arguments or tuple_of(text("touch HACKED"))) + b"R"


ONE = {"0": b"\0" * 4}
GOOD = tensor(storage("0", 1), 0, (1,), (1,))
SELF = f"c{__name__}\ntrap\n".encode()
MALICIOUS = {
    "reduce of os.system": (evil("os", "system"), "os.system"),
    "reduce of posix.system": (evil("posix", "system"), "posix.system"),
    "eval": (evil("builtins", "eval"), "builtins.eval"),
    "builtins getattr": (evil("builtins", "getattr"), "builtins.getattr"),
    "own function": (SELF + b")R", "trap"),
    "stack global": (text("os") + text("system") + b"\x93" + tuple_of(text("true")) + b"R", "os.system"),
    "numpy reconstruct": (evil("numpy._core.multiarray", "_reconstruct"), "_reconstruct"),
    "torch.load": (evil("torch", "load"), "torch.load"),
    "torch._utils other": (tensor(storage("0", 1), 0, (1,), (1,), "_rebuild_sparse_tensor"), "_rebuild_sparse_tensor"),
    "dotted name": (text("collections") + text("OrderedDict.__init__") + b"\x93", "OrderedDict.__init__"),
    "nested in a tensor's hooks": (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + tuple_of(storage("0", 1), integer(0), tuple_of(), tuple_of(), b"\x89", evil("os", "system"))
        + b"R",
        "os.system",
    ),
    "build on a tensor": (GOOD + b"}" + text("__class__") + integer(1) + b"sb", "state of a ndarray"),
    "build with a tuple": (b"}" + tuple_of(b"N", b"}") + b"b", "uses a tuple"),
    "build on a name": (b"ccollections\nOrderedDict\n}b", "state of a _Global"),
    "setstate": (b"ccollections\nOrderedDict\n)R" + SELF + b"b", "trap"),
    "inst": (b"(ios\nsystem\n", "INST"),
    "obj": (b"(" + b"ccollections\nOrderedDict\n" + b"o", "OBJ"),
    "newobj": (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
    "newobj_ex": (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
    "extension": (b"\x82\x01", "EXT1"),
    "text persistent id": (b"Pstorage\n", "PERSID"),
    "buffer": (b"\x97", "NEXT_BUFFER"),
    "call of a storage": (b"ctorch\nFloatStorage\n)R", "refuses to call torch.FloatStorage"),
    "call of a string": (text("os.system") + b")R", "uses a str"),
    "other persistent id": (tuple_of(text("module"), text("os")) + b"Q", "no storage"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_nothing_is_run(path, name, monkeypatch):
    """Every one is refused by name; traps lie where they would go."""
    program, message = MALICIOUS[name]
    monkeypatch.chdir(path.parent)
    for module, function in ((os, "system"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, function, trap)
    with pytest.raises(ModelFileError, match=message):
        torch_file.read(write_program(path, program, ONE))
    assert not (path.parent / "HACKED").exists()


def test_torch_is_not_imported(path):
    torch_file.read(save(path, {"a": np.zeros(3, "f4")}))
    source = Path(torch_file.__file__).read_text()
    assert "import torch" not in source
    assert "import pickle\n" not in source


CRAFTED = {
    "beyond the end": (storage("0", 1), 0, (2,), (1,), "reaches element 1 of 1"),
    "offset": (storage("0", 1), 1, (1,), (1,), "reaches element 1 of 1"),
    "stride": (storage("0", 1), 0, (1, 2), (1, 2**61), "reaches element"),
    "overflowing product": (storage("0", 1), 0, (2**62, 2**62), (0, 0), "expanded"),
    "expanded": (storage("0", 1), 0, (9,), (0,), "contiguous"),
    "negative size": (storage("0", 1), 0, (-1,), (1,), "no counts"),
    "negative offset": (storage("0", 1), -1, (1,), (1,), "no counts"),
    "negative stride": (storage("0", 1), 0, (1,), (-1,), "no counts"),
    "huge size": (storage("0", 1), 0, (2**70,), (1,), "no counts"),
    "more strides": (storage("0", 1), 0, (1,), (1, 1), "1 sizes and 2 strides"),
    "dimensions": (storage("0", 1), 0, (1,) * 33, (1,) * 33, "at most 32"),
    "storage too long": (storage("0", 2), 0, (1,), (1,), "2 elements"),
    "storage of another type": (storage("0", 1, "DoubleStorage"), 0, (1,), (1,), "DoubleStorage"),
    "missing storage": (storage("1", 1), 0, (1,), (1,), "lacks the storage"),
    "path in a key": (storage("../data.pkl", 1), 0, (1,), (1,), "lacks the storage"),
    "complex": (storage("0", 1, "ComplexFloatStorage"), 0, (1,), (1,), "ComplexFloatStorage"),
    "storage class from elsewhere": (storage("0", 1, module="os"), 0, (1,), (1,), "os.FloatStorage"),
    "not a storage": (integer(3), 0, (1,), (1,), "not made of a storage"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_sizes(path, name):
    pid, offset, size, stride, message = CRAFTED[name]
    with pytest.raises(ModelFileError, match=message):
        torch_file.read(write_program(path, tensor(pid, offset, size, stride), ONE))


BROKEN = {
    "empty stack": b"0t",
    "no mark": b"t",
    "append to a dict": b"}K\x01a",
    "two results": b"NN",
    "odd items": b"}(K\x01u",
    "unhashable key": b"}]K\x01s",
    "tuple key": b"})K\x01s",
    "unknown memo": b"h\x05",
    "memo of nothing": b"q\x00",
    "reduce without arguments": b"ccollections\nOrderedDict\nNR",
    "OrderedDict with arguments": b"ccollections\nOrderedDict\n" + tuple_of(b"]") + b"R",
    "long integer": b"\x8b" + struct.pack("<i", 400) + b"\x01" * 400,
    "bad opcode": b"\xff",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_programs(path, name):
    with pytest.raises(ModelFileError):
        torch_file.read(write_program(path, BROKEN[name], ONE))


def test_bool_storage_has_zeros_and_ones(path):
    with pytest.raises(ModelFileError, match="0 and 1"):
        torch_file.read(write_program(path, tensor(storage("0", 1, "BoolStorage"), 0, (1,), (1,)), {"0": b"\2"}))


def test_zip_tricks(path, tmp_path):
    with pytest.raises(ModelFileError, match="outside"):
        torch_file.read(write_program(path, GOOD, ONE, extra=[("archive/../../up", b"x")]))
    assert not (tmp_path.parent / "up").exists()
    with pytest.raises(ModelFileError, match="outside"):
        torch_file.read(write_program(path, GOOD, ONE, extra=[("/etc/x", b"x")]))
    with pytest.raises(ModelFileError, match="packed"):
        torch_file.read(write_program(path, GOOD, ONE, compression=zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of repeated names
        write_program(path, GOOD, ONE, extra=[("archive/data.pkl", b"\x80\x02N.")])
    with pytest.raises(ModelFileError, match="repeated"):
        torch_file.read(path)
    with pytest.raises(ModelFileError, match=r"data\.pkl"):
        torch_file.read(write_program(path, GOOD, ONE, extra=[("other/data.pkl", b"\x80\x02N.")]))
    with pytest.raises(ModelFileError, match="byte order"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02N.")
            archive.writestr("a/byteorder", b"middle")
        torch_file.read(path)


def test_storage_in_a_subfolder_of_the_archive(path):
    program = tensor(storage("sub/0", 1), 0, (1,), (1,))
    with pytest.raises(ModelFileError, match="lacks the storage"):
        torch_file.read(write_program(path, program, {"sub/0": b"1234"}))


def test_big_endian(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + GOOD + b".")
        archive.writestr("a/byteorder", b"big")
        archive.writestr("a/data/0", np.array([1.5], ">f4").tobytes())
    got = torch_file.read(path)
    assert got.tolist() == [1.5]
    assert got.dtype.isnative


@pytest.mark.parametrize("cut", [1, 10, 100, 300, 500])
def test_truncated(path, cut):
    save(path, {"a": np.zeros((7, 5), "f4")})
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    with pytest.raises(ModelFileError):
        torch_file.read(path)


def test_every_byte_may_be_wrong(path):
    """No other exception escapes, whatever byte is changed."""
    save(path, {"a": np.arange(3, dtype="f4"), "b": [1, "x"]})
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 3):
        broken = bytearray(data)
        broken[place] ^= 0x5F
        path.write_bytes(broken)
        try:
            torch_file.read(path)
        except ModelFileError:
            pass


def test_other_kinds_of_file(path):
    with pytest.raises(FileNotFoundError):
        torch_file.read(path)
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(ModelFileError, match=r"before 1\.6"):
        torch_file.read(path)
    (path.parent / "x").write_bytes(b"1")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "x", "x")
    with pytest.raises(ModelFileError, match=r"before 1\.6"):
        torch_file.read(path)
    path.write_bytes(b"hello")
    with pytest.raises(ModelFileError, match="no zip"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x")
    with pytest.raises(ModelFileError, match=r"data\.pkl"):
        torch_file.read(path)


def test_files_of_torch_itself(path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(5, 3)
    dtypes = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = {name: (torch.randn(4, 6) * 9).to(getattr(torch, name)) for name in dtypes}
    tensors |= {"transposed": torch.randn(3, 5).T, "slice": torch.arange(20.0)[3:11:2], "scalar": torch.tensor(2.5)}
    value = {"state": layer.state_dict(), "parameter": layer.weight, "size": torch.Size([3, 5]), "k": 7, "s": "ReLU"}
    for protocol in (2, 3, 4, 5):
        torch.save({**value, **tensors}, path, pickle_protocol=protocol)
        got = torch_file.read(path)
        for name, wanted in tensors.items():
            wanted = wanted.float() if wanted.dtype == torch.bfloat16 else wanted
            assert got[name].dtype == wanted.numpy().dtype
            np.testing.assert_array_equal(got[name], wanted.numpy())
        np.testing.assert_array_equal(got["parameter"], layer.weight.detach().numpy())
        np.testing.assert_array_equal(got["state"]["bias"], layer.bias.detach().numpy())
        assert (got["size"], got["k"], got["s"]) == ((3, 5), 7, "ReLU")
    torch.save(layer, path)
    with pytest.raises(ModelFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_file.read(path)
    torch.save(value, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelFileError, match=r"before 1\.6"):
        torch_file.read(path)
    assert "torch" in sys.modules
