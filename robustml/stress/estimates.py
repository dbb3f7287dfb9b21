"""Proportions with exact confidence intervals, and the difference of two paired ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["PairedDifference", "clopper_pearson", "paired_difference"]


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934) of `count` successes out of `total`."""
    # Not scipy.stats, which takes seconds to import and searches for what this function knows.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """How a proportion changed between two measurements on the same samples.

    Attributes:
        gained, lost: Samples that only the second, and only the first, counts.
        total: Samples in both.
        value: The second proportion minus the first.
        low, high: Adjusted Wald interval of the difference (Bonett and Price 2012, equation 4).
        p_value: McNemar's exact two-sided test of no change.
    """

    gained: int
    lost: int
    total: int
    value: float
    low: float
    high: float
    p_value: float


def paired_difference(gained: int, lost: int, total: int, confidence: float = 0.95) -> PairedDifference:
    """Compare two proportions measured on the same `total` samples."""
    from scipy.special import bdtr, ndtri

    # Under no change each discordant pair falls on either side with probability one half.
    p_value = min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
    up, down = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    spread = float(ndtri((1 + confidence) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (total + 2))
    return PairedDifference(
        gained=gained,
        lost=lost,
        total=total,
        value=(gained - lost) / total,
        low=max(up - down - spread, -1.0),
        high=min(up - down + spread, 1.0),
        p_value=p_value,
    )
