"""The displays: what they draw, what they refuse, and that nothing global changes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

import fastae

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(140, 16)).astype(np.float32)
LABELS = np.arange(140) % 3
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def figure():
    return pytest.importorskip("matplotlib.figure").Figure()


@pytest.fixture(scope="module")
def model():
    return fastae.Autoencoder(
        4, hidden_layer_sizes=(9,), max_iter=4, early_stopping=True, activation="tanh", random_state=0
    ).fit(X)


def is_png(data):
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def every_display(model):
    yield fastae.LossCurveDisplay.from_estimator(model)
    yield fastae.ReconstructionDisplay.from_estimator(model, X)
    yield fastae.CodeScatterDisplay.from_estimator(model, X, LABELS)
    yield fastae.FilterDisplay.from_estimator(model)
    yield fastae.ErrorHistogramDisplay.from_estimator(model, X)


@pytest.mark.usefixtures("figure")
def test_every_display_draws_shows_and_saves(model, tmp_path):
    for display in every_display(model):
        assert display.ax_.figure is display.figure_ and display.ax_.has_data()
        assert is_png(display._repr_png_())
        display.save(tmp_path / "a.svg")
        assert "<svg" in (tmp_path / "a.svg").read_text()


def test_every_display_draws_on_axes_it_is_given(model, figure):
    axes = figure.subplots(1, 5)
    displays = [fastae.LossCurveDisplay.from_estimator(model, ax=axes[0]),
                fastae.ReconstructionDisplay.from_estimator(model, X, ax=axes[1], cmap="viridis"),
                fastae.CodeScatterDisplay.from_estimator(model, X, ax=axes[2], s=1),
                fastae.FilterDisplay.from_estimator(model, ax=axes[3]),
                fastae.ErrorHistogramDisplay.from_estimator(model, X, ax=axes[4], bins=7)]  # fmt: skip
    for display, ax in zip(displays, axes, strict=True):
        assert display.ax_ is ax and display.figure_ is figure and ax.has_data()
    assert axes[1].images[0].get_cmap().name == "viridis" and len(axes[4].patches) == 7


def test_no_pyplot_and_no_screen(figure):
    code = ("import numpy as np, sys, fastae\n"
            "fastae.LossCurveDisplay([3.0, 2.0]).plot()._repr_png_()\n"
            "fastae.FilterDisplay(np.eye(4)).plot()\n"
            "assert 'matplotlib.pyplot' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_without_matplotlib(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    display = fastae.FilterDisplay(np.eye(4))
    with pytest.raises(ImportError, match=r"pip install 'fastae\[plot\]'"):
        display.plot()
    with pytest.raises(ImportError, match=r"pip install 'fastae\[plot\]'"):
        fastae.LossCurveDisplay.from_estimator(model)


def test_models_that_have_others_inside(figure):
    detector = fastae.AutoencoderDetector(n_components=2, max_iter=2, random_state=0).fit(X)
    for display in (fastae.LossCurveDisplay, fastae.FilterDisplay):
        with pytest.raises(TypeError, match=f"{display.__name__} takes .* got AutoencoderDetector; give its autoenc"):
            display.from_estimator(detector)
        display.from_estimator(detector.autoencoder_, ax=figure.add_subplot())
    for display in (fastae.ReconstructionDisplay, fastae.CodeScatterDisplay):
        with pytest.raises(TypeError, match=f"{display.__name__} takes .* got AutoencoderDetector; give its autoenc"):
            display.from_estimator(detector, X)
        display.from_estimator(detector.autoencoder_, X, ax=figure.add_subplot())


def test_models_without_what_is_drawn():
    classifier = fastae.AutoencoderClassifier((3,), max_iter=1, random_state=0).fit(X, np.arange(len(X)) % 2)
    with pytest.raises(TypeError, match="takes a model that has reconstruct, got AutoencoderClassifier"):
        fastae.ReconstructionDisplay.from_estimator(classifier, X)
    with pytest.raises(TypeError, match="takes a model that has score_samples, got AutoencoderClassifier"):
        fastae.ErrorHistogramDisplay.from_estimator(classifier, X)
    sparse = fastae.SparseAutoencoder(8, k=2, max_iter=1, random_state=0).fit(X)
    with pytest.raises(TypeError, match="draws dense codes, those of SparseAutoencoder are sparse"):
        fastae.CodeScatterDisplay.from_estimator(sparse, X)


# ---- loss curves ---


def test_loss_curve(model, figure):
    ax = figure.add_subplot()
    display = fastae.LossCurveDisplay.from_estimator(model, ax=ax, name="first")
    training, held_out, best = ax.lines
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(training.get_ydata(), model.loss_curve_)
    np.testing.assert_array_equal(held_out.get_ydata(), -np.array(model.validation_scores_))
    assert best.get_ydata()[0] == -model.best_validation_score_ == display.validation_losses.min()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first, training", "first, held-out rows"]
    assert ax.get_yscale() == "linear"


def test_loss_curve_of_a_sparse_model(figure):
    sparse = fastae.SparseAutoencoder(16, k=2, max_iter=3)
    with pytest.raises(NotFittedError):
        fastae.LossCurveDisplay.from_estimator(sparse)
    assert fastae.LossCurveDisplay.from_estimator(sparse.fit(X)).losses.tolist() == sparse.loss_curve_


def test_loss_curve_scale(figure):
    first, second = figure.subplots(1, 2)
    fastae.LossCurveDisplay([100.0, 1.0]).plot(first)
    fastae.LossCurveDisplay([100.0, -1.0]).plot(second)
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear") and first.get_legend() is None


def test_loss_curves_that_are_none():
    given = fastae.Autoencoder.from_arrays([(np.eye(2), None)], [(np.eye(2), None)])
    with pytest.raises(ValueError, match="no loss curve"):
        fastae.LossCurveDisplay.from_estimator(given)
    with pytest.raises(ValueError, match=r"losses has shape \(0,\)"):
        fastae.LossCurveDisplay([])


# ---- reconstructions ---


def test_reconstructed_images(model, figure):
    ax = figure.add_subplot()
    display = fastae.ReconstructionDisplay.from_estimator(model, X, n_samples=3, ax=ax)
    canvas = np.asarray(ax.images[0].get_array())
    assert display.shape == (4, 4) and canvas.shape == (9, 14)
    np.testing.assert_allclose(canvas[:4, 5:9].reshape(-1), X[1])
    np.testing.assert_allclose(canvas[5:, 5:9].reshape(-1), model.reconstruct(X[:3])[1])
    assert np.isnan(canvas[4]).all() and np.isnan(canvas[:, 4]).all()
    assert ax.images[0].get_clim() == pytest.approx((X[:3].min(), X[:3].max()))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["original", "reconstruction"]


def test_reconstructed_wide_images(figure):
    ax = figure.add_subplot()
    fastae.ReconstructionDisplay(X[:3], X[3:6], shape=(1, 16)).plot(ax)
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape == (5, 33)
    np.testing.assert_allclose(canvas[2, :16], X[1])
    np.testing.assert_allclose(canvas[2, 17:], X[4])


def test_reconstructed_curves(figure):
    ax = figure.add_subplot()
    fastae.ReconstructionDisplay(X[:2, :13], X[2:4, :13]).plot(ax)
    assert len(ax.lines) == 4 and not ax.images
    np.testing.assert_allclose(ax.lines[1].get_ydata(), X[2, :13])
    span = X[:2, :13].max() - X[:2, :13].min()
    np.testing.assert_allclose(ax.lines[2].get_ydata(), X[1, :13] - 1.1 * span, rtol=1e-5)


def test_reconstruction_of_sparse_rows_and_frames(model, figure):
    import scipy.sparse

    ax = figure.add_subplot()
    expected = fastae.ReconstructionDisplay.from_estimator(model, X, ax=ax)
    sparse = fastae.ReconstructionDisplay.from_estimator(model, scipy.sparse.csr_array(X), ax=ax)
    np.testing.assert_array_equal(sparse.originals, expected.originals)
    np.testing.assert_array_equal(sparse.reconstructions, expected.reconstructions)


def test_numbers_of_things_to_draw_are_checked(model):
    for call, name in (
        (lambda n: fastae.ReconstructionDisplay.from_estimator(model, X, n_samples=n), "n_samples"),
        (lambda n: fastae.CodeScatterDisplay.from_estimator(model, X, max_points=n), "max_points"),
        (lambda n: fastae.FilterDisplay.from_estimator(model, n_filters=n), "n_filters"),
        (lambda n: fastae.FilterDisplay(X[:2, :9], columns=n), "columns"),
    ):
        for n in (0, -1, 1.5):
            with pytest.raises((ValueError, TypeError), match=f"{name}={n} must be"):
                call(n)


@pytest.mark.parametrize("shape, message", [((3, 5), "does not fit"), ("wide", "must be"), ((4, -4), "does not fit")])
def test_bad_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        fastae.ReconstructionDisplay(X[:2], X[:2], shape=shape)
    with pytest.raises(ValueError, match=message):
        fastae.FilterDisplay(X[:2], shape=shape)


def test_bad_reconstructions():
    with pytest.raises(ValueError, match="reconstructions has shape"):
        fastae.ReconstructionDisplay(X[:2], X[:2, :3])
    with pytest.raises(ValueError, match="got 2 originals and 3"):
        fastae.ReconstructionDisplay(X[:2], X[:3])


# ---- codes ---


def test_codes_of_many_dimensions_are_projected(model, figure):
    from sklearn.decomposition import PCA

    display = fastae.CodeScatterDisplay.from_estimator(model, X, ax=figure.add_subplot())
    code = model.transform(X).astype(float)
    pca = PCA(2).fit(code)
    np.testing.assert_allclose(np.abs(display.coordinates), np.abs(pca.transform(code)), atol=1e-5)
    assert f"({pca.explained_variance_ratio_[0]:.0%})" in display.axis_names[0]


@pytest.mark.parametrize("k", [1, 2])
def test_codes_of_few_dimensions_are_drawn_as_they_are(k, figure):
    small = fastae.Autoencoder(k, code_activation="identity", max_iter=1, random_state=0).fit(X)
    display = fastae.CodeScatterDisplay.from_estimator(small, X, LABELS, max_points=50, ax=figure.add_subplot())
    np.testing.assert_array_equal(display.y, LABELS[np.arange(50) * 140 // 50])
    assert display.coordinates.shape == (50, 2)
    np.testing.assert_allclose(display.coordinates[:, :k], small.transform(X)[np.arange(50) * 140 // 50])


@pytest.mark.parametrize(
    "y, legend",
    [(LABELS, 3), (LABELS.astype(str), 3), (LABELS == 1, 2), (np.arange(140) % 12, 12),
     (np.array(["a", 1] * 70, dtype=object), 2)],
)  # fmt: skip
def test_classes_have_a_legend(y, legend, figure):
    ax = figure.add_subplot()
    fastae.CodeScatterDisplay(X[:, :2], y).plot(ax)
    assert len(ax.get_legend().get_texts()) == legend and len(figure.axes) == 1
    colours = ax.collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == legend
    for value in set(y.tolist()):
        same = np.array([v == value for v in y.tolist()])
        assert len(np.unique(colours[same], axis=0)) == 1


@pytest.mark.parametrize("y", [X[:, 3], np.arange(140), np.array([f"c{i}" for i in range(140)])])
def test_numbers_have_a_colour_scale(y, figure):
    ax = figure.add_subplot()
    fastae.CodeScatterDisplay(X[:, :2], y).plot(ax)
    assert ax.get_legend() is None and len(figure.axes) == 2


def test_bad_classes(model):
    with pytest.raises(ValueError, match=r"y has shape \(3,\); wanted \(140,\)"):
        fastae.CodeScatterDisplay.from_estimator(model, X, [1, 2, 3])
    with pytest.raises(ValueError, match="coordinates has shape"):
        fastae.CodeScatterDisplay(X)


# ---- filters ---


@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_filters(model, which, figure):
    ax = figure.add_subplot()
    display = fastae.FilterDisplay.from_estimator(model, which=which, n_filters=5, ax=ax)
    expected = model.weights_[0][0][:5] if which == "encoder" else model.weights_[-1][0].T[:5]
    np.testing.assert_array_equal(display.weights, expected)
    canvas = np.asarray(ax.images[0].get_array())
    assert display.columns == 3 and canvas.shape == (9, 14) and ax.images[0].get_clim() == (-1, 1)
    np.testing.assert_allclose(canvas[5:, 5:9].reshape(-1), expected[4] / np.abs(expected[4]).max())
    assert np.isnan(canvas[5:, 10:]).all()


def test_bad_filters(model):
    with pytest.raises(ValueError, match="which='code' must be"):
        fastae.FilterDisplay.from_estimator(model, which="code")
    with pytest.raises(ValueError, match=r"17 values, which is no square; give shape=\(height, width\)"):
        fastae.FilterDisplay(np.ones((2, 17)))
    assert fastae.FilterDisplay(np.zeros((2, 12)), shape=(3, 4), columns=1).columns == 1
    with pytest.raises(ValueError, match="columns=0"):
        fastae.FilterDisplay(np.ones((2, 4)), columns=0)


# ---- errors ---


def test_error_histogram(model, figure):
    ax = figure.add_subplot()
    display = fastae.ErrorHistogramDisplay.from_estimator(model, X, threshold=0.07, ax=ax)
    np.testing.assert_array_equal(display.errors, -model.score_samples(X))
    assert sum(patch.get_height() for patch in ax.patches) == 140
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx(
        [np.median(display.errors), *np.quantile(display.errors, [0.95, 0.99]), 0.07]
    )


def test_error_histogram_of_classes(figure):
    ax = figure.add_subplot()
    errors = np.concatenate([np.linspace(0.01, 0.02, 100), np.linspace(5, 6, 10)])
    fastae.ErrorHistogramDisplay(errors, y=["normal"] * 100 + ["odd"] * 10).plot(ax)
    assert ax.get_xscale() == "log"
    assert sum(patch.get_height() for patch in ax.patches) == pytest.approx(2)  # shares of each class
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["normal (100 rows)", "odd (10 rows)"]


def test_bad_errors():
    with pytest.raises(ValueError, match="errors has shape"):
        fastae.ErrorHistogramDisplay([])
    with pytest.raises(ValueError, match="y has shape"):
        fastae.ErrorHistogramDisplay([1.0, 2.0], y=[1])


# ---- arguments that are matplotlib's, and that are not ---

ERRORS = np.linspace(1, 2, 140)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: fastae.CodeScatterDisplay(X[:, :2], LABELS).plot(c="r"), "c='r' cannot go with y, which gives the"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2], ERRORS).plot(color="r"), "color='r' cannot go with y"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2], LABELS).plot(fc="r"), "facecolor=.* cannot go with y"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2]).plot(x=3), "x=3 is what CodeScatterDisplay draws itself; leave"),
        (lambda: fastae.ErrorHistogramDisplay(ERRORS, y=LABELS).plot(weights=[1]), "weights=.* cannot go with y"),
        (lambda: fastae.FilterDisplay(X).plot(X=3), "X=3 is what FilterDisplay draws itself"),
        (lambda: fastae.LossCurveDisplay([2, 1]).plot(3), "ax is a int; wanted matplotlib's Axes"),
        (lambda: fastae.LossCurveDisplay([2, 1]).plot(np.empty(2, object)), "ax is a ndarray; wanted"),
        (lambda: fastae.LossCurveDisplay([2, 1]).save("picture.png", dpi="fine"), "dpi='fine' must be a number"),
        (lambda: fastae.LossCurveDisplay("abc"), "losses must be numbers, got 'abc'"),
        (lambda: fastae.CodeScatterDisplay([["a", "b"]]), "coordinates must be numbers, got"),
        (lambda: fastae.ErrorHistogramDisplay([{}]), "errors must be numbers, got"),
        (lambda: fastae.ErrorHistogramDisplay(ERRORS, threshold="high"), "threshold='high' must be a number"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2], axis_names=None), "axis_names=None must be two names"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2], axis_names="xy"), "axis_names='xy' must be two names"),
        (lambda: fastae.CodeScatterDisplay(X[:, :2], [{}] * 140), "y has values such as {}; wanted numbers or names"),
        (lambda: fastae.ErrorHistogramDisplay(ERRORS, y=[{}] * 140), "y has values such as {}; wanted numbers"),
        (lambda: fastae.FiringDensityDisplay(["a"]), "frequency must be numbers"),
        (lambda: fastae.FiringDensityDisplay.from_report(3), "takes a report that has frequency, got int"),
        (lambda: fastae.FrontierDisplay("a", [1]), "l0 must be numbers"),
        (lambda: fastae.FrontierDisplay([1], [1], names=3), "names=3 must be a sequence, one for each point"),
        (lambda: fastae.FrontierDisplay.from_reports(3), "takes a list or dict of reports, got int"),
        (lambda: fastae.FrontierDisplay.from_reports([3]), "takes reports that have l0 and fvu, got int"),
    ],
)
@pytest.mark.usefixtures("figure")
def test_what_is_no_argument_of_a_display(draw, message):
    with pytest.raises(TypeError, match=message):
        draw()


@pytest.mark.usefixtures("figure")
def test_matplotlibs_other_names_of_options():
    points = fastae.CodeScatterDisplay(X[:, :2], LABELS).plot(lw=2).ax_.collections[0]
    assert points.get_linewidths() == [2]
    curves = fastae.ReconstructionDisplay(X[:2, :7], X[:2, :7]).plot(c="r", ls=":", label="model").ax_
    assert curves.lines[1].get_color() == "r" and curves.lines[1].get_linestyle() == ":"
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["original", "model"]
    assert fastae.CodeScatterDisplay(X[:, :2]).plot(c="r").ax_.collections[0].get_facecolor()[0, 0] == 1


@pytest.mark.usefixtures("figure")
def test_error_histogram_of_classes_of_several_types():
    legend = fastae.ErrorHistogramDisplay(ERRORS, y=[None, "odd"] * 70).plot().ax_.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["None (70 rows)", "odd (70 rows)"]
    with pytest.raises(ValueError, match="y has NaN"):
        fastae.ErrorHistogramDisplay(ERRORS, y=np.where(LABELS == 0, np.nan, LABELS))
