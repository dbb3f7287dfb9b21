"""An epsilon from below out of many runs, half of which have seen one canary (Jagielski et al. 2020).

Runs are independent, so that the error rates of an attack have exact intervals, and differential privacy
bounds what they can be (Kairouz et al. 2015). It takes thousands of runs to show much: n runs with the canary
and n without show ln(n / 3.7) at most, at 95 % confidence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import InputError, brief
from ...estimates import clopper_pearson
from .gaussian import gaussian_epsilon
from .guessing import AuditedEpsilon, check

__all__ = ["many_runs", "many_runs_rates"]

Array = np.ndarray[Any, Any]

_FEWEST = 4


def many_runs_rates(
    hits: int,
    inside: int,
    false_alarms: int,
    outside: int,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    gaussian: bool = False,
) -> AuditedEpsilon:
    """Audit epsilon from below by how often an attack is right, its threshold having been fixed beforehand.

    Exact intervals of both rates hold together at the confidence asked for. Without an assumption, epsilon is
    what Kairouz et al. 2015 (Theorem 2.1) leave possible. `gaussian` asks how far apart two normal
    distributions with these rates are (Nasr et al. 2023, section 4): more, if training is a Gaussian
    mechanism, and possibly too much if not.

    Args:
        hits, inside: Runs that had the canary: said to have had it, and all of them.
        false_alarms, outside: Runs that had not: said to have had it, and all of them.
        delta: Of the guarantee that is audited; above 0 if `gaussian`.
        confidence: The least share of audits whose bound holds.
        gaussian: Whether to assume a Gaussian trade-off.

    Raises:
        InputError: for counts that cannot be.
    """
    check(delta, confidence)
    for name, part, whole in (("hits", hits, inside), ("false_alarms", false_alarms, outside)):
        if not 0 <= part <= whole or whole < 1:
            raise InputError(f"{name}={brief(part)} of {brief(whole)} runs cannot be")

    def bound(right: int, wrong: int) -> float:
        return _bound(right, inside, wrong, outside, delta, confidence, gaussian=gaussian)

    epsilon, cap = bound(hits, false_alarms), bound(inside, 0)
    correct, runs = hits + outside - false_alarms, inside + outside
    reason = ""
    if epsilon <= 0:
        reason = (
            f"not resolvable with {runs} runs: {correct} of {runs} guesses were right, "
            f"too few to tell from guessing at {100 * confidence:g} % confidence"
        )
    method = "many runs, assuming a Gaussian trade-off" if gaussian else "many runs"
    return AuditedEpsilon(
        epsilon if epsilon > 0 else None, delta, confidence, method, runs, runs, correct, cap, reason
    )


def _bound(
    hits: int,
    inside: int,
    false_alarms: int,
    outside: int,
    delta: float,
    confidence: float,
    *,
    gaussian: bool,
) -> float:
    from scipy.special import ndtri

    # Of each two-sided interval one end is used, which is wrong with half of the risk: both together hold.
    caught = clopper_pearson(hits, inside, confidence)[0]
    alarmed = clopper_pearson(false_alarms, outside, confidence)[1]
    missed, spared = 1 - caught, 1 - alarmed
    if gaussian:
        if not caught > 0 or not alarmed < 1:
            gaussian_epsilon(0.0, delta)
            return 0.0
        return gaussian_epsilon(max(float(ndtri(caught) - ndtri(alarmed)), 0.0), delta)
    bounds = [
        math.log((known - delta) / wrong)
        for known, wrong in ((caught, alarmed), (spared, missed))
        if known > delta
    ]
    return max(bounds, default=0.0)


def many_runs(
    scores: Any,
    included: Any,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    gaussian: bool = False,
) -> AuditedEpsilon:
    """Audit epsilon from below by the scores of one canary in many runs.

    The threshold that would show most is found on every other run, and the rest are judged by it.

    Args:
        scores: One per run (n,), higher where the canary is thought to have been in. Runs are independent.
        included: Whether the run had the canary, bool (n,).
        delta, confidence, gaussian: As for `many_runs_rates`.

    Raises:
        InputError: for arguments that do not fit, or fewer than four runs of each kind.
    """
    given, coins = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if given.ndim != 1 or coins.shape != given.shape or coins.dtype != np.bool_:
        raise InputError(
            f"scores of shape {given.shape} and included of shape {coins.shape} and type {coins.dtype}: "
            "give one score and True or False per run"
        )
    if np.isnan(given).any():
        raise InputError("scores hold NaN; a run without a score cannot be ranked")
    inside, outside = given[coins], given[~coins]
    if min(len(inside), len(outside)) < _FEWEST:
        raise InputError(
            f"{len(inside)} runs had the canary and {len(outside)} had not; give {_FEWEST} of each at least"
        )

    def judged(threshold: float, place: int) -> AuditedEpsilon:
        with_it, without = inside[place::2], outside[place::2]
        return many_runs_rates(
            int((with_it >= threshold).sum()),
            len(with_it),
            int((without >= threshold).sum()),
            len(without),
            delta=delta,
            confidence=confidence,
            gaussian=gaussian,
        )

    return judged(_threshold(inside[::2], outside[::2], delta, confidence, gaussian=gaussian), 1)


def _threshold(inside: Array, outside: Array, delta: float, confidence: float, *, gaussian: bool) -> float:
    """The threshold that shows most on these runs; of equals, the middle one."""
    places = np.unique(np.concatenate([inside, outside]))
    found = np.array(
        [
            _bound(
                int((inside >= place).sum()),
                len(inside),
                int((outside >= place).sum()),
                len(outside),
                delta,
                confidence,
                gaussian=gaussian,
            )
            for place in places
        ]
    )
    best = np.flatnonzero(found == found.max())
    return float(places[best[len(best) // 2]])
