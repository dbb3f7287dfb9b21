"""An epsilon from below out of one run of training that is a Gaussian mechanism (Mahloujifar et al. 2024).

It says more than the audit without assumptions, since it asks how far the guesses are from what a Gaussian
mechanism allows, at every error rate at once. Training that adds Gaussian noise to sampled and clipped
gradients is close to one (Dong, Roth and Su 2022, section 5). Of other training it may say too much.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from .gaussian import gaussian_epsilon
from .guessing import AuditedEpsilon, Guesses, audited, check, guesses, refuted_up_to

__all__ = ["fdp_one_run", "fdp_one_run_mu", "fdp_refuted"]

_NORMAL = NormalDist()


def _missed(reached: float, mu: float) -> float:
    """How much probability is left of a share after the Gaussian trade-off with mu has taken its part."""
    if reached <= 0:
        return 0.0
    if reached >= 1:
        return 1.0
    return _NORMAL.cdf(_NORMAL.inv_cdf(reached) - mu)


def fdp_refuted(mu: float, *, canaries: int, made: int, right: int, level: float) -> bool:
    """Whether guesses refute mu-GDP at a level (Mahloujifar et al. 2024, Algorithm 3).

    Args:
        mu: Of the Gaussian trade-off.
        canaries: All of them, guessed or not.
        made, right: Guesses.
        level: The risk of refuting what is true.
    """
    share = made / canaries
    hit, miss = level * right / canaries, level * (made - right) / canaries
    for i in range(right - 1, -1, -1):
        if hit + miss > share:
            # Neither falls from here on.
            return True
        new = max(miss, _missed(hit, mu))
        if new == miss:
            break
        hit = min(hit + i / (made - i) * (new - miss), 1.0)
        miss = new
    return hit + miss > share


def fdp_one_run_mu(*, canaries: int, made: int, right: int, level: float) -> float:
    """The largest mu of Gaussian privacy that the guesses refute at a level, 0 for none."""

    def refuted(mu: float) -> bool:
        return fdp_refuted(mu, canaries=canaries, made=made, right=right, level=level)

    return refuted_up_to(refuted)


def fdp_one_run(
    scores: Any, included: Any, *, delta: float = 1e-5, confidence: float = 0.95
) -> AuditedEpsilon:
    """Audit epsilon from below with the canaries of one run, if training is a Gaussian mechanism.

    Args:
        scores: One per canary (m,), higher for one that is thought to be in.
        included: Which canaries fair and independent coins put in, bool (m,).
        delta: Of the guarantee that is audited; above 0.
        confidence: The least share of audits whose bound holds, all choices of guesses together.

    Raises:
        InputError: for arguments that do not fit, or coins that cannot have been fair.
    """
    check(delta, confidence)
    gaussian_epsilon(0.0, delta)
    tried = guesses(scores, included)
    m = len(np.asarray(scores))

    def bound(guess: Guesses, level: float) -> float:
        mu = fdp_one_run_mu(canaries=m, made=guess.made, right=guess.right, level=level)
        return gaussian_epsilon(mu, delta)

    method = "one run, assuming a Gaussian trade-off"
    return audited(tried, bound, canaries=m, delta=delta, confidence=confidence, method=method)
