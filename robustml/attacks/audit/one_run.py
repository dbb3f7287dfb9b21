"""An epsilon from below out of one run, without any assumption on the training (Steinke et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .guessing import AuditedEpsilon, Guesses, audited, check, guesses, refuted_up_to

__all__ = ["one_run", "one_run_epsilon", "one_run_risk"]


def one_run_risk(epsilon: float, *, canaries: int, made: int, right: int, delta: float) -> float:
    """How probable it is at most that so many guesses are right, if training is (epsilon, delta)-DP.

    Steinke, Nasr and Jagielski 2023, Theorem 5.2 with Proposition 5.7.

    Args:
        epsilon, delta: The guarantee.
        canaries: All of them, guessed or not.
        made, right: Guesses.
    """
    from scipy.special import bdtrc, expit

    if right <= 0:
        return 1.0
    chance = float(expit(epsilon))

    def at_least(count: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sure = np.where(count <= 0, 1.0, bdtrc(np.maximum(count, 1) - 1.0, made, chance))
        return np.asarray(sure)

    reached = float(at_least(np.array([right]))[0])
    if delta == 0:
        return reached
    fewer = np.arange(1, right + 1)
    slope = float(((at_least(right - fewer) - reached) / fewer).max())
    return min(reached + 2 * canaries * delta * max(slope, 0.0), 1.0)


def one_run_epsilon(*, canaries: int, made: int, right: int, delta: float, level: float) -> float:
    """The largest epsilon that the guesses refute at a level, 0 for none."""

    def refuted(epsilon: float) -> bool:
        return one_run_risk(epsilon, canaries=canaries, made=made, right=right, delta=delta) < level

    return refuted_up_to(refuted)


def one_run(scores: Any, included: Any, *, delta: float = 1e-5, confidence: float = 0.95) -> AuditedEpsilon:
    """Audit epsilon from below with canaries that one run has or has not seen.

    Args:
        scores: One per canary (m,), higher for one that is thought to be in.
        included: Which canaries fair and independent coins put in, bool (m,).
        delta: Of the guarantee that is audited.
        confidence: The least share of audits whose bound holds, all choices of guesses together.

    Raises:
        InputError: for arguments that do not fit, or coins that cannot have been fair.
    """
    check(delta, confidence)
    tried = guesses(scores, included)
    m = len(np.asarray(scores))

    def bound(guess: Guesses, level: float) -> float:
        return one_run_epsilon(canaries=m, made=guess.made, right=guess.right, delta=delta, level=level)

    return audited(tried, bound, canaries=m, delta=delta, confidence=confidence, method="one run")
