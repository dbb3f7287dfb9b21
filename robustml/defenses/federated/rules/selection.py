"""Rules that select updates by their distances from each other: Krum, Multi-Krum and Bulyan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ....checks import whole
from .base import Array, Tolerant, distances

__all__ = ["Bulyan", "Krum", "MultiKrum"]

_WHY = "a client decides which updates are selected, and so moves the outcome as far as clipping allows"


@dataclass(frozen=True)
class Krum(Tolerant):
    """The update that is nearest to its neighbors (Blanchard et al. 2017, section 4).

    Attributes:
        hostile: How many of the clients may be hostile; (clients - 3) / 2 at most.
    """

    name: ClassVar[str] = "krum"
    unbounded: ClassVar[str] = _WHY

    @staticmethod
    def bearable(clients: int) -> int:
        return (clients - 3) // 2

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights, center
        return np.asarray(updates[_ranked(updates, distances(updates), self.hostile)[0]])


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the updates that are nearest to their neighbors (Blanchard et al. 2017).

    Attributes:
        hostile: How many of the clients may be hostile; (clients - 3) / 2 at most.
        select: How many updates are kept; all but `hostile` + 2 if None.
    """

    name: ClassVar[str] = "multi-krum"
    select: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select is not None:
            whole("select", self.select, 1)

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights, center
        # More than the honest ones would be sure to hold hostile ones.
        most = len(updates) - self.hostile
        count = max(1, most - 2) if self.select is None else min(self.select, most)
        order = _ranked(updates, distances(updates), self.hostile)
        return np.asarray(updates[order[:count]].mean(axis=0))


@dataclass(frozen=True)
class Bulyan(Tolerant):
    """Krum again and again, then a trimmed mean around the median (El Mhamdi, Guerraoui and Rouault 2018).

    Attributes:
        hostile: How many of the clients may be hostile; (clients - 3) / 4 at most.
    """

    name: ClassVar[str] = "bulyan"
    unbounded: ClassVar[str] = _WHY

    @staticmethod
    def bearable(clients: int) -> int:
        return (clients - 3) // 4

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights, center
        apart, left, chosen = distances(updates), np.arange(len(updates)), []
        for _ in range(len(updates) - 2 * self.hostile):
            best = _ranked(updates[left], apart[np.ix_(left, left)], self.hostile)[0]
            chosen.append(left[best])
            left = np.delete(left, best)
        kept = np.sort(updates[chosen], axis=0)
        return _around_median(kept, len(kept) - 2 * self.hostile)


def _around_median(kept: Array, count: int) -> Array:
    """The mean of the `count` values of each column that are nearest to its median; columns ascend."""
    middle = np.median(kept, axis=0)
    # Of sorted values those nearest to a point lie side by side: the best window is the one whose farther
    # end is nearest.
    starts = range(len(kept) - count + 1)
    reach = np.stack([np.maximum(middle - kept[s], kept[s + count - 1] - middle) for s in starts])
    first = reach.argmin(axis=0)
    return np.asarray(np.take_along_axis(kept, first + np.arange(count)[:, None], axis=0).mean(axis=0))


def _ranked(updates: Array, apart: Array, hostile: int) -> Array:
    """Rows by the sum of squared distances from their nearest neighbors, the best first: int64 (n,).

    Two rows that are each other's nearest may tie. The one with the smaller first number goes first then,
    whatever order they came in.
    """
    n = len(updates)
    near = min(max(1, n - hostile - 2), n - 1)
    # Sorted before they are summed, so that the sum does not depend on the order of clients either. The first
    # is the row's own.
    scores = np.sort(apart, axis=1)[:, 1 : near + 1].sum(axis=1)
    order = np.argsort(scores, kind="stable")
    if len(np.unique(scores)) < n:
        order = np.array(sorted(order, key=lambda i: (scores[i], updates[i].tolist())), dtype=np.int64)
    return order
