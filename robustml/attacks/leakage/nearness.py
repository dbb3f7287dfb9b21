"""Whether points are nearer to some samples of a class than to others: an exact test by permutations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .asking import Array

__all__ = ["Nearness", "centered", "nearness", "permuted"]


@dataclass(frozen=True, eq=False)
class Nearness:
    """What the distances of some points to members and non-members of their class say.

    Attributes:
        ranks: Mean rank of each sample's distance over the points (samples,); the members come first.
        first: The number of the sample that is nearest to each point.
        members: How many of the samples are members.
    """

    ranks: Array
    first: Array
    members: int

    @property
    def nearer(self) -> float:
        """The chance that a member is nearer than a non-member, ties counted by half."""
        return self.score(np.arange(len(self.ranks)) < self.members)[0]

    @property
    def nearest(self) -> int:
        """How many points have a member nearest to them."""
        return int((self.first < self.members).sum())

    @property
    def chance(self) -> float:
        """The share of points that have a member nearest to them if they know nothing of the members."""
        return self.members / len(self.ranks)

    def score(self, inside: Array) -> tuple[float, int]:
        """Both figures, if these samples (samples,) were the members."""
        others = len(self.ranks) - self.members
        above = self.ranks[~inside].sum() - others * (others + 1) / 2
        return float(above / (others * self.members)), int(inside[self.first].sum())


def nearness(points: Array, members: Array, non_members: Array, *, seed: int = 0) -> Nearness:
    """Compare points (k, d) with samples (n, d) and (m, d)."""
    from scipy.stats import rankdata

    pool = np.concatenate([members, non_members])
    # Not by products, whose cancellation would hide a sample that is met exactly.
    distances = np.stack([np.sqrt(((pool - point) ** 2).sum(1)) for point in points])
    # A tie for the nearest must not go to the members, which come first: it is drawn.
    order = np.random.default_rng(seed).permutation(len(pool))
    first = order[distances[:, order].argmin(1)]
    return Nearness(rankdata(distances, axis=1).mean(0), first, len(members))


def permuted(found: list[Nearness], permutations: int, seed: int) -> tuple[float, int, float]:
    """The pooled figures of several classes, and the p-value of no tie to the members.

    Membership is permuted within each class, which is exact if members and non-members are exchangeable
    there. Two figures are tried, so the smaller p-value is doubled.

    Returns:
        The mean of `nearer`, the sum of `nearest`, and the p-value.
    """
    rng = np.random.default_rng(seed)
    seen = np.array([float(np.mean([near.nearer for near in found])), sum(near.nearest for near in found)])
    as_high = np.ones(2)
    for _ in range(permutations):
        scores = []
        for near in found:
            inside = np.zeros(len(near.ranks), dtype=bool)
            inside[rng.permutation(len(inside))[: near.members]] = True
            scores.append(near.score(inside))
        nearer, nearest = zip(*scores, strict=True)
        # Rounding of sums in another order must not turn a tie into a difference.
        as_high += np.array([np.mean(nearer), sum(nearest)]) >= seen - 1e-9
    p_value = float(min(1.0, 2 * (as_high / (permutations + 1)).min()))
    return float(seen[0]), int(seen[1]), p_value


def centered(points: Array, mean: Array, middle: Array) -> float | None:
    """Mean correlation of points (k, d) with a mean (d,), both seen from a middle; None without direction."""
    towards = mean - middle
    found = []
    for point in points - middle:
        lengths = np.linalg.norm(point) * np.linalg.norm(towards)
        if lengths > 0:
            found.append(float(point @ towards / lengths))
    return float(np.mean(found)) if found else None
