"""Reports of sparse codes: right by the definitions, however the stream is cut."""

import json
from math import fsum

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError

import fastae
from fastae.backends import get_backend
from fastae.metrics import SparseReport, decoder_neighbours

RNG = np.random.default_rng(0)
M, P, N, K = 701, 9, 40, 4
X = (RNG.normal(size=(M, P)) * np.geomspace(0.1, 10, P) + 3).astype(np.float32)
Y = (X + RNG.normal(size=(M, P)) * 0.3).astype(np.float32)
INDICES = np.array([RNG.permutation(N - 3)[:K] for _ in range(M)], np.int32)
VALUES = np.maximum(RNG.normal(size=(M, K)), 0).astype(np.float32)
CODE = np.zeros((M, N), np.float32)
np.put_along_axis(CODE, INDICES, VALUES, axis=1)
SUMS = ("mean", "spread", "squared_error", "total", "fired")


def report(cuts=(), x=X, y=Y, form="pairs"):
    r = SparseReport(N, P)
    ends = [0, *cuts, len(x)]
    for a, b in zip(ends[:-1], ends[1:], strict=True):
        code = {"pairs": (VALUES[a:b], INDICES[a:b]), "csr": (csr_array(CODE[a:b]),), "dense": (CODE[a:b],)}[form]
        r.update(x[a:b], y[a:b], *code)
    return r


def test_numbers_are_those_of_the_definitions():
    r, x, y = report(), X.astype(float), Y.astype(float)
    centred = x - x.mean(axis=0)
    assert r.n_rows == M
    assert r.l0 == pytest.approx(np.count_nonzero(CODE) / M, rel=1e-14)
    assert r.density == pytest.approx(np.count_nonzero(CODE) / CODE.size, rel=1e-14)
    assert r.fvu == pytest.approx(fsum(((x - y) ** 2).ravel()) / fsum((centred**2).ravel()), rel=1e-12)
    assert r.mse == pytest.approx(((x - y) ** 2).mean(), rel=1e-12)
    each = 1 - ((x - y) ** 2).sum(axis=0) / (centred**2).sum(axis=0)
    np.testing.assert_allclose(r.explained_variance, each, rtol=1e-12)
    assert r.mean_explained_variance == pytest.approx(each.mean(), rel=1e-12)
    cosine = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert r.cosine == pytest.approx(cosine.mean(), rel=1e-12)
    np.testing.assert_array_equal(r.fired, (CODE != 0).sum(axis=0))
    np.testing.assert_allclose(r.frequency, (CODE != 0).mean(axis=0), rtol=1e-14)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(r.mean_active, CODE.sum(axis=0, dtype=float) / (CODE != 0).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(r.dead, [37, 38, 39])
    assert r.dead_fraction == 3 / 40
    counts, edges = r.histogram()
    assert counts.sum() == 37 and edges[-1] == 0 and 10 ** edges[0] < 1 / M


def test_agrees_with_scikit_learn():
    from sklearn.metrics import r2_score

    x, y = X.astype(float), Y.astype(float)
    np.testing.assert_allclose(report().explained_variance, r2_score(x, y, multioutput="raw_values"), rtol=1e-9)
    assert 1 - report().fvu == pytest.approx(r2_score(x, y, multioutput="variance_weighted"), rel=1e-9)


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("cuts", [(1,), (350,), range(1, M), range(7, M, 100)])
@pytest.mark.parametrize("form", ["pairs", "csr", "dense"])
def test_the_cut_does_not_matter(offset, cuts, form):
    x, y = X.astype(float) + offset, Y.astype(float) + offset
    whole, cut = report((), x, y), report(cuts, x, y, form)
    assert cut.fvu == pytest.approx(whole.fvu, rel=1e-12) and cut.cosine == pytest.approx(whole.cosine, rel=1e-12)
    for name in SUMS:
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    if offset:
        assert cut.fvu == pytest.approx(report().fvu, rel=1e-8)  # the shift: nothing cancels


def test_merging_reports_of_parts():
    whole, parts = report(), [SparseReport(N, P)]
    for a, b in ((0, 1), (1, 300), (300, 701)):
        parts.append(SparseReport(N, P).update(X[a:b], Y[a:b], VALUES[a:b], INDICES[a:b]))
    for order in ((0, 1, 2, 3), (3, 0, 2, 1)):
        merged = SparseReport(N, P)
        for i in order:
            merged.merge(parts[i])
        assert merged.n_rows == M and merged.fvu == pytest.approx(whole.fvu, rel=1e-12)
        assert merged.cosine == pytest.approx(whole.cosine, rel=1e-12)
        for name in ("spread", "squared_error", "total", "fired"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12)
        np.testing.assert_allclose(merged.mean + merged.shift, whole.mean + whole.shift, rtol=1e-12)
    with pytest.raises(ValueError, match="the other report is of 40 latents and 8 features"):
        SparseReport(N, P).merge(SparseReport(N, 8))


def test_it_is_not_an_average_over_batches():
    x = np.repeat([[0.0], [100.0]], 50, axis=0) + RNG.normal(size=(100, 1))
    y, code = x + 0.5, np.ones((100, 1))
    r = SparseReport(1, 1).update(x[:50], y[:50], code[:50]).update(x[50:], y[50:], code[50:])
    assert r.fvu < 1e-3  # within each batch it would be about a quarter


def test_files(tmp_path):
    one = report((5, 100))
    one.save_json(tmp_path / "report.json")
    two = SparseReport.load(tmp_path / "report.json")
    assert two.to_dict() == one.to_dict() and repr(two) == repr(one) and "fvu=" in repr(one)
    for name in ("shift", *SUMS):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
    two.update(X, Y, VALUES, INDICES)
    assert two.n_rows == 2 * M
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["summary"]["n_rows"] == M and sum(kept["histogram"]["counts"]) == 37
    for text in ("{", "[]", "{}", json.dumps(kept | {"format_version": 9}), json.dumps(kept | {"sums": {}})):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"no report of fastae|no JSON"):
            SparseReport.load(tmp_path / "report.json")


def test_undefined_numbers(tmp_path):
    empty = SparseReport(3, 2)
    assert all(np.isnan(v) for k, v in empty.summary().items() if k[:2] != "n_")
    empty.save_json(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["summary"]["fvu"] is None
    assert SparseReport.load(tmp_path / "r.json").n_rows == 0
    flat = SparseReport(3, 2).update(np.ones((4, 2)), np.zeros((4, 2)), np.zeros((4, 3)))
    assert flat.cosine == 0 and flat.dead_fraction == 1
    assert flat.histogram()[0].sum() == 0 and np.isnan(flat.mean_active).all()


@pytest.mark.parametrize("made", [[3.0, 5.0], [3.0, 4.0]])
@pytest.mark.parametrize("varies", [True, False])
def test_features_that_do_not_vary_count_as_in_r2_score(made, varies):
    from sklearn.metrics import r2_score

    x = np.array([[3.0, 5.0], [3.0, 5.0 + varies], [3.0, 5.0]])
    y = np.tile(made, (3, 1))
    r = SparseReport(3, 2).update(x, y, np.zeros((3, 3)))
    each = r2_score(x, y, multioutput="raw_values")
    np.testing.assert_allclose(r.explained_variance, each)
    assert r.mean_explained_variance == pytest.approx(each[1] if varies else each.mean())
    if not varies:
        assert r.fvu == float(made[1] != 5)
    assert np.isfinite([*r.summary().values()]).all()


def test_rows_as_fit_reads_them():
    x = RNG.normal(size=(90, 6))
    model = fastae.SparseAutoencoder(8, k=2, max_iter=1, random_state=0).fit(x.astype(object))
    wanted = SparseReport.of(model, x).to_dict()
    assert SparseReport.of(model, x.astype(object)).to_dict() == wanted
    assert SparseReport.of(model, x.tolist()).to_dict() == wanted
    assert SparseReport.of(model, x.astype(str).astype(object)).to_dict() == wanted
    with pytest.raises(ValueError, match="features"):
        SparseReport.of(model, x[:, :5].astype(object))
    with pytest.raises(ValueError, match="could not convert"):
        SparseReport.of(model, np.full((3, 6), "a", object))


@pytest.mark.parametrize("library, make", [("torch", "tensor"), ("pandas", "DataFrame")])
def test_frames_and_tensors(library, make):
    x = RNG.normal(size=(90, 6)).astype(np.float32)
    model = fastae.SparseAutoencoder(8, k=2, max_iter=1, random_state=0).fit(x)
    made = getattr(pytest.importorskip(library, reason=f"{library} is not installed"), make)(x)
    assert SparseReport.of(model, made).to_dict() == SparseReport.of(model, x).to_dict()


def test_names_of_features_are_looked_at_once(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(RNG.normal(size=(90, 6)), columns=list("abcdef"))
    model = fastae.SparseAutoencoder(8, k=2, max_iter=1, random_state=0).fit(frame)
    np.save(tmp_path / "x.npy", frame.to_numpy())
    wanted = SparseReport.of(model, frame, rows_per_block=40).to_dict()  # without a warning for each block
    assert SparseReport.of(model, tmp_path / "x.npy", rows_per_block=40).to_dict() == wanted
    assert model.encode_to(tmp_path / "codes", frame, block_rows=40) == model.encode_to(tmp_path / "codes", frame)
    for call in (SparseReport.of, lambda model, x: model.encode_to(tmp_path / "other", x)):
        with pytest.raises(ValueError, match="feature names should match"):
            call(model, frame[list("fedcba")])
    assert list(model.feature_names_in_) == list("abcdef")


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"sparsity": "relu"}])
def test_transcoders(options):
    x = RNG.normal(size=(90, 6)).astype(np.float32)
    y = RNG.normal(size=(90, 4)).astype(np.float32)
    model = fastae.SparseAutoencoder(8, k=2, max_iter=1, transcoder=True, pre_bias=False, random_state=0, **options)
    report = SparseReport.of(model.fit(x, y), x, iter([y[:50], y[50:]]), rows_per_block=40)
    error, spread = y - model.reconstruct(x), y - y.mean(axis=0)
    assert report.fvu == pytest.approx((error**2).sum() / (spread**2).sum(), rel=1e-5)
    assert report.l0 == pytest.approx(model.transform(x).nnz / 90)
    for given in (y[:50], y[:80], np.concatenate([y, y])):
        with pytest.raises(ValueError, match="different numbers of rows"):
            SparseReport.of(model, x, given, rows_per_block=40)
    with pytest.raises(ValueError, match="the source has 3 features; wanted 4"):
        SparseReport.of(model, x, y[:, :3])
    plain = fastae.SparseAutoencoder(8, k=2, max_iter=1).fit(x)
    for one, targets in ((model, None), (plain, x)):
        with pytest.raises(ValueError, match="targets go with a transcoder"):
            SparseReport.of(one, x, targets)


def test_a_model_that_is_not_fitted():
    with pytest.raises(NotFittedError):
        SparseReport.of(fastae.SparseAutoencoder(8), np.zeros((3, 6)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((X, Y[:5], VALUES, INDICES), r"reconstruction has shape \(5, 9\); wanted \(701, 9\)"),
        ((X[:, :3], Y, VALUES, INDICES), "x has shape"),
        ((X, Y, VALUES, INDICES[:, :2]), "indices have shape"),
        ((X, Y, VALUES, VALUES), "wanted integers"),
        ((X, Y, np.ones_like(VALUES), INDICES + 10), r"wanted \[0, 40\)"),
        ((X, Y, np.ones_like(VALUES), INDICES - 1), "indices are from -1"),
        ((X, Y, CODE[:, :39]), r"the code has shape \(701, 39\)"),
        ((X, Y, VALUES[:7], INDICES[:7]), r"the code has shape \(7, 40\)"),
        ((np.where(X > 2, np.inf, X), Y, VALUES, INDICES), "x has NaN or infinity"),
        ((X, Y * np.nan, VALUES, INDICES), "reconstruction has NaN or infinity"),
        ((X, Y, VALUES * np.nan, INDICES), "the code has NaN or infinity"),
        ((np.ma.masked_greater(X, 2), Y, VALUES, INDICES), "x is a masked array"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_added(arguments, message):
    r = SparseReport(N, P)
    with pytest.raises(TypeError if "masked" in message else ValueError, match=message):
        r.update(*arguments)
    assert r.n_rows == 0 and not r.fired.any() and not r.squared_error.any()


class TopK:
    """As `SparseAutoencoder` gives its codes."""

    n_components, n_features_in_ = N, P
    dictionary_ = RNG.normal(size=(N, P)).astype(np.float32)

    def encode(self, X):
        z = np.asarray(X, np.float32) @ self.dictionary_.T
        indices = np.sort(np.argsort(-z, axis=1)[:, :K], axis=1).astype(np.int32)
        return np.maximum(np.take_along_axis(z, indices, axis=1), 0), indices

    def reconstruct(self, X):
        values, indices = self.encode(X)
        return (values[:, :, None] * self.dictionary_[indices]).sum(axis=1) / 10


def test_of_a_model_and_a_stream(tmp_path):
    np.save(tmp_path / "x.npy", X)
    one = SparseReport.of(TopK(), tmp_path / "x.npy", rows_per_block=64)
    two = SparseReport.of(TopK(), (X[i : i + 10] for i in range(0, M, 10)))
    assert one.n_rows == M and one.fvu == pytest.approx(two.fvu, rel=1e-6) and one.l0 == two.l0 <= K
    assert SparseReport.of(TopK(), X, rows_per_block=64, max_rows=100).n_rows == 100
    with pytest.raises(ValueError, match="max_rows=0 leaves no rows"):
        SparseReport.of(TopK(), X, max_rows=0)
    with pytest.raises(ValueError, match="has 3 features; wanted 9"):
        SparseReport.of(TopK(), X[:, :3])


def test_of_a_dense_model():
    model = fastae.Autoencoder(5, activation="relu", max_iter=5, random_state=0).fit(X)
    r = SparseReport.of(model, X)
    code = model.transform(X)
    assert r.n_components == 5 and r.l0 == pytest.approx((code != 0).sum() / M)
    assert r.mse == pytest.approx(-model.score(X), rel=1e-5)


@pytest.mark.parametrize("n, p, k", [(2, 1, 1), (50, 7, 3), (301, 16, 10), (30, 4, 29)])
def test_decoder_neighbours(n, p, k):
    w = RNG.normal(size=(n, p)).astype(np.float32)
    w[n // 2] = w[0] * 3  # the same direction
    indices, cosines = decoder_neighbours(w, k, rows_per_block=16)
    unit = w.astype(float) / np.linalg.norm(w.astype(float), axis=1, keepdims=True)
    exact = unit @ unit.T
    np.fill_diagonal(exact, -np.inf)
    np.testing.assert_allclose(np.take_along_axis(exact, indices.astype(int), axis=1), cosines, atol=1e-6)
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    for other in (decoder_neighbours(w, k, rows_per_block=1000), decoder_neighbours(w, k, n_threads=3)):
        if get_backend().name != "native":  # BLAS
            np.testing.assert_allclose(other[1], cosines, atol=1e-6)
            continue
        np.testing.assert_array_equal(other[0], indices)
        np.testing.assert_array_equal(other[1], cosines)


def test_neighbours_that_are_equal_go_by_index():
    w = np.tile(np.eye(3, dtype=np.float32), (4, 1))
    w[5] = 0
    indices, cosines = decoder_neighbours(w, 4)
    np.testing.assert_array_equal(indices[0], [3, 6, 9, 1])
    np.testing.assert_array_equal(cosines[0], [1, 1, 1, 0])
    np.testing.assert_array_equal(indices[5], [0, 1, 2, 3])
    cases = ((w[:1], 1), "wanted"), ((w, 12), "k=12 must be in"), ((w[0], 1), "wanted"), ((w * np.nan, 1), "NaN")
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            decoder_neighbours(*bad)


def test_real_activations(data_dir):
    X = np.load(data_dir / "minilm_layer4_activations_f16.npy", mmap_mode="r")[:6000]
    x = X.astype(float)
    one, two = SparseReport(1, 384), SparseReport(1, 384)
    one.update(X, np.broadcast_to(x.mean(axis=0), x.shape), np.ones((6000, 1)))
    for i in range(0, 6000, 77):
        two.update(X[i : i + 77], np.broadcast_to(x.mean(axis=0), x[i : i + 77].shape), np.ones((6000, 1))[i : i + 77])
    assert one.fvu == pytest.approx(1, rel=1e-12) and two.fvu == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(one.spread, two.spread, rtol=1e-12)
