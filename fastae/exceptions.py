"""Errors and warnings of fastae that callers may want to catch or filter."""


class NonFiniteLossError(ArithmeticError):
    """Training met a loss, gradient or weight that is NaN or infinite.

    The estimator keeps its last good weights.
    """


class ModelFileError(ValueError):
    """A model file is damaged, of another kind, or of a newer format."""


class ModelWarning(UserWarning):
    """A model was fitted, but something about it is certain to cost accuracy; base of the four below.

    Silence one kind or all of them with ``warnings.filterwarnings("ignore", category=...)``.
    """


class OutputRangeWarning(ModelWarning):
    """The output activation cannot reach the values that the data have."""


class DeadUnitsWarning(ModelWarning):
    """Most units of a layer give the same output for every row."""


class SaturationWarning(ModelWarning):
    """Nearly all outputs of a sigmoid or tanh layer lie at the ends of its range, where gradients vanish."""


class WorseThanPCAWarning(ModelWarning):
    """The model reconstructs worse than PCA with a code of the same size."""
