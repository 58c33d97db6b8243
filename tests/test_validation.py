"""Every kind of input that users have."""

import numpy as np
import pytest
from scipy import sparse

import fastae
from fastae.stream import open_rows

RNG = np.random.default_rng(0)
X = RNG.uniform(0, 1, (40, 6)).astype(np.float32)
MODEL = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(X)
CODE = MODEL.transform(X)
NATIVE = MODEL.backend_ == "native"


def same(actual, expected=CODE):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(order):
    same(MODEL.transform(np.asarray(X, order=order)))
    same(MODEL.transform(X[::-1]), CODE[::-1])
    same(MODEL.transform(np.repeat(X, 2, axis=0)[::2]))
    same(MODEL.transform(np.hstack([X, X])[:, :6]))
    same(MODEL.transform(X[:, ::-1].copy()[:, ::-1]))
    same(MODEL.transform(X.astype(">f4")))
    np.testing.assert_array_equal(MODEL.transform(X.astype(">f8")), MODEL.transform(X.astype("<f8")))


def test_read_only_memmap(tmp_path):
    np.save(tmp_path / "x.npy", X)
    same(MODEL.transform(np.load(tmp_path / "x.npy", mmap_mode="r")))


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_stored_dtypes(dtype):
    stored = (X * (1 if dtype == "float16" else 100)).astype(dtype)
    same(MODEL.transform(stored), MODEL.transform(stored.astype(np.float32)))
    assert fastae.Autoencoder(2, max_iter=1).fit(stored).weights_[0][0].dtype == np.float32


def test_bool_and_bfloat16():
    same(MODEL.transform(X > 0.5), MODEL.transform((X > 0.5).astype(np.float32)))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    stored = X.astype(ml_dtypes.bfloat16)
    same(MODEL.transform(stored), MODEL.transform(stored.astype(np.float32)))
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        MODEL.transform(np.full((2, 6), np.nan).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "float64"])
def test_tensors_have_the_type_they_are_stored_in(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    tensor = torch.tensor(100 * X).to(getattr(torch, dtype))
    array = tensor.double().numpy().astype("float64" if dtype == "float64" else "float32")
    for given in (tensor, tensor.T.contiguous().T, tensor.requires_grad_() if dtype[0] in "fb" else tensor):
        code, want = MODEL.transform(given), MODEL.transform(array)
        assert code.dtype == want.dtype
        np.testing.assert_array_equal(code, want)
        fitted = fastae.Autoencoder(2, max_iter=1, random_state=0).fit(given)
        assert fitted.weights_[0][0].dtype == want.dtype
    assert open_rows(tensor).dtype.name == open_rows(lambda: iter(tensor.split(7))).dtype.name == dtype


@pytest.mark.parametrize("X", ["x.npy", ["x.npy", "y.npy"], lambda: iter([X]), iter([X])])
def test_files_and_iterables_are_for_fit(X):
    with pytest.raises(TypeError, match=r"wanted rows in memory: an array, such as numpy\.load"):
        MODEL.transform(X)


def test_float64_is_computed_in_float64():
    assert MODEL.transform(X.astype(np.float64)).dtype == np.float64
    double = fastae.Autoencoder(2, max_iter=1).fit(X.astype(np.float64))
    assert double.weights_[0][0].dtype == np.float64
    assert fastae.Autoencoder(2, max_iter=1, precision="float64").fit(X).transform(X).dtype == np.float64
    assert (
        fastae.Autoencoder(2, max_iter=1, precision="float32").fit(X.astype(float)).weights_[0][0].dtype == np.float32
    )


@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csc_array, sparse.coo_array, sparse.csr_matrix])
def test_sparse(make):
    dense = np.where(X > 0.6, X, 0).astype(np.float32)
    same(MODEL.transform(make(dense)), MODEL.transform(dense))
    settings = {"max_iter": 2, "random_state": 0, "noise": "masking"}
    a, b = (fastae.Autoencoder(2, **settings).fit(data) for data in (make(dense), dense))
    np.testing.assert_allclose(a.weights_[0][0], b.weights_[0][0], rtol=1e-5, atol=1e-6)
    assert fastae.Autoencoder(2, max_iter=1, loss="multinomial").fit(make(dense)).loss_ > 0


def test_entries_given_twice_add_up():
    twice = sparse.csr_array((np.array([3.0, -2.0, 0.5, 0.5]), np.array([1, 1, 2, 2]), np.array([0, 2, 4])), (2, 3))
    for model in (fastae.Autoencoder(2, loss="multinomial"), fastae.AutoencoderDetector(scaling="maxabs")):
        model.set_params(max_iter=2, random_state=0)
        scores = [model.fit(rows).score_samples(rows) for rows in (twice, twice.toarray())]
        np.testing.assert_array_equal(*scores)
    assert twice.nnz == 4  # the caller's matrix stays as it is


def test_pandas_keeps_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    model = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    same(model.transform(frame))
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("bacdef")])
    assert list(model.set_output(transform="pandas").transform(frame).columns) == [f"autoencoder{i}" for i in range(3)]


def test_a_mask_in_a_frame_has_the_columns_of_the_rows():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    model = fastae.Autoencoder(2, max_iter=1, random_state=0).fit(frame, mask=frame > 0.1)
    assert model.loss_ == fastae.Autoencoder(2, max_iter=1, random_state=0).fit(X, mask=X > np.float32(0.1)).loss_
    with pytest.raises(ValueError, match="wanted those of X, in its order"):
        model.fit(frame, mask=(frame > 0.1)[list("bacdef")])


def test_polars_and_pyarrow():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: X[:, i] for i, name in enumerate("abcdef")})
    named = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(frame)
    same(named.transform(frame))
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({name: X[:, i] for i, name in enumerate("abcdef")})
    same(fastae.Autoencoder(3, max_iter=2, random_state=0).fit(table).transform(table))


def test_frames_of_what_kernels_do_not_read():
    pandas = pytest.importorskip("pandas")
    wide = pandas.DataFrame(X.astype(np.longdouble), columns=list("abcdef"))
    assert fastae.Autoencoder(3, max_iter=2, random_state=0).fit(wide).transform(wide).dtype == np.float64
    polars = pytest.importorskip("polars")
    with pytest.raises(TypeError, match=r"LazyFrame, which holds no rows yet; give X.collect\(\)"):
        MODEL.transform(polars.DataFrame({"a": [1.0]}).lazy())
    with pytest.raises(ValueError, match="1D array"):
        MODEL.transform(polars.DataFrame({"a": [1.0]})["a"])


def test_masked_arrays():
    masked = np.ma.masked_array(X, X > 0.9)
    for call in (MODEL.fit, MODEL.transform, MODEL.reconstruct, MODEL.encoder(), lambda X: MODEL.partial_fit(iter([X])),
                 fastae.AutoencoderDetector(max_iter=1).fit):  # fmt: skip
        with pytest.raises(TypeError, match="is a masked array, whose masked entries would count as data"):
            call(masked)
    for fitted, y, weight in ((MODEL, None, masked[:, 0]), (fastae.AutoencoderClassifier(), masked[:, 0] > 0.5, None)):
        with pytest.raises(TypeError, match=r"(y|sample_weight) is a masked array.* (rows out|do not count)"):
            fitted.fit(X, y, sample_weight=weight)
    same(MODEL.transform(np.ma.masked_array(X)))  # nothing is masked


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.full((3, 6), np.nan, np.float32), "NaN"),
        (np.full((3, 6), np.inf), "infinity"),
        (X.astype(np.float16) * np.float16(np.inf), "infinity|NaN"),
        (X[:, :4], "4 features"),
        (X[:0], "0 sample"),
        (X[0], "1D array"),
        (X[None], "dim 3"),
        (X.astype(complex), "Complex"),
        (np.array([["a"] * 6]), "string|numeric|convert"),
        (np.array([[{}] * 6], dtype=object), "argument must be|number|not 'dict'"),
        ("text", "X is a str; wanted rows in memory"),
        (iter([X]), "X is a list_iterator; wanted rows in memory"),
        (lambda: [X[0]], "X is a function; wanted rows in memory"),
        (object(), "X is a object; wanted rows in memory: .* in the forms of fastae.stream.open_rows"),
        (None, "Expected 2D|NoneType|array|scalar"),
    ],
)
def test_bad_rows_are_refused(bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MODEL.transform(bad)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        MODEL.fit(bad) if getattr(bad, "shape", None) != (40, 4) else MODEL.transform(bad)
    same(MODEL.transform(X))  # nothing was lost


@pytest.mark.parametrize("cut", [3, 20])
def test_blocks_are_for_fit_alone(cut):
    with pytest.raises(TypeError, match="X is a list of blocks; wanted rows in memory"):
        MODEL.transform([X[:cut], X[cut:]])


@pytest.mark.parametrize(
    "weight, message",
    [(np.ones(3), "sample_weight.shape"), (np.full(40, -1.0), "non-negative"), (np.full(40, np.nan), "finite"),
     (np.zeros(40), "not all zero"), (["a"] * 40, "must be numbers, one weight per row")],
)  # fmt: skip
def test_bad_weights(weight, message):
    with pytest.raises(TypeError if "must be numbers" in message else ValueError, match=message):
        fastae.Autoencoder(2, max_iter=1).fit(X, sample_weight=weight)


@pytest.mark.parametrize("size", [1e-320, 1e308])
def test_only_ratios_of_weights_matter(size):
    plain = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(X, sample_weight=np.full(40, 1.0))
    other = fastae.Autoencoder(3, max_iter=2, random_state=0).fit(X, sample_weight=np.full(40, size))
    assert plain.loss_ == other.loss_ > 0
    assert plain.loss_ == fastae.Autoencoder(3, max_iter=2, random_state=0).fit(X, sample_weight=np.float32(2)).loss_
    y, parameters = np.arange(40) % 2, {"pretraining": None, "max_iter": 2, "random_state": 0}
    plain = fastae.AutoencoderClassifier((3,), class_weight={0: 1, 1: 1}, **parameters).fit(X, y)
    other = fastae.AutoencoderClassifier((3,), class_weight={0: size, 1: size}, **parameters).fit(X, y)
    assert plain.loss_ == other.loss_ > 0


@pytest.mark.parametrize("out", [[1.0], "text", 3])
def test_out_that_is_no_array(out):
    with pytest.raises(TypeError, match="wanted a NumPy array"):
        MODEL.transform(X, out=out)


def test_values_just_out_of_range_are_told():
    with pytest.raises(ValueError, match=r"X has values from 0 to 1\.00000012;"):
        fastae.Autoencoder(2, loss="binary_cross_entropy").fit(np.eye(4, dtype=np.float32) * np.float32(1.0000001))


def test_rows_that_do_not_sum_to_one():
    with pytest.raises(ValueError, match="must sum to 1"):
        fastae.Autoencoder(2, max_iter=1, loss="categorical_cross_entropy").fit(X)
    marked = np.array([[1.0, -1.0, 0.0], [0.0, 0.5, 0.5]])  # what is missing counts in no sum
    for rows in (marked, sparse.csr_array(marked)):
        fastae.Autoencoder(2, max_iter=1, loss="categorical_cross_entropy", missing=-1).fit(rows)
