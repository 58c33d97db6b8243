"""Dense models on rows that come in blocks: what is looked at, and what needs all rows at once and is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import training
from ..plan.plan import Source
from ..spec import options
from ..spec.network import Network
from ..stream import Rows
from ..validation import check_mark, check_target, check_transform, has_observed, nothing_observed
from .feed import Feed, changes_within_epochs, check_repeatable, check_timing, rows_of, source_of

SAMPLE_ROWS = 4096  # of the first block, for what begins with a look at data


class Blocks:
    """The rows of a `Feed` for `fastae.training`, each block checked as an array would be."""

    def __init__(self, feed: Feed, network: Network, dtype: np.dtype, epoch: int, fit: bool):
        """epoch : number of the first epoch to come; fit : whether an entry must be observed in an epoch"""
        self.feed, self.network, self.dtype = feed, network, dtype
        self.observed = not fit
        self.n_rows = feed.x.n_rows
        (source,), n_rows, _ = feed.first(epoch)
        self._check(source)
        rows = rows_of(source)[: min(n_rows, SAMPLE_ROWS)]
        self.sample = source_of(rows.copy())  # first rows of the epoch; whoever made them may use the memory again

    def _check(self, source: Source) -> None:
        check_target(source, self.network)
        check_transform(source, self.network)
        check_mark(source, self.dtype, self.network.missing)

    def blocks(self, epoch: int) -> Iterator[training.Block]:
        for block in self.feed.blocks(epoch, 0):
            self._check(block.sources[0])
            self.observed = self.observed or has_observed(block.sources[0], self.network.missing)
            yield block
        if not self.observed:
            raise nothing_observed(self.network.missing)


def check_blocks_suffice(
    rows: Rows, network: Network, settings: training.Settings, passes: int, **needed: tuple[bool, str]
) -> None:
    """Raises for what needs all rows at once, or to know their number where it is not known.

    needed : name → (whether it is wanted, what to do instead)
    """
    needed |= {
        f"solver={network.solver.name!r}": (options.is_full_batch(network.solver), "use solver='adam'"),
        "the Laplacian penalty": (network.penalty(options.Laplacian) is not None, "leave it out"),
    }
    for name, (wanted, remedy) in needed.items():
        if wanted:
            raise ValueError(
                f"{name} needs all rows at once, but X comes in blocks; {remedy}, or give X as an array in memory"
            )
    check_timing(rows, {f"learning_rate={settings.schedule!r}": changes_within_epochs(settings.schedule)})
    check_repeatable(rows, passes)
