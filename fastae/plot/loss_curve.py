"""Loss per epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .display import Display, check_model, numbers


class LossCurveDisplay(Display):
    """Loss per epoch of training and of the held-out rows.

    losses : (epochs,) mean objective of each epoch, penalties included
    validation_losses : (epochs,) loss of the held-out rows, or None; its lowest point is marked, for its weights are
        the ones that early stopping keeps
    name : shown in the legend, or None

    The scale is logarithmic where all values are positive and span a factor of ten.
    """

    def __init__(self, losses: Any, validation_losses: Any = None, *, name: str | None = None):
        self.losses = numbers("losses", losses)
        self.validation_losses = None
        if validation_losses is not None:
            self.validation_losses = numbers("validation_losses", validation_losses)
        for what, curve in (("losses", self.losses), ("validation_losses", self.validation_losses)):
            if curve is not None and (curve.ndim != 1 or not len(curve)):
                raise ValueError(f"{what} has shape {curve.shape}; wanted (epochs,) with one epoch or more")
        self.name = name

    @classmethod
    def from_estimator(cls, model: Any, *, ax: Any = None, name: str | None = None, **options: Any) -> LossCurveDisplay:
        """Of a fitted model's ``loss_curve_`` and, if dense, ``validation_scores_``; ``ax``, names draw several.

        ax, options : as of `plot`
        Raises ValueError for a model that was not trained here (``from_arrays``).
        """
        if hasattr(model, "_fitted"):  # a sparse one
            model._fitted()
        else:
            check_model(model, cls.__name__)
        if not model.loss_curve_:
            raise ValueError("the model has no loss curve: its weights were given, not trained; call fit")
        scores = getattr(model, "validation_scores_", None)
        return cls(model.loss_curve_, None if scores is None else [-score for score in scores], name=name).plot(
            ax, **options
        )

    def _draw(self, ax: Any, options: dict[str, Any]) -> None:
        label = f"{self.name}, " if self.name else ""
        marker = {"marker": "."} if len(self.losses) < 3 else {}
        epochs = np.arange(1, len(self.losses) + 1)
        (line,) = ax.plot(epochs, self.losses, **({"label": f"{label}training"} | marker | options))
        curves = [self.losses]
        if self.validation_losses is not None:
            epochs = np.arange(1, len(self.validation_losses) + 1)
            style = {"linestyle": "--", "color": line.get_color()}
            ax.plot(epochs, self.validation_losses, label=f"{label}held-out rows", **style, **marker)
            if not np.isnan(self.validation_losses).all():
                best = int(np.nanargmin(self.validation_losses))
                ax.plot(best + 1, self.validation_losses[best], "o", color=line.get_color(), fillstyle="none")
            curves.append(self.validation_losses)
        values = np.concatenate(curves)
        if values.min() > 0 and values.max() > 10 * values.min():
            ax.set_yscale("log")
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        if self.name or self.validation_losses is not None:
            ax.legend()
