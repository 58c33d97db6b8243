"""Frames that come in blocks: the names of their columns are learnt and checked, as those of one frame are."""

import warnings

import numpy as np
import pytest

import fastae
from fastae.io.model_file import load
from fastae.stream import open_rows

X = np.random.default_rng(0).random((120, 4)).astype(np.float32)
NAMES = ["a", "b", "c", "d"]


class Frame:
    """As Arrow's record batches: an array with names of its columns."""

    def __init__(self, rows, names=NAMES):
        self.rows, self.column_names, self.shape = rows, list(names), rows.shape

    def __array__(self, dtype=None, copy=None):
        return self.rows


SWAPPED = Frame(X[60:, ::-1], NAMES[::-1])
MODELS = [
    fastae.Autoencoder(2, max_iter=2, random_state=0),
    fastae.SparseAutoencoder(8, k=2, max_iter=2, random_state=0),
]


@pytest.fixture(params=MODELS, ids=["dense", "sparse"])
def model(request):
    from sklearn.base import clone

    return clone(request.param)


def in_blocks(*blocks):
    return lambda: iter(blocks)


@pytest.mark.parametrize("form", [list, lambda blocks: in_blocks(*blocks)], ids=["list", "iterable"])
def test_blocks_with_other_columns_are_refused(model, form):
    with pytest.raises(ValueError, match=r"1 of the source has columns .*'d', 'c', 'b', 'a'.*same order"):
        model.fit(form([Frame(X[:60]), SWAPPED]))


def test_names_are_learnt_and_checked(model):
    model.fit(in_blocks(Frame(X[:60]), Frame(X[60:])))
    assert list(model.feature_names_in_) == NAMES
    with pytest.raises(ValueError, match=r"(?s)feature names should match.*'d', 'c', 'b', 'a'.*wanted"):
        model.partial_fit([SWAPPED])
    model.partial_fit([X])  # no names, no opinion
    assert list(model.feature_names_in_) == NAMES
    assert "feature_names_in_" not in vars(model.fit([X]))


def test_codes_of_frames_in_blocks(model, tmp_path):
    model.fit(in_blocks(Frame(X)))
    with pytest.raises(ValueError, match="feature names should match"):
        fastae.encode_to(model.transform, tmp_path / "codes", in_blocks(SWAPPED))
    with warnings.catch_warnings():  # blocks have no names any more when they are encoded
        warnings.simplefilter("error")
        fastae.encode_to(model.transform, tmp_path / "codes", in_blocks(Frame(X[:60]), Frame(X[60:])))
        fastae.encode_to(model.transform, tmp_path / "again", X)
    dense = [np.asarray(c.toarray() if hasattr(c, "toarray") else c) for c in
             (fastae.open_codes(tmp_path / "codes"), fastae.open_codes(tmp_path / "again"))]  # fmt: skip
    np.testing.assert_array_equal(*dense)


def test_codes_and_reports_of_sparse_models(tmp_path):
    model = MODELS[1].fit(in_blocks(Frame(X)))
    for use in (lambda s: model.encode_to(tmp_path / "codes", s), lambda s: fastae.metrics.SparseReport.of(model, s)):
        with pytest.raises(ValueError, match="feature names should match"):
            use(in_blocks(SWAPPED))
        use(in_blocks(Frame(X)))


def test_the_command_encodes_files_without_a_warning(tmp_path, recwarn):
    from fastae.cli import main

    MODELS[0].fit(in_blocks(Frame(X))).save(tmp_path / "m.safetensors")
    assert list(load(tmp_path / "m.safetensors").feature_names_in_) == NAMES
    np.save(tmp_path / "x.npy", X)
    for out in ("codes", "codes.npy"):
        assert main(["encode", *(str(tmp_path / name) for name in ("m.safetensors", "x.npy", out)), "--quiet"]) == 0
    assert not len(recwarn)


def test_rows_without_names_among_named_ones():
    rows = open_rows(in_blocks(X[:10], Frame(X[10:20]), X[20:]))
    assert rows.names is None and sum(len(block) for block in rows.blocks(7)) == 120
