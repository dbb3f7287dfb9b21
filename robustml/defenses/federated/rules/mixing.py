"""Nearest-neighbor mixing: every update gives way to the mean of those around it, before another rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ....errors import InputError
from .averages import TrimmedMean
from .base import Array, Rule, Tolerant, distances

__all__ = ["NearestNeighborMixing"]


@dataclass(frozen=True)
class NearestNeighborMixing(Tolerant):
    """Every update becomes the mean of those nearest to it (Allouah et al. 2023).

    As many are averaged as there are honest clients, itself among them. It makes updates of honest clients
    with different data look alike, so that the rule after it does not take the unusual for the hostile.

    Attributes:
        hostile: How many of the clients may be hostile.
        then: The rule that is applied to what comes out; by default the trimmed mean for as many.
    """

    name: ClassVar[str] = "nearest-neighbor-mixing"
    unbounded: ClassVar[str] = "a client decides whose neighbors the others are, and enters several mixtures"
    then: Rule = field(default_factory=TrimmedMean)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.then, Rule) or isinstance(self.then, NearestNeighborMixing):
            raise InputError("then has to be another aggregation rule")
        if isinstance(self.then, Tolerant) and self.then.hostile != self.hostile:
            object.__setattr__(self, "then", dataclasses.replace(self.then, hostile=self.hostile))

    def at(self, clients: int) -> NearestNeighborMixing | None:
        then = self.then.at(clients)
        found = super().at(clients)
        if then is None or found is None:
            return None
        most = min(found.hostile, then.hostile if isinstance(then, Tolerant) else found.hostile)
        return dataclasses.replace(self, hostile=most)

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        kept = len(updates) - self.hostile
        order = np.argsort(distances(updates), axis=1, kind="stable")[:, :kept]
        # Summed in a fixed order of values, so that the order of clients does not matter.
        mixed = np.stack([np.sort(updates[near], axis=0).mean(axis=0) for near in order])
        return self.then.combine(mixed, weights, center)
