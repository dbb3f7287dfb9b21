"""What audits of one run share: who is guessed to be in, which numbers of guesses are tried, what is said.

Each of m canaries is put into the training data by a coin of its own. An attacker ranks them by a score, says
"in" of some at the top, "out" of some at the bottom, and nothing of the rest. How many guesses to make is for
the attacker to choose, and a choice made with the answers in sight is no evidence. So the choices stand in a
short list that was written before, and each is tested at its share of the risk (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, brief

__all__ = ["AuditedEpsilon", "Guesses", "audited", "guesses", "refuted_up_to"]

Array = np.ndarray[Any, Any]

# Shares of the canaries that are guessed: as many "in" as "out", or "in" alone, which suits scores of
# sampled training, where a canary that was never drawn looks like one that was left out. Of lists of three to
# nine choices, compared over thirteen kinds of scores, none did better on the whole; choosing on one half of
# the canaries and testing on the other did worse on most.
_BOTH = (0.1, 0.45)
_TOP = (0.1, 0.25)
# Coins as one-sided as these come up once in a million; what is worth refusing is a design without coins.
_UNFAIR = 1e-6
_DIGITS = 40


@dataclass(frozen=True)
class AuditedEpsilon:
    """What an audit shows: a lower bound of epsilon.

    Attributes:
        epsilon: Training has no (epsilon', delta) guarantee with an epsilon' below this; None where nothing
            can be said, which is no sign of privacy.
        delta: The delta that it goes with.
        confidence: The least share of audits of private training whose bound holds.
        method: How it was found, with what it assumes.
        canaries: Canaries, or runs where each run has one.
        guesses: Guesses that were made; None where nothing was guessed.
        correct: Of these, how many were right.
        cap: The most that so many canaries could have shown, had every guess been right.
        reason: Why epsilon is None; empty otherwise.
    """

    epsilon: float | None
    delta: float
    confidence: float
    method: str
    canaries: int
    guesses: int
    correct: int
    cap: float
    reason: str = ""

    def __str__(self) -> str:
        if self.epsilon is None:
            return self.reason
        return (
            f"epsilon at least {self.epsilon:.2f} at delta {self.delta:g} and {100 * self.confidence:g} % "
            f"confidence ({self.correct} of {self.guesses} guesses right, {self.canaries} canaries; "
            f"{self.method})"
        )


@dataclass(frozen=True)
class Guesses:
    """How one choice of guesses fared: how many were made, and how many were right."""

    made: int
    right: int


def guesses(scores: Any, included: Any) -> tuple[Guesses, ...]:
    """Guess by rank, for each choice of the list.

    Args:
        scores: One per canary (m,), higher for one that is thought to be in.
        included: Which canaries the coins put in, bool (m,).

    Raises:
        InputError: for arguments that do not fit, or coins that cannot have been fair.
    """
    ranked = _ranked(scores, included)
    m = len(ranked)
    choices = [(k, k) for k in _counts(_BOTH, m)] + [(k, 0) for k in _counts(_TOP, m)]
    return tuple(
        Guesses(top + bottom, int(ranked[:top].sum() + bottom - ranked[m - bottom :].sum()))
        for top, bottom in choices
    )


def _counts(shares: tuple[float, ...], m: int) -> list[int]:
    """Distinct numbers of guesses; an odd canary in the middle stays unguessed."""
    return sorted({min(max(round(share * m), 1), m // 2) for share in shares})


def _ranked(scores: Any, included: Any) -> Array:
    """Who is in, from the highest score to the lowest."""
    from scipy.special import bdtr

    given, coins = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if given.ndim != 1 or coins.shape != given.shape or len(given) < 2:
        raise InputError(
            f"scores of shape {given.shape} and included of shape {coins.shape}: "
            "give one of each per canary, for two canaries at least"
        )
    if coins.dtype != np.bool_:
        raise InputError(f"included is of type {coins.dtype}; give True or False per canary")
    if np.isnan(given).any():
        raise InputError("scores hold NaN; a canary without a score cannot be ranked")
    m, count = len(coins), int(coins.sum())
    if 2 * float(bdtr(min(count, m - count), m, 0.5)) < _UNFAIR:
        raise InputError(
            f"{count} of {m} canaries are included, which fair coins do not do: "
            "the audit holds only if each one was included with probability one half, independently"
        )
    # Ties keep the order in which canaries came, which knows nothing of the coins.
    return coins[np.argsort(-given, kind="stable")]


def check(delta: float, confidence: float) -> None:
    """Refuse a delta outside [0, 1) or a confidence outside (0, 1).

    Raises:
        InputError: naming it.
    """
    if not 0 <= delta < 1:
        raise InputError(f"delta={brief(delta)} is outside [0, 1)")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={brief(confidence)} is outside (0, 1)")


def refuted_up_to(refuted: Callable[[float], bool]) -> float:
    """The end of the stretch from 0 in which a claim is refuted, rounded down; 0 if it is empty."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(_DIGITS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def audited(
    tried: tuple[Guesses, ...],
    bound: Callable[[Guesses, float], float],
    *,
    canaries: int,
    delta: float,
    confidence: float,
    method: str,
) -> AuditedEpsilon:
    """The best of several choices of guesses, each tested at its share of the risk.

    Args:
        tried: How each choice fared.
        bound: The epsilon that guesses refute at a level, 0 for none.
        canaries: How many there are.
        delta: As audited.
        confidence: Of the whole.
        method: As shown.
    """
    level = (1 - confidence) / len(tried)
    cap = max(bound(Guesses(most, most), level) for most in {guess.made for guess in tried})
    found = [bound(guess, level) for guess in tried]
    place = int(np.argmax(found))
    best, epsilon = tried[place], found[place]
    reason = ""
    if epsilon <= 0:
        reason = (
            f"not resolvable with {canaries} canaries: {best.right} of {best.made} guesses were right, "
            f"too few to tell from guessing at {100 * confidence:g} % confidence"
        )
    if cap <= 0:
        reason = (
            f"not resolvable with {canaries} canaries: even guesses that are all right would show nothing"
        )
    return AuditedEpsilon(
        epsilon if epsilon > 0 else None,
        delta,
        confidence,
        method,
        canaries,
        best.made,
        best.right,
        cap,
        reason,
    )
