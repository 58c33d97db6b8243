"""Pictures, with matplotlib (extra ``plot``): Display objects in the manner of scikit-learn's.

A display holds the numbers of a picture. ``Display.from_estimator(model, …, ax=None)`` takes them from a fitted model
and draws; the constructor takes the numbers themselves and ``plot(ax=None)`` draws. Both leave ``figure_`` and
``ax_``. Without ``ax`` a figure of its own is made apart from pyplot, so that nothing global changes and no screen is
needed: a notebook shows the display itself, ``display.save("picture.png")`` writes it. Give an ``ax`` of
``pyplot.subplots()`` for windows and for several pictures in one figure.
"""

from .code_scatter import CodeScatterDisplay
from .error_histogram import ErrorHistogramDisplay
from .filters import FilterDisplay
from .loss_curve import LossCurveDisplay
from .reconstruction import ReconstructionDisplay, save_reconstructions
from .sparse import FiringDensityDisplay, FrontierDisplay

__all__ = [
    "CodeScatterDisplay",
    "ErrorHistogramDisplay",
    "FilterDisplay",
    "FiringDensityDisplay",
    "FrontierDisplay",
    "LossCurveDisplay",
    "ReconstructionDisplay",
    "save_reconstructions",
]
