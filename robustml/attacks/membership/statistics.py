"""How well scores tell members from others, with intervals that hold for any number of samples.

A sample is called a member if its score is above a threshold. All figures depend on the order of the scores
alone. Scores of members and of non-members are taken as independent draws: the intervals are about other
samples of the same kind and this one model, not about another training run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...estimates import Proportion, proportion
from .signals import Array

__all__ = ["Limits", "RateAt", "advantage", "auc", "rate_at", "roc", "threshold_for"]

_POINTS = 200


@dataclass(frozen=True)
class Limits:
    """A figure and its interval.

    Attributes:
        value, low, high: From 0 to 1.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class RateAt:
    """The share of the members that is found at a false positive rate.

    Attributes:
        fpr: The rate that was aimed at.
        threshold: What a score must exceed; None where the rate cannot be resolved.
        tpr: Members found, with the exact interval; None where that cannot be told.
        achieved: Non-members taken for members, among those that the threshold was not chosen on; None if
            there are none.
        reason: Why there is no `tpr`, None where there is one.
    """

    fpr: float
    threshold: float | None
    tpr: Proportion | None
    achieved: Proportion | None
    reason: str | None


def threshold_for(fpr: float, chosen_on: Array) -> tuple[float | None, str | None]:
    """The threshold that a new non-member exceeds with a probability of at most `fpr`, and why there is none.

    With n scores of non-members, the k-th highest is exceeded by another one with a probability of at most
    k / (n + 1), whatever their distribution; k is the highest whole number that this allows. Ties make the
    rate lower, never higher.

    Args:
        fpr: The false positive rate, between 0 and 1.
        chosen_on: Scores of non-members (n,), none of which is reported on.
    """
    if not 0 < fpr < 1:
        raise InputError(f"fpr={fpr!r} is not between 0 and 1")
    n = len(chosen_on)
    # The slack keeps 0.01 * 100 from being 0.99.
    k = math.floor(fpr * (n + 1) * (1 + 1e-12))
    if k < 1:
        wanted = math.ceil(1 / fpr * (1 - 1e-12)) - 1
        return None, f"not resolvable: {n} non-members to choose the threshold on, and {wanted} are needed"
    return float(np.partition(chosen_on, n - k)[n - k]), None


def rate_at(
    fpr: float, members: Array, chosen_on: Array, reported_on: Array, confidence: float = 0.95
) -> RateAt:
    """The true positive rate at a false positive rate.

    The threshold comes from one part of the non-members, the achieved rate from the other. Members have no
    say in the threshold, so that all of them are reported on.

    Args:
        fpr: What is aimed at.
        members: Scores (m,).
        chosen_on, reported_on: Scores of two disjoint parts of the non-members.
        confidence: Of the exact intervals (Clopper and Pearson 1934).
    """
    threshold, reason = threshold_for(fpr, chosen_on)
    return rate_above(fpr, threshold, reason, members, reported_on, confidence)


def rate_above(
    fpr: float,
    threshold: float | None,
    reason: str | None,
    members: Array,
    others: Array,
    confidence: float = 0.95,
) -> RateAt:
    """The rates at a threshold that is given, or the reason why there is none."""
    if threshold is None:
        return RateAt(fpr, None, None, None, reason)
    found, wrong = (
        proportion(int((s > threshold).sum()), len(s), confidence) if len(s) else None
        for s in (members, others)
    )
    return RateAt(fpr, threshold, found, wrong, None if found else "not resolvable: no members")


def auc(members: Array, others: Array, confidence: float = 0.95) -> Limits | None:
    """The probability that a member scores higher than a non-member, ties counted half; None of nothing.

    The interval is the exact tail bound for a U-statistic of a kernel in [0, 1] (Hoeffding 1963, theorem 1
    and section 5a): k KL(estimate, truth) <= log(2 / (1 - confidence)) with k the smaller number of samples.
    It holds for any number of samples and any distribution, where DeLong's and the bootstrap hold for many;
    it is wider than these, by three quarters for scores with little information.
    """
    if not len(members) or not len(others):
        return None
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left").sum(dtype=np.float64)
    up_to = np.searchsorted(ordered, members, side="right").sum(dtype=np.float64)
    value = float((below + up_to) / 2 / len(members) / len(others))
    reach = math.log(2 / (1 - confidence)) / min(len(members), len(others))
    return Limits(value, 1 - _highest(1 - value, reach), _highest(value, reach))


def _highest(value: float, reach: float) -> float:
    """The highest mean whose divergence from a value is within reach."""
    low, high = value, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _divergence(value, middle) <= reach:
            low = middle
        else:
            high = middle
    return high


def _divergence(p: float, q: float) -> float:
    """Kullback and Leibler's, of Bernoulli distributions."""
    if q >= 1:
        return math.inf if p < 1 else 0.0
    first = p * math.log(p / q) if p > 0 else 0.0
    return first + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)


def advantage(members: Array, others: Array, confidence: float = 0.95) -> Limits | None:
    """The highest TPR - FPR over all thresholds; None of nothing.

    The upper limit is valid over all thresholds without a price for trying them: at the threshold that is
    best in truth, which no sample has a say in, the observed difference is a difference of two means of
    independent values in [0, 1], and the highest observed difference is at least that (Hoeffding 1963,
    equation 2.6). So the truth exceeds value + sqrt(log(1 / risk) (1 / m + 1 / n) / 2) with a probability of
    at most `risk`. The lower limit has to hold for the threshold that came out best, and so uses the bounds
    on both distribution functions everywhere (Massart 1990). Each side has half of the risk.

    The value itself is the highest difference seen, which overstates the advantage.
    """
    if not len(members) or not len(others):
        return None
    fpr, tpr = _steps(members, others)
    value = float(max((tpr - fpr).max(), 0.0))
    risk = (1 - confidence) / 2
    up = math.sqrt(math.log(1 / risk) * (1 / len(members) + 1 / len(others)) / 2)
    down = sum(math.sqrt(math.log(2 / risk) / (2 * n)) for n in (len(members), len(others)))
    return Limits(value, max(value - down, 0.0), min(value + up, 1.0))


def roc(members: Array, others: Array) -> tuple[tuple[float, float], ...]:
    """Points (FPR, TPR) from (0, .) to (1, 1), at most 200 and dense where logarithmic axes show them.

    Both rates rise from point to point; each is a point of the whole curve.
    """
    if not len(members) or not len(others):
        return ()
    fpr, tpr = _steps(members, others)
    if len(fpr) > _POINTS:
        half = _POINTS // 2
        wanted = np.concatenate([np.geomspace(1 / len(others), 1, half), np.linspace(0, 1, half - 1)])
        kept = np.unique([0, *(np.searchsorted(fpr, wanted, side="right") - 1), len(fpr) - 1])
        fpr, tpr = fpr[kept], tpr[kept]
    return tuple(zip(fpr.tolist(), tpr.tolist(), strict=True))


def _steps(members: Array, others: Array) -> tuple[Array, Array]:
    """The corners of the curve: rates above each value that occurs, from the highest, and of everything."""
    levels = np.unique(np.concatenate([members, others]))[::-1]
    rates = [
        np.append(len(s) - np.searchsorted(np.sort(s), levels, side="right"), len(s)) / len(s)
        for s in (others, members)
    ]
    return rates[0], rates[1]
