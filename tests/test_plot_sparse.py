"""Displays of sparse codes."""

import numpy as np
import pytest

import fastae
from fastae.metrics import SparseReport

RNG = np.random.default_rng(0)


def report(n_active, error):
    x = RNG.normal(size=(400, 6))
    code = np.zeros((400, 50))
    code[:, :40] = RNG.uniform(size=(400, 40)) < np.geomspace(1 / 400, 1, 40) * n_active / 8
    return SparseReport(50, 6).update(x, x + error * RNG.normal(size=x.shape), code)


REPORTS = {"k=2": report(2, 0.5), "k=8": report(8, 0.05)}


@pytest.fixture
def ax():
    return pytest.importorskip("matplotlib.figure").Figure().add_subplot()


def test_firing_density_counts_every_latent(ax, tmp_path):
    shown = fastae.FiringDensityDisplay.from_report(REPORTS["k=8"], ax=ax, name="a")
    assert shown.ax_ is ax
    assert sum(bar.get_height() for bar in ax.patches) == 50
    dead = len(REPORTS["k=8"].dead)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"a, {50 - dead} living", f"a, {dead} dead"] and dead >= 10
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    assert len(hatched) == 1 and hatched[0].get_height() == dead
    assert hatched[0].get_x() + hatched[0].get_width() < min(b.get_x() for b in ax.patches if not b.get_hatch())
    own = fastae.FiringDensityDisplay.from_report(REPORTS["k=2"])
    own.save(tmp_path / "a.png")
    assert own._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize("frequency", [[0.0, 0.0], [1.0], [1e-7, 0.5], [0.001]])
def test_extreme_frequencies(ax, frequency):
    fastae.FiringDensityDisplay(frequency).plot(ax)
    assert sum(bar.get_height() for bar in ax.patches) == len(frequency)
    ax.figure.canvas.draw()


def test_frontier(ax):
    shown = fastae.FrontierDisplay.from_reports(REPORTS, ax=ax, name="topk")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [r.l0 for r in REPORTS.values()])
    np.testing.assert_array_equal(line.get_ydata(), [r.fvu for r in REPORTS.values()])
    assert [text.get_text() for text in ax.texts] == ["k=2", "k=8"] and ax.get_yscale() == "log"
    assert shown.names == ["k=2", "k=8"] and ax.get_legend().get_texts()[0].get_text() == "topk"
    fastae.FrontierDisplay.from_reports(list(REPORTS.values())[::-1], ax=ax)
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), line.get_xdata())


def test_what_is_refused():
    for call, message in (
        (lambda: fastae.FiringDensityDisplay([0.5, 1.5]), r"wanted numbers in \[0, 1\]"),
        (lambda: fastae.FiringDensityDisplay([np.nan]), r"wanted numbers in \[0, 1\]"),
        (lambda: fastae.FiringDensityDisplay([]), "n >= 1"),
        (lambda: fastae.FrontierDisplay([1, 2], [1]), "wanted both"),
        (lambda: fastae.FrontierDisplay([], []), "wanted both"),
        (lambda: fastae.FrontierDisplay.from_reports([SparseReport(3, 2)]), "must be finite"),
        (lambda: fastae.FrontierDisplay([1], [1], names=["a", "b"]), "2 names for 1 models"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
