"""What the displays share: figures of their own, images side by side."""

from __future__ import annotations

import io
from math import isqrt
from typing import Any, Self

import numpy as np


class Display:
    """Base of the displays: subclasses give ``_size`` in inches and ``_draw(ax, options)``."""

    figure_: Any
    ax_: Any
    _size = (6.0, 4.0)

    def plot(self, ax: Any = None, **options: Any) -> Self:
        """Draws on ``ax``, or on a figure of its own; ``options`` go to matplotlib's drawing function.

        Raises ImportError without matplotlib.
        """
        if ax is None:
            ax = _figure(self._size).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        self._draw(ax, options)
        return self

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def save(self, path: Any, *, dpi: float = 120) -> None:
        """Writes the picture; the file's name decides the format."""
        self._drawn().savefig(str(path), dpi=dpi)

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


def matrix(name: str, values: Any, columns: int | None = None) -> np.ndarray:
    """A float64 matrix, or an error that says what came."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape or (columns is not None and array.shape[1] != columns):
        wanted = "(n, p)" if columns is None else f"(n, {columns})"
        raise ValueError(f"{name} has shape {array.shape}; wanted {wanted} with n >= 1")
    return array
