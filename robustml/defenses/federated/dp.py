"""Differential privacy for whole clients, on the server: clip, combine, add noise, account.

The order is fixed, since each step leans on the one before:

1. Replies are checked, each by itself: whether one is taken does not depend on the others.
2. Each update is scaled down to the clipping norm. Running statistics and metrics are not published.
3. Updates count alike, whatever number of examples is claimed. There are as many rows as were announced: a
   client that did not answer, or was turned away, is a row of zeros.
4. The robust rule makes one update of them. One client moves it by at most the rule's sensitivity.
5. Normal noise is added, of `noise_multiplier` times the clipping norm times that sensitivity.
6. The ledger gets one entry, and the model moves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import real, whole
from ...errors import InputError, brief
from ..privacy.ledger import Ledger
from ..privacy.randomness import Seeded, System
from .rules import RULES, Rule
from .rules.base import Array, clipped

__all__ = ["ClientPrivacy", "epsilon_of", "noise_for_rounds", "private_rule"]


@dataclass(frozen=True)
class ClientPrivacy:
    """What whole clients are promised: who sees all models learns little about whether one took part.

    Neighbors differ in one client's part, which is missing in one of them. Every client is counted as asked
    in every round, so that nothing is gained from leaving some out at random. Who answers is not hidden, nor
    is what a client tells the server, which has to be trusted.

    Attributes:
        clip: The largest length of an update.
        clients: How many updates a round is made of.
        noise_multiplier: The noise, in units of what one client can do.
        delta: The probability that epsilon does not cover.
        epsilon: The budget; rounds that would overdraw it leave the model as it is. None for no limit.
        seed: None for noise from the operating system. A seed makes a run repeatable, and the promise holds
            only against those who do not know it.
    """

    clip: float
    clients: int
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    epsilon: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        real("clip", self.clip)
        real("noise_multiplier", self.noise_multiplier)
        whole("clients", self.clients, 1)
        real("delta", self.delta)
        if self.delta >= 1:
            raise InputError(f"delta={brief(self.delta)} is not a probability below 1")
        if self.epsilon is not None:
            real("epsilon", self.epsilon)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InputError(f"seed={brief(self.seed)} is not a whole number")

    def released(self, rule: Rule, updates: Array, center: Array, step: int) -> Array:
        """The update of a round, with noise.

        Args:
            rule: One whose sensitivity is known (`private_rule`).
            updates: Float64 (at most `clients`, parameters).
            center: Float64 (parameters,): the update published before.
            step: The number of the round: with a seed, each has its own noise.
        """
        rows = np.zeros((self.clients, updates.shape[1]))
        rows[: len(updates)] = clipped(updates, self.clip)
        sensitivity = rule.sensitivity(self.clients)
        assert sensitivity is not None
        combined = rule.combine(rows, np.ones(self.clients), center)
        scale = self.noise_multiplier * self.clip * sensitivity
        source = System() if self.seed is None else Seeded(self.seed)
        noise = source.normal(step, updates.shape[1]).to(dtype=_float64()).numpy()
        return np.asarray(combined + scale * noise)

    def allows(self, ledger: Ledger) -> bool:
        """Whether the budget lasts for one more round."""
        if self.epsilon is None:
            return True
        after = ledger.after(self.noise_multiplier, 1.0, 1)
        return epsilon_of(after.history, self.delta) <= self.epsilon

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def private_rule(rule: Rule, privacy: ClientPrivacy) -> Rule:
    """The rule as it is used under privacy: with equal weights.

    Raises:
        InputError: for a rule of which no sensitivity is known, or that has too few clients.
    """
    if getattr(rule, "weighted", False):
        rule = dataclasses.replace(rule, weighted=False)  # type: ignore[call-arg]
    fitting = rule.at(privacy.clients)
    if fitting is None or fitting != rule:
        raise InputError(f"clients={privacy.clients} are too few for {rule.name} with {brief(vars(rule))}")
    if rule.sensitivity(privacy.clients) is None:
        known = sorted(n for n, kind in RULES.items() if kind.sensitivity is not Rule.sensitivity)
        raise InputError(
            f"{rule.name} cannot be made private: {rule.unbounded}; take one of {', '.join(known)}"
        )
    return rule


def epsilon_of(history: Sequence[Sequence[float]], delta: float) -> float:
    """The exact epsilon of rounds in which every client counts as taken.

    Without sampling, rounds of normal noise are together one round of less noise, whose delta is known in
    closed form (Dong et al. 2022, corollary 3.3; Balle and Wang 2018, theorem 8). Nothing is approximated
    here: the central limit theorem enters only where clients are sampled.

    Args:
        history: Entries (noise multiplier, 1, rounds).
        delta: Above 0 and below 1.

    Raises:
        InputError: for an entry with a sampling rate other than 1.
    """
    if any(rate != 1 for _, rate, _ in history):
        raise InputError("history has rounds of sampled clients, whose exact epsilon is not known")
    strength = math.sqrt(sum(rounds / noise**2 for noise, _, rounds in history))
    if strength == 0 or _delta(0.0, strength) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(high, strength) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, strength) > delta else (low, middle)
    return high


def noise_for_rounds(epsilon: float, delta: float, rounds: int) -> float:
    """The noise multiplier with which so many rounds spend an epsilon.

    Raises:
        InputError: for numbers that are none of these.
    """
    real("epsilon", epsilon)
    real("delta", delta)
    whole("rounds", rounds, 1)
    low, high = 0.0, 1.0
    while epsilon_of([(high, 1.0, rounds)], delta) > epsilon:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of([(middle, 1.0, rounds)], delta) > epsilon else (low, middle)
    return high


def _delta(epsilon: float, strength: float) -> float:
    from scipy.special import log_ndtr, ndtr

    # The second factor overflows where the logarithm of the product does not.
    tail = math.exp(min(epsilon + float(log_ndtr(-epsilon / strength - strength / 2)), 0.0))
    return float(ndtr(-epsilon / strength + strength / 2)) - tail


def _float64() -> Any:
    import torch

    return torch.float64
