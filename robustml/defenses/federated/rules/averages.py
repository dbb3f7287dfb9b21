"""Averages: the mean, the coordinate-wise median and trimmed mean, and the mean of bounded updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ....checks import real
from .base import Array, Rule, Tolerant, clipped, lengths

__all__ = ["Mean", "Median", "NormBounding", "TrimmedMean"]


@dataclass(frozen=True)
class Mean(Rule):
    """The mean (McMahan et al. 2017, algorithm 1): best where all are honest, and no defense.

    Attributes:
        weighted: By the number of examples, which every client states for itself.
    """

    name: ClassVar[str] = "mean"
    weighted: bool = True

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del center
        return _mean(updates, weights if self.weighted else None)

    def sensitivity(self, clients: int) -> float | None:
        return 1 / clients


@dataclass(frozen=True)
class Median(Rule):
    """The coordinate-wise median (Yin et al. 2018, definition 1): a minority stays in the honest range."""

    name: ClassVar[str] = "median"

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights, center
        return np.asarray(np.median(updates, axis=0))

    def sensitivity(self, clients: int) -> float | None:
        # A trimmed mean that keeps the one or two values in the middle.
        return 1.0 if clients % 2 else 0.5


@dataclass(frozen=True)
class TrimmedMean(Tolerant):
    """The mean without the extreme values of each coordinate (Yin et al. 2018, definition 2).

    Attributes:
        hostile: How many values are left out at each end.
    """

    name: ClassVar[str] = "trimmed-mean"

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights, center
        n, cut = len(updates), self.hostile
        kept = np.sort(updates, axis=0)[cut : n - cut]
        return np.asarray(kept.mean(axis=0))

    def sensitivity(self, clients: int) -> float | None:
        # Changing one number of a column by a moves its sorted values by a in total at most; the sum of those
        # kept moves by no more, and so by row: |a_1, ..., a_d| / kept.
        kept = clients - 2 * self.hostile
        return 1 / kept if kept > 0 else None


@dataclass(frozen=True)
class NormBounding(Rule):
    """The mean of updates scaled down to a length (Sun et al. 2019).

    f hostile clients of n move it by 2 f / n of the length at most.

    Attributes:
        bound: The length; None for the median length of the round's updates.
        weighted: By the number of examples, which every client states for itself.
    """

    name: ClassVar[str] = "norm-bounding"
    bound: float | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        if self.bound is not None:
            real("bound", self.bound)

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del center
        bound = float(np.median(lengths(updates))) if self.bound is None else self.bound
        return _mean(clipped(updates, bound), weights if self.weighted else None)

    def sensitivity(self, clients: int) -> float | None:
        # Scaling down is a projection onto a ball that holds 0: no two points come out farther apart. A bound
        # that is learned from the updates themselves moves with each of them.
        return None if self.bound is None else 1 / clients

    @property
    def unbounded(self) -> str:  # type: ignore[override]
        return "its bound is learned from the updates; give it one" if self.bound is None else ""


def _mean(updates: Array, weights: Array | None) -> Array:
    if weights is None:
        return np.asarray(updates.mean(axis=0))
    return np.asarray((weights / weights.sum()) @ updates)
