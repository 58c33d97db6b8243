"""What the displays share: figures of their own, images side by side."""

from __future__ import annotations

import importlib
import io
import math
import reprlib
from math import isqrt
from typing import Any, Self

import numpy as np

from ..spec.options import number


class Display:
    """Base of the displays: subclasses give ``_size`` in inches and ``_draw(ax, options)``.

    ``_artist`` is what of matplotlib options are of; those in ``_drawn_by_itself`` are the display's own.
    """

    figure_: Any
    ax_: Any
    _size = (6.0, 4.0)
    _artist = "lines.Line2D"
    _drawn_by_itself: tuple[str, ...] = ()
    _follows_y: tuple[str, ...] = ()  # options that y stands for where there is one
    y: Any = None

    def plot(self, ax: Any = None, **options: Any) -> Self:
        """Draws on ``ax``, or on a figure of its own; ``options`` go to matplotlib's drawing function.

        ax : matplotlib's Axes, or None
        Raises ImportError without matplotlib, TypeError for options that the display sets itself.
        """
        if ax is None:
            ax = _figure(self._size).add_subplot()
        elif not hasattr(ax, "set_xlabel"):
            raise TypeError(
                f"ax is a {type(ax).__name__}; wanted matplotlib's Axes, such as pyplot.subplots()[1], or None"
            )
        options = self._by_one_name(options)
        for name, value in options.items():
            shown = f"{name}={reprlib.repr(value)}"
            if name in self._drawn_by_itself:
                raise TypeError(f"{shown} is what {type(self).__name__} draws itself; leave it out")
            if name in self._follows_y and self.y is not None:
                raise TypeError(f"{shown} cannot go with y, which gives the {name}; leave one of them out")
        self.ax_, self.figure_ = ax, ax.figure
        self._draw(ax, options)
        return self

    def _by_one_name(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options with one name for each of matplotlib's properties, so that ours give way to the caller's."""
        from matplotlib import cbook

        module, _, kind = self._artist.partition(".")
        return cbook.normalize_kwargs(options, getattr(importlib.import_module(f"matplotlib.{module}"), kind))

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def save(self, path: Any, *, dpi: float = 120) -> None:
        """Writes the picture.

        path : of the file, whose name decides the format; dpi : dots per inch
        """
        self._drawn().savefig(str(path), dpi=number("dpi", dpi, 0, math.inf, "neither"))

    def _drawn(self) -> Any:
        if not hasattr(self, "figure_"):
            self.plot()
        return self.figure_

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        png = io.BytesIO()
        self._drawn().savefig(png, format="png", dpi=100)
        return png.getvalue()


def _figure(size: tuple[float, float]) -> Any:
    """A figure that pyplot knows nothing of."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib ({error}): pip install 'fastae[plot]'") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_model(model: Any, display: str) -> None:
    """Raises unless ``model`` is a fitted estimator over a network of fastae."""
    if not hasattr(model, "_fitted_network"):
        inner = "; give its autoencoder_" if hasattr(model, "autoencoder_") else ""
        raise TypeError(f"{display} takes a model with weights_ and loss_curve_, got {type(model).__name__}{inner}")
    model._fitted_network()


def check_has(model: Any, method: str, display: str) -> None:
    """Raises unless ``model`` has what the display draws the results of."""
    if not hasattr(model, method):
        inner = "; give its autoencoder_" if hasattr(getattr(model, "autoencoder_", None), method) else ""
        raise TypeError(f"{display} takes a model that has {method}, got {type(model).__name__}{inner}")


def image_shape(shape: Any, width: int, what: str) -> tuple[int, int]:
    """(height, width) of images of ``width`` pixels: as given, else square.

    Raises ValueError where the numbers do not fit, naming the remedy.
    """
    if shape is None:
        side = isqrt(width)
        if side * side != width:
            raise ValueError(f"{what} have {width} values, which is no square; give shape=(height, width)")
        return side, side
    try:
        height, across = (int(n) for n in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape={shape!r} must be (height, width)") from None
    if height < 1 or across < 1 or height * across != width:
        raise ValueError(f"shape={shape!r} does not fit {what} of {width} values; give (height, width)")
    return height, across


def mosaic(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Images (n, height, width) in rows of ``columns`` as one array, NaN between them and in empty places."""
    n, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def bare(ax: Any) -> None:
    """No ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_frame_on(False)


def numbers(name: str, values: Any) -> np.ndarray:
    """A float64 array, or an error that says what came."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, got {reprlib.repr(values)}") from None


def classes_of(y: np.ndarray) -> list:
    """The different values of y in order; those of one type after those of another. Raises TypeError for no labels."""
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise ValueError("y has NaN; leave such rows out, or give them a class")
    try:
        return sorted(set(y.tolist()), key=lambda v: (str(type(v)), v))
    except TypeError:
        raise TypeError(f"y has values such as {reprlib.repr(y[0])}; wanted numbers or names") from None


def matrix(name: str, values: Any, columns: int | None = None) -> np.ndarray:
    """A float64 matrix, or an error that says what came."""
    array = numbers(name, values)
    if array.ndim != 2 or 0 in array.shape or (columns is not None and array.shape[1] != columns):
        wanted = "(n, p)" if columns is None else f"(n, {columns})"
        raise ValueError(f"{name} has shape {array.shape}; wanted {wanted} with n >= 1")
    return array
