"""Errors of fastae that callers may want to catch."""


class NonFiniteLossError(ArithmeticError):
    """Training met a loss, gradient or weight that is NaN or infinite.

    The estimator keeps its last good weights.
    """


class ModelFileError(ValueError):
    """A model file is damaged, of another kind, or of a newer format."""
