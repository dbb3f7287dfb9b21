"""Proportions and means with intervals that hold for any number of samples, and paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "PairedDifference",
    "Proportion",
    "clopper_pearson",
    "mean_interval",
    "paired_difference",
    "proportion",
]


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934) of `count` successes out of `total`."""
    # Not scipy.stats, which takes seconds to import and searches for what this function knows.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class Proportion:
    """`count` out of `total`, with the exact interval of what it is a sample of; no value of nothing.

    Attributes:
        value, low, high: From 0 to 1; NaN, 0 and 1 where `total` is 0.
    """

    count: int
    total: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.total:
            return "none of none"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def proportion(count: int, total: int, confidence: float = 0.95) -> Proportion:
    """A proportion with its exact binomial interval."""
    if not total:
        return Proportion(0, 0, math.nan, 0.0, 1.0)
    return Proportion(count, total, count / total, *clopper_pearson(count, total, confidence))


# Standard deviations that a bet may count on, and below them a bet of everything.
_SPREADS = 0.5 * 2.0 ** (-np.arange(8) / 2)
_DIGITS = 6
_NEGLIGIBLE = 1e-12


def mean_interval(values: np.ndarray[Any, Any], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the mean of a distribution on [0, 1], from independent draws of it.

    Each end is what betting against it leaves standing (Waudby-Smith and Ramdas 2024, section 4): if the mean
    is at most m, the product of 1 + b (x - m) over the draws has an expectation of at most 1 for every stake
    b from 0 to 1 / m, and so has the mean of such products over stakes that are fixed beforehand. It exceeds
    2 / (1 - confidence) with at most half of the risk (Markov). Nothing is assumed about the distribution,
    the number of draws or their order; a distribution that varies little has a narrow interval.

    Args:
        values: Independent draws (n,) in [0, 1].
        confidence: How often such intervals hold the true mean, at least.

    Returns:
        The interval, rounded outward to six digits.
    """
    low = _least_mean(np.asarray(values, dtype=np.float64), confidence)
    high = 1 - _least_mean(1 - np.asarray(values, dtype=np.float64), confidence)
    scale = 10.0**_DIGITS
    return math.floor(low * scale) / scale, math.ceil(high * scale) / scale


def _least_mean(x: np.ndarray[Any, Any], confidence: float) -> float:
    """The smallest mean that the bets do not refute."""
    risk = (1 - confidence) / 2
    hoped = math.sqrt(2 * math.log(1 / risk) / len(x)) / _SPREADS

    def refuted(m: float) -> bool:
        stakes = np.minimum(np.append(hoped, np.inf), 1 / m)
        # A stake of everything on a draw of 0 loses it all, which is what log 0 says.
        with np.errstate(divide="ignore"):
            wealth = np.log(np.maximum(1 + stakes[:, None] * (x - m), 0)).sum(1)
        most = wealth.max()
        return bool(most + np.log(np.exp(wealth - most).mean()) >= -math.log(risk))

    low, high = 0.0, float(x.mean())
    # The wealth falls as m grows, so that bisection finds where it stops refuting.
    for _ in range(40):
        middle = (low + high) / 2
        # Below this nothing is left of a mean that is rounded down, and stakes would overflow.
        if middle > _NEGLIGIBLE and refuted(middle):
            low = middle
        else:
            high = middle
    return low


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
