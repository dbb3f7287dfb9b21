"""The ledger of a privacy budget: what was spent, what a run will spend, and what it may."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, brief
from ...extras import need

__all__ = ["Ledger", "Spent", "noise_for"]

_PRECISION = 1e-3  # of the noise multiplier that a target needs, relative
_MOST_NOISE, _LEAST_NOISE = 1e4, 1e-3
_ACCOUNTANTS = ("prv", "rdp")


@dataclass(frozen=True)
class Spent:
    """A privacy budget that was spent.

    Attributes:
        epsilon: An upper bound; infinite where a step was made without noise.
        delta: The probability that the bound does not cover.
        accountant: What computed it: "prv" (Gopi et al. 2021), or "rdp" (Mironov et al. 2019) where that
            fails; "none" for a ledger without steps or without noise.
    """

    epsilon: float
    delta: float
    accountant: str


class Ledger:
    """The steps of a subsampled Gaussian mechanism on one set of data, over runs, rounds and restarts.

    Args:
        history: Entries (noise multiplier, sampling rate, steps), in order.

    Raises:
        InputError: for something else.
    """

    def __init__(self, history: Sequence[Sequence[float]] = ()) -> None:
        self.history: list[tuple[float, float, int]] = []
        for entry in history:
            if len(entry) != 3:
                raise InputError(f"history holds {brief(entry)}; (noise multiplier, rate, steps) is wanted")
            self.step(float(entry[0]), float(entry[1]), int(entry[2]))

    def step(self, noise_multiplier: float, rate: float, steps: int = 1) -> None:
        """Enter steps that were made.

        Args:
            noise_multiplier: Standard deviation of the noise, in units of the clipping norm.
            rate: The probability with which each sample was taken, from 0 to 1.
            steps: How many.

        Raises:
            InputError: for a negative number, or a rate above 1.
        """
        if not (noise_multiplier >= 0 and 0 <= rate <= 1 and steps >= 0):
            raise InputError(
                f"a step with noise multiplier {noise_multiplier} at rate {rate} ({steps} times) is none"
            )
        if not steps:
            return
        if self.history and self.history[-1][:2] == (noise_multiplier, rate):
            steps += self.history.pop()[2]
        self.history.append((noise_multiplier, rate, steps))

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return sum(entry[2] for entry in self.history)

    def after(self, noise_multiplier: float, rate: float, steps: int) -> Ledger:
        """What it will be after further steps."""
        later = Ledger(self.history)
        later.step(noise_multiplier, rate, steps)
        return later

    def spent(self, delta: float, accountants: Sequence[str] = _ACCOUNTANTS) -> Spent:
        """The budget that was spent, as an upper bound.

        The PRV accountant's upper end is taken, and where it fails that of Renyi differential privacy, which
        is looser. The approximation by Gaussian differential privacy is not a bound, and is never taken.

        Args:
            delta: The probability that the bound need not cover.
            accountants: In order: the first that has an answer gives it.

        Raises:
            InputError: if opacus is not installed.
        """
        history = [entry for entry in self.history if entry[1] > 0]
        if not history:
            return Spent(0.0, delta, "none")
        if any(noise == 0 for noise, _, _ in history):
            return Spent(math.inf, delta, "none")
        for name in accountants:
            epsilon = _epsilon(name, tuple(history), delta)
            if epsilon is not None:
                return Spent(epsilon, delta, name)
        return Spent(math.inf, delta, "none")

    def room(self, noise_multiplier: float, rate: float, delta: float, epsilon: float, most: int) -> int:
        """How many further steps, of at most so many, keep it within an epsilon."""
        return _largest(
            lambda steps: self.after(noise_multiplier, rate, steps).spent(delta).epsilon <= epsilon, most
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"history": [list(entry) for entry in self.history]}

    @classmethod
    def from_dict(cls, data: Any) -> Ledger:
        """Read what `to_dict` gave.

        Raises:
            InputError: for something else.
        """
        try:
            return cls([(float(a), float(b), int(c)) for a, b, c in data["history"]])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"ledger={brief(data)} is not what a ledger writes") from None


# It takes a second or so, and the same run is asked about by its guarantee, its audit and its report.
@functools.lru_cache(maxsize=256)
def _epsilon(name: str, history: tuple[tuple[float, float, int], ...], delta: float) -> float | None:
    """The upper bound of one accountant, None where it has none."""
    accountants = need("opacus.accountants", extra="privacy", why="the privacy accountant")
    made = {"prv": accountants.PRVAccountant, "rdp": accountants.RDPAccountant}[name]()
    made.history = list(history)
    try:
        with warnings.catch_warnings():
            # Renyi orders at the end of their range still give a bound, and overflow shows in the result.
            warnings.simplefilter("ignore")
            found = float(made.get_epsilon(delta))
    except (ValueError, RuntimeError, OverflowError, MemoryError, ZeroDivisionError, IndexError):
        return None
    return max(found, 0.0) if math.isfinite(found) else None


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` for which something holds that ends once and for all."""
    if holds(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def noise_for(ledger: Ledger, *, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier with which a ledger ends within an epsilon, to a thousandth.

    Raises:
        InputError: if no noise is enough, as when the ledger has spent the budget already.
    """

    def over(noise: float, accountants: tuple[str, ...] = _ACCOUNTANTS) -> float:
        return ledger.after(noise, rate, steps).spent(delta, accountants).epsilon - epsilon

    # The looser accountant is fast, and says where the other one need not look.
    high = 1.0
    while over(high, ("rdp",)) > 0:
        high *= 2
        if high > _MOST_NOISE:
            break
    if over(high) > 0:
        already = ledger.spent(delta).epsilon
        raise InputError(
            f"epsilon={epsilon:g} cannot be reached with {steps} steps at a sampling rate of {rate:.3g}"
            + (f": {already:.3g} is spent already" if already else "")
        )
    low = high / 2
    while low > _LEAST_NOISE and over(low) <= 0:
        high, low = low, low / 2
    return _root(over, low, high)


def _root(over: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0, to a thousandth and on its lower side.

    Between its ends it is nearly a straight line in logarithms, which bisection would make nothing of.
    """
    above, below = over(low), over(high)
    while high - low > _PRECISION * high:
        share = above / (above - below) if math.isfinite(above) else 0.5
        # Never so close to an end that the other one stays for ever.
        middle = low * (high / low) ** min(max(share, 0.1), 0.9)
        found = over(middle)
        if found > 0:
            low, above = middle, found
        else:
            high, below = middle, found
    return high
