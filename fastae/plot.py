"""Pictures, with matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import Any

import numpy as np


def save_reconstructions(path: Any, originals: np.ndarray, reconstructions: np.ndarray, shape: tuple[int, int]) -> None:
    """Writes a PNG with originals in the upper row and their reconstructions below.

    originals, reconstructions : (n, height · width); shape : (height, width)
    Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(originals)
    figure = Figure(figsize=(n * 0.9, 2.2))
    FigureCanvasAgg(figure)
    for row, (images, label) in enumerate(((originals, "original"), (reconstructions, "reconstruction"))):
        for i, image in enumerate(images):
            axes = figure.add_subplot(2, n, row * n + i + 1)
            axes.imshow(np.asarray(image).reshape(shape), cmap="gray_r", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_ylabel(label, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(str(path), dpi=120)
