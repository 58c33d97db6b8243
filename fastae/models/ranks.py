"""What a fit does where several ranks train one model (`fastae.distributed`); nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def together(backend: Any) -> Iterator[None]:
    """A fit, which ranks that train one model end together, also where one of them fails."""
    if not hasattr(backend, "failed"):
        yield
        return
    try:
        yield
        backend.ended()
    except BaseException as error:
        backend.failed(error)
        raise


def over_ranks(backend: Any, mean: float, total: float) -> float:
    """A mean over rows (or weights) that are ``total``; over those of all ranks where several train one model."""
    shared = getattr(backend, "mean", None)
    return mean if shared is None else shared(mean, total)
