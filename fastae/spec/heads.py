"""Losses of blocks of columns: mixed tabular data, each block with the loss that fits it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from . import options
from .options import LossOption, Option, number


def _columns(value: Any) -> int | range:
    """A number of columns, or which ones."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return number("columns", value, 1, 2**26, integer=True)
    if isinstance(value, slice) and (value.stop is None or value.step not in (None, 1)):
        raise ValueError(f"columns={value!r} must have an end and step 1, such as slice(2, 5)")
    try:
        span = range(value.start or 0, value.stop) if isinstance(value, slice) else value
        items = [number("columns", item, -math.inf, math.inf, integer=True) for item in span]
    except (TypeError, ValueError):
        raise TypeError(f"columns={value!r} must be a number of columns, a slice, or a sequence of integers") from None
    if not items or items[0] < 0 or items != list(range(items[0], items[0] + len(items))):
        raise ValueError(f"columns={value!r} must be consecutive and increasing; bring a head's columns together in X")
    return range(items[0], items[-1] + 1)


@dataclass(frozen=True)
class Head(Option):
    """One block of columns with its loss, for `Heads`.

    columns : number of columns after the previous head's, or a slice, range or sequence of consecutive columns
    loss : name or option
    weight : factor of the head's loss
    """

    columns: Any = 1
    loss: Any = "squared_error"
    weight: float = 1.0
    _intervals = {"weight": (0.0, math.inf, "left")}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "columns", _columns(self.columns))
        object.__setattr__(self, "loss", options.choose("loss", self.loss, options.ALL_LOSSES))


@dataclass(frozen=True, init=False, repr=False)
class Heads(LossOption):
    """A loss for each block of columns: numbers, binary and categorical features in one table.

    ``fastae.Heads((5, "squared_error"), (3, "binary_cross_entropy"), (4, "categorical_cross_entropy", 0.5))``: each
    head is (columns, loss) or (columns, loss, weight), or a `fastae.Head`; together they must cover every column of X
    once. The loss of a row is the weighted sum of the heads' losses; with ``reduction="mean"`` each head is the mean
    over its own columns, so that a head of one column counts as much as one of many. ``model.head_losses(X)`` gives
    each head's loss.

    items : the heads, or one list of them; heads : the same as a keyword
    """

    heads: tuple[Head, ...]
    name = "heads"
    _row = None
    output = "distribution"
    target_range = (-math.inf, math.inf)

    def __init__(self, *items: Any, heads: Any = ()):
        given = items[0] if len(items) == 1 and isinstance(items[0], list) else (items or heads)
        made = []
        for item in given:
            if not isinstance(item, Head):
                if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
                    raise TypeError(f"head {item!r} must be (columns, loss) or (columns, loss, weight)")
                item = Head(*item)
            made.append(item)
        if not made:
            raise ValueError("Heads needs at least one head, such as (5, 'squared_error')")
        object.__setattr__(self, "heads", tuple(made))

    def __repr__(self) -> str:
        return f"Heads({', '.join(map(repr, self.heads))})"


@dataclass(frozen=True)
class Block:
    """Columns [first, first + count) of the target with their loss, and where its outputs begin in the last layer's."""

    loss: LossOption
    first: int
    count: int
    output: int = 0
    weight: float = 1.0

    @property
    def stop(self) -> int:
        return self.first + self.count

    @property
    def n_outputs(self) -> int:
        return self.count * self.loss.n_outputs


def blocks(loss: LossOption, n_targets: int) -> tuple[Block, ...]:
    """The blocks of a loss over targets of a width, one for a loss of all columns. Raises unless they cover it."""
    if not isinstance(loss, Heads):
        return (Block(loss, 0, n_targets),)
    made, end, output = [], 0, 0
    for i, head in enumerate(loss.heads):
        span = range(end, end + head.columns) if isinstance(head.columns, int) else head.columns
        if span.stop > n_targets:
            raise ValueError(
                f"head {i} has columns {span.start}..{span.stop - 1}, X has {n_targets} columns; the heads must cover "
                "each column once"
            )
        made.append(Block(head.loss, span.start, len(span), output, float(head.weight)))
        end, output = span.stop, output + made[-1].n_outputs
    owners: list[int | None] = [None] * n_targets
    for i, block in enumerate(made):
        for column in range(block.first, block.stop):
            if owners[column] is not None:
                raise ValueError(f"column {column} is in head {owners[column]} and in head {i}; give it to one of them")
            owners[column] = i
    if None in owners:
        raise ValueError(
            f"column {owners.index(None)} of X is in no head; the heads cover {n_targets - owners.count(None)} of "
            f"{n_targets} columns"
        )
    return tuple(made)


def output_width(loss: LossOption, n_targets: int) -> int:
    """Outputs of a network with this loss."""
    return sum(block.n_outputs for block in blocks(loss, n_targets))


def choose_loss(value: Any) -> LossOption:
    """A loss option from an option, its name, or `Heads`."""
    return value if isinstance(value, Heads) else options.choose("loss", value, options.ALL_LOSSES)
