"""Codes as points in the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec.options import number
from .display import Display, check_has, classes_of, matrix

MANY_CLASSES = 20  # more are coloured by a scale, without a legend


class CodeScatterDisplay(Display):
    """Codes as points in the plane, coloured by y.

    coordinates : (n, 2)
    y : (n,) or None; strings, bools and up to 20 different integers are classes with a legend, numbers a colour scale
    axis_names : of the two coordinates
    """

    _size = (6.0, 5.0)
    _artist = "collections.PathCollection"
    _drawn_by_itself = ("x", "y")
    _follows_y = ("c", "color", "facecolor")

    def __init__(self, coordinates: Any, y: Any = None, *, axis_names: tuple[str, str] = ("code 0", "code 1")):
        self.coordinates = matrix("coordinates", coordinates, 2)
        self.y = None if y is None else np.asarray(y)
        if self.y is not None and self.y.shape != (len(self.coordinates),):
            raise ValueError(f"y has shape {self.y.shape}; wanted {(len(self.coordinates),)}: one value per row")
        if self.y is not None:
            _classes(self.y)  # raises for what is neither
        if isinstance(axis_names, str) or not hasattr(axis_names, "__len__") or len(axis_names) != 2:
            raise TypeError(f"axis_names={axis_names!r} must be two names")
        self.axis_names = axis_names

    @classmethod
    def from_estimator(
        cls, model: Any, X: Any, y: Any = None, *, max_points: int = 10_000, ax: Any = None, **options: Any
    ) -> CodeScatterDisplay:
        """Of the codes of X: both dimensions of a code of two, else the two leading principal components of the codes.

        A code of one dimension is drawn against small, fixed random heights. Of more than ``max_points`` rows as many
        are drawn, evenly spread over X.

        model : fitted, with ``transform`` to dense codes; ax, options : as of `plot`
        """
        from ..diagnostics.measure import sample

        check_has(model, "transform", cls.__name__)
        code = model.transform(X)
        if hasattr(code, "tocsr"):
            raise TypeError(f"{cls.__name__} draws dense codes, those of {type(model).__name__} are sparse")
        code = np.asarray(code)
        n, k = code.shape
        coordinates, names = code, ("code 0", "code 1")
        if k == 1:
            heights = np.random.Generator(np.random.Philox(key=[0, 0])).uniform(-0.5, 0.5, (n, 1))
            coordinates, names = np.hstack([code, heights]), ("code 0", "")
        elif k > 2:
            coordinates, names = _leading_components(code)
        shown = sample(n, number("max_points", max_points, 1, math.inf, integer=True))
        values = None if y is None else np.asarray(y)
        if values is not None and values.shape != (n,):
            raise ValueError(f"y has shape {values.shape}; wanted {(n,)}: one value per row of X")
        values = None if values is None else values[shown]
        return cls(coordinates[shown], values, axis_names=names).plot(ax, **options)

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        u, v = self.coordinates.T
        n = len(u)
        style = {"s": float(np.clip(8000 / n, 3, 30)), "alpha": 0.8, "linewidth": 0} | options
        classes = None if self.y is None else _classes(self.y)
        if self.y is None:
            ax.scatter(u, v, **style)
        elif classes is not None:
            from matplotlib import colormaps

            listed = colormaps["tab10" if len(classes) <= 10 else "tab20"]
            colours = [listed(i) for i in range(listed.N)]
            number = {value: i for i, value in enumerate(classes)}
            # in the order of the rows, not class by class, so that the last class does not cover the others
            ax.scatter(u, v, c=[colours[number[value]] for value in self.y.tolist()], **style)
            for value, colour in zip(classes, colours, strict=False):
                ax.scatter([], [], color=colour, label=str(value))
            ax.legend(loc="best", fontsize="small", ncols=1 + (len(classes) > 10))
        else:
            values = self.y if self.y.dtype.kind in "iufb" else np.unique(self.y.astype(str), return_inverse=True)[1]
            points = ax.scatter(u, v, c=values, **style)
            ax.figure.colorbar(points, ax=ax)
        ax.set_xlabel(self.axis_names[0])
        ax.set_ylabel(self.axis_names[1])
        if not self.axis_names[1]:
            ax.set_yticks([])


def _classes(y: np.ndarray) -> list | None:
    """The classes of y in order, or None where its values are to be read as numbers."""
    if y.dtype.kind == "f" or (y.dtype.kind == "O" and any(isinstance(value, float) for value in y)):
        return None
    values = classes_of(y)
    return values if len(values) <= MANY_CLASSES else None


def _leading_components(code: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    from ..diagnostics.pca import principal_axes
    from ..plan.plan import Source

    mean, axes = principal_axes(Source(code, columns=code.shape[1]), 2)
    scores = (code - mean) @ axes.T
    shares = scores.var(axis=0) / max(float(code.var(axis=0).sum()), 1e-300)
    first, second = (f"component {i + 1} of the code ({share:.0%})" for i, share in enumerate(shares))
    return scores, (first, second)
