"""Rules that look for a center: the geometric median and centered clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ....checks import real, whole
from .base import Array, Rule, clipped, lengths

__all__ = ["CenteredClipping", "GeometricMedian"]


@dataclass(frozen=True)
class GeometricMedian(Rule):
    """The point with the smallest sum of distances (Pillutla et al. 2022): a minority moves it a bounded way.

    Attributes:
        steps: Of Weiszfeld's algorithm, at most.
        tolerance: It ends when a step is shorter than this share of the typical distance.
        weighted: By the number of examples, which every client states for itself.
    """

    name: ClassVar[str] = "geometric-median"
    unbounded: ClassVar[str] = "how far one update moves it depends on how the others lie"
    steps: int = 300
    tolerance: float = 1e-9
    weighted: bool = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        real("tolerance", self.tolerance)

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del center
        shares = weights / weights.sum() if self.weighted else np.full(len(updates), 1 / len(updates))
        found = np.asarray(np.median(updates, axis=0))
        scale = float(np.median(lengths(updates - found)))
        for _ in range(self.steps):
            step = _weiszfeld(updates, shares, found)
            found = found + step
            if float(lengths(step[None])[0]) <= self.tolerance * scale:
                break
        # Towards a row it creeps: if the nearest one is better, that is where it was going.
        nearest = updates[lengths(updates - found).argmin()]
        costs = [float(shares @ lengths(updates - point)) for point in (found, nearest)]
        return found if costs[0] <= costs[1] else nearest


def _weiszfeld(rows: Array, shares: Array, at: Array) -> Array:
    """A step of Weiszfeld's algorithm, which also leaves points that are rows (Vardi and Zhang 2000)."""
    away = rows - at
    far = lengths(away)
    here = far == 0
    if here.all():
        return np.zeros_like(at)
    inverse = np.where(here, 0.0, shares / np.where(here, 1.0, far))
    pull = inverse @ away
    strength = float(lengths(pull[None])[0])
    # A row holds on to the point with its weight; the point leaves if the others pull harder.
    free = 1.0 if not here.any() else max(0.0, 1 - float(shares[here].sum()) / strength) if strength else 0.0
    return np.asarray(free * pull / inverse.sum())


@dataclass(frozen=True)
class CenteredClipping(Rule):
    """The mean of updates, clipped around the last round's (Karimireddy, He and Jaggi 2021).

    f hostile clients of n move it by 2 f / n of the radius per step at most.

    Attributes:
        radius: How far from the center a client may pull; None for the median distance from it.
        steps: Clipping around the outcome of the step before.
    """

    name: ClassVar[str] = "centered-clipping"
    radius: float | None = None
    steps: int = 3

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.radius is not None:
            real("radius", self.radius)

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        del weights
        for _ in range(self.steps):
            away = updates - center
            radius = float(np.median(lengths(away))) if self.radius is None else self.radius
            center = center + clipped(away, radius).mean(axis=0)
        return center

    def sensitivity(self, clients: int) -> float | None:
        # The center is what was published. v + clip(x - v) moves no farther than x, and no farther than v, so
        # that each step adds one client's share to what the step before has moved.
        return None if self.radius is None else self.steps / clients

    @property
    def unbounded(self) -> str:  # type: ignore[override]
        return "its radius is learned from the updates; give it one" if self.radius is None else ""
