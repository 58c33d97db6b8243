"""Blocks of rows: every kind of source gives the same rows in the same order, however it was cut."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix

from fastae.backends import get_backend
from fastae.stream import check_finite, open_rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(101, 7)).astype(np.float32)
CUTS = (1, 1, 0, 30, 2, 67)


def pieces(array=X):
    ends = np.cumsum((0, *CUTS))
    return [array[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def reused():
    """An iterator that gives the same memory again and again, as readers with a buffer do."""
    memory = np.empty_like(X)
    for piece in pieces():
        memory[: len(piece)] = piece
        yield memory[: len(piece)]


class Unknown:
    """As dask arrays of rows that were chosen by a condition."""

    shape, dtype = (float("nan"), 7), X.dtype

    def __getitem__(self, rows):
        raise AssertionError("rows were asked for")


class Sliced:
    """As the datasets of h5py and zarr: a shape, a dtype, and slices that are read when asked for."""

    shape, dtype = X.shape, X.dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice) and rows.stop - rows.start <= 500
        return memoryview(X[rows])

    def __array__(self, *_, **__):
        raise AssertionError("the whole was asked for")


@pytest.fixture
def sources(tmp_path):
    """Name → function that makes the source of X."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(X))
    np.save(tmp_path / "swapped.npy", X.astype(">f4"))
    shards = [tmp_path / f"{i}.npy" for i in range(len(CUTS))]
    for path, piece in zip(shards, pieces(), strict=True):
        np.save(path, piece)
    return {
        "array": lambda: X,
        "Fortran": lambda: np.asfortranarray(X),
        "swapped": lambda: X.astype(">f4"),
        "strided": lambda: np.repeat(X, 2, axis=0)[::2],
        "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "path": lambda: str(tmp_path / "x.npy"),
        "Fortran path": lambda: tmp_path / "fortran.npy",
        "swapped path": lambda: tmp_path / "swapped.npy",
        "shards": lambda: shards,
        "arrays": lambda: tuple(pieces()),
        "iterator": lambda: iter(pieces()),
        "function": lambda: reused,
        "rows": lambda: open_rows(X),
        "sliced": Sliced,
        "CSR": lambda: csr_matrix(X),
        "CSR blocks": lambda: (csr_array(piece) for piece in pieces()),
    }


NAMES = ("array", "Fortran", "swapped", "strided", "memmap", "path", "Fortran path", "swapped path", "shards", "arrays",
         "iterator", "function", "rows", "sliced", "CSR", "CSR blocks")  # fmt: skip


def dense(block):
    return block if isinstance(block, np.ndarray) else block.toarray()


def copied(blocks):
    return [dense(block).copy() for block in blocks]


@pytest.mark.parametrize("name", NAMES)
def test_every_source_gives_the_same_blocks(sources, name):
    for size, start in ((10, 0), (10, 33), (1, 99), (500, 0), (101, 0), (7, 101)):
        rows = open_rows(sources[name](), 7)
        assert rows.n_features == 7 and rows.n_rows in (101, None) and rows.dtype == np.float32 and rows.dtype.isnative
        got = copied(rows.blocks(size, start))
        assert [len(block) for block in got] == [size] * ((101 - start) // size) + [(101 - start) % size] * (
            (101 - start) % size > 0
        )
        np.testing.assert_array_equal(np.concatenate([X[:0], *got]), X[start:])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rows_come_again(sources, name):
    rows = open_rows(sources[name]())
    for n in (1, 40, 40, 500):
        np.testing.assert_array_equal(dense(rows.first(n)), X[:n])
    assert rows.digest() == open_rows(sources[name]()).digest() != open_rows(X + 1).digest()
    np.testing.assert_array_equal(np.concatenate(copied(rows.blocks(10))), X)


@pytest.mark.parametrize("name", NAMES)
def test_every_source_is_shuffled_the_same_way(sources, name):
    settings = {"chunk_rows": 8, "buffer_rows": 30}
    sequence = open_rows(sources[name]()).n_rows is None
    whole = list(open_rows((lambda: iter([X])) if sequence else X).shuffled(5, 2, 9, **settings))
    assert [len(ids) for _, ids in whole] == [9] * 11 + [2]
    ids = np.concatenate([ids for _, ids in whole])
    assert ids.dtype == np.int64 and np.array_equal(np.sort(ids), np.arange(101))
    for first in (0, 1, 5, 11, 12):
        got = [(dense(a).copy(), b) for a, b in open_rows(sources[name]()).shuffled(5, 2, 9, first, **settings)]
        assert len(got) == 12 - first
        for (block, own), (expected, numbers) in zip(got, whole[first:], strict=True):
            np.testing.assert_array_equal(own, numbers)
            np.testing.assert_array_equal(block, expected)
            np.testing.assert_array_equal(block, X[own])


def order(seed, epoch, n=101, **settings):
    source = open_rows(np.arange(n, dtype=np.float32)[:, None], backend=settings.pop("backend", "auto"))
    return np.concatenate([ids for _, ids in source.shuffled(seed, epoch, 10, **settings)])


def test_the_order_is_a_function_of_seed_and_epoch_alone(backend):
    settings = {"chunk_rows": 8, "buffer_rows": 30}
    one = order(3, 0, backend=backend, **settings)
    np.testing.assert_array_equal(one, order(3, 0, backend="reference", **settings))
    for other in (order(4, 0, **settings), order(3, 1, **settings), order(3, 2**40, **settings)):
        assert (one == other).mean() < 0.2
    assert (np.sort(one) == one).mean() < 0.2
    for epoch in range(4):  # not what `fit` does with arrays
        assert (order(3, 0) == get_backend().permutation(3, epoch, 101)).mean() < 0.2


def test_buffers_do_not_repeat_one_permutation_and_mix_distant_chunks():
    seen = order(0, 0, 4096, chunk_rows=16, buffer_rows=256).reshape(-1, 256)
    ranks = seen.argsort(axis=1)
    assert all((ranks[0] == other).mean() < 0.05 for other in ranks[1:])
    assert (np.ptp(seen, axis=1) > 2048).all()
    # rows are uniformly placed: mean position of each chunk over epochs near the middle
    places = np.array([order(1, epoch, 256, chunk_rows=16, buffer_rows=64).argsort() for epoch in range(200)])
    assert abs(places.mean(axis=0) - 127.5).max() < 4.5 * 74 / 200**0.5


def test_the_order_does_not_depend_on_the_stored_type():
    a, b = (np.concatenate([ids for _, ids in open_rows(np.zeros((9001, 300), t)).shuffled(1, 1, 1000)])
            for t in ("f2", "f8"))  # fmt: skip
    np.testing.assert_array_equal(a, b)


def test_passes(sources):
    rows = open_rows(sources["function"]())
    assert rows.repeatable
    for epoch in range(3):
        assert sum(len(ids) for _, ids in rows.shuffled(0, epoch, 10)) == 101
    once = open_rows(sources["iterator"]())
    assert not once.repeatable and len(list(once.blocks(10))) == 11
    with pytest.raises(ValueError, match="function that returns a fresh iterator"):
        next(once.blocks(10))


@pytest.mark.parametrize(
    "source, error, message",
    [
        (X[0], ValueError, r"shape \(7,\); wanted 2 dimensions"),
        (Unknown(), ValueError, r"shape \(nan, 7\), a size that is not known; .* compute_chunk_sizes\(\) first"),
        (X[:0], ValueError, "0 rows"),
        (X[:, :0], ValueError, "of 0 features"),
        (X.astype(complex), TypeError, "dtype complex128; wanted real"),
        (X.astype(object), TypeError, "dtype object"),
        (np.array([["a"]]), TypeError, "dtype <U1"),
        ([], ValueError, "empty list"),
        (iter([]), ValueError, "no rows"),
        (iter([X[:0]]), ValueError, "no rows"),
        (5, TypeError, "is a int; wanted an array"),
        (lambda: 5, TypeError, "not iterable"),
        ([X, X[:, :3]], ValueError, "part 1 of the source has 3 features, the first has 7"),
        ([X, X.astype(float)], TypeError, "dtype float64, the first has float32"),
        ([X, csr_array(X)], TypeError, "mixes arrays and sparse"),
        ([[1.0, 2.0]], ValueError, "block 0 of the source has shape"),
        ("nothing.npy", FileNotFoundError, "no file 'nothing.npy'"),
        (X[:, :6], ValueError, "has 6 features; wanted 7"),
    ],
)
def test_what_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        open_rows(source, 7)


@pytest.mark.parametrize(
    "blocks, error, message",
    [
        ([X, X[:, :3]], ValueError, "block 1 of the source has 3 features, the first has 7"),
        ([X, X.astype(float)], TypeError, "block 1 of the source has dtype float64"),
        ([X, X[0]], ValueError, "block 1 of the source has shape"),
        ([X, csr_array(X)], TypeError, "unlike the first"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_when_they_come(blocks, error, message):
    with pytest.raises(error, match=message):
        list(open_rows(iter(blocks)).blocks(10))


def test_bad_files_and_numbers(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nonsense")
    np.savez(tmp_path / "b.npz", X)
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ValueError, match="of numbers"):
            open_rows(tmp_path / name)
    np.save(tmp_path / "c.npy", X)
    rows = open_rows(tmp_path / "c.npy")
    with open(tmp_path / "c.npy", "r+b") as file:
        file.truncate(500)
    with pytest.raises(OSError, match="ends before row 101 of 101"):
        list(rows.blocks(200))
    for call in (lambda: rows.blocks(0), lambda: rows.shuffled(-1, 0, 5), lambda: rows.shuffled(0, 0, 5, -1),
                 lambda: rows.blocks(5, 102), lambda: list(open_rows(iter([X])).blocks(5, 102))):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be in|beyond the source"):
            call()


@pytest.mark.parametrize("start, message", [
    (b"PAR1", r"but Parquet; give lambda: pyarrow\.parquet"), (b"\x89HDF\r\n", r"but HDF5; give .*h5py\.File"),
    (b"@\0\0\0\0\0\0\0{", "it begins with b'@"),
])  # fmt: skip
def test_files_of_other_formats_are_named(tmp_path, start, message):
    (tmp_path / "x").write_bytes(start + bytes(99))
    with pytest.raises(ValueError, match=message) as error:
        open_rows(tmp_path / "x")
    assert "pickle" not in str(error.value)  # NumPy's advice for whatever it does not know


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int64", "bool", "bfloat16"])
def test_stored_types_stay(tmp_path, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    data = np.abs(X * 3).astype(dtype)
    np.save(tmp_path / "x.npy", data)
    for source in (tmp_path / "x.npy", np.load(tmp_path / "x.npy"), iter([np.load(tmp_path / "x.npy")])):
        rows = open_rows(source)
        assert rows.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(np.concatenate(copied(rows.blocks(13))), data)


def test_memory_does_not_grow_with_the_rows():
    def peak(n_blocks):
        rows = open_rows(lambda: (np.full((1000, 50), i, np.float32) for i in range(n_blocks)))
        tracemalloc.start()
        for _ in rows.shuffled(0, 0, 512, buffer_rows=4096):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(200) < 1.1 * peak(20)


def test_an_iterables_number_of_rows_may_be_said():
    rows = open_rows(lambda: iter(pieces()), n_rows=101)
    assert rows.n_rows == 101 and rows.sequential and rows.digest() == open_rows(lambda: iter(pieces())).digest()
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(40))), X)
    assert open_rows([X[:50], X[50:]], n_rows=101).n_rows == 101
    with pytest.raises(ValueError, match="the source ended after 101 rows of n_rows=102"):
        list(open_rows(lambda: iter(pieces()), n_rows=102).blocks(40))
    with pytest.raises(ValueError, match="the source has more rows than n_rows=100"):
        list(open_rows(iter(pieces()), n_rows=100).blocks(40))
    with pytest.raises(ValueError, match="the source has 101 rows; wanted n_rows=100"):
        open_rows(X, n_rows=100)
    with pytest.raises(ValueError, match="n_rows=0 must be"):
        open_rows(X, n_rows=0)


def test_finiteness_names_the_row():
    check_finite(X)
    check_finite(np.zeros((2, 2), np.uint8))
    bad = X.copy()
    bad[5, 3] = np.nan
    bad[9, 1] = np.inf
    with pytest.raises(ValueError, match="row 105 of the source has nan in column 3"):
        check_finite(bad, 100)
    with pytest.raises(ValueError, match="row 42 of the source has inf in column 1"):
        check_finite(bad[8:], ids=np.arange(41, 200))
    with pytest.raises(ValueError, match="row 5 of the source has nan in column 3"):
        check_finite(csr_array(bad))
    wrong = np.array([[1.0, -np.inf]], pytest.importorskip("ml_dtypes").bfloat16)
    with pytest.raises(ValueError, match="row 0 of the source has -inf in column 1"):
        check_finite(wrong)


def test_real_activations(data_dir):
    path = data_dir / "minilm_layer4_activations_f16.npy"
    whole = np.load(path, mmap_mode="r")
    seen = np.zeros(len(whole), bool)
    for block, ids in open_rows(path).shuffled(0, 0, 4096):
        assert block.dtype == np.float16 and not seen[ids].any()
        seen[ids] = True
        np.testing.assert_array_equal(block[::512], whole[ids[::512]])
    assert seen.all()
