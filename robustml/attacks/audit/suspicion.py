"""The tests behind the conformance check: each with its p-value and the power that it had.

Cells are in units of the clipping norm. Under the claims everything about them is known, so that each
statistic has a known mean and variance. The list of tests is fixed, whatever is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mixture import Moments, drawn, moments, pulls

__all__ = ["Suspicion", "suspicions"]

Array = np.ndarray[Any, Any]

_TESTS = 8
_ENOUGH = 0.95
_DRAWS = 50  # from here on sums of draws are as good as normal
_ROWS = 1000
_CERTAIN = 1 - 1e-12


@dataclass(frozen=True)
class Suspicion:
    """One test: what `Check` says of it, before the number of tests is accounted for."""

    name: str
    p_value: float
    fault: str
    power: float
    reason: str


@dataclass(frozen=True)
class _Setting:
    """What power depends on."""

    steps: int
    inside: int
    outside: int
    noise: float
    rate: float
    samples: int | None
    level: float
    moments: Moments

    @property
    def sharpness(self) -> float:
        return self.moments.sharpness(self.rate)

    @property
    def window(self) -> int:
        """Steps of what would be an epoch."""
        return max(2, min(round(1 / self.rate), self.steps))

    @property
    def critical(self) -> float:
        """How far from 0 a standard normal number has to be."""
        from scipy.special import ndtri

        return float(ndtri(1 - self.level / _TESTS / 2))


def suspicions(
    inside: Array, outside: Array, *, noise: float, rate: float, samples: int | None, level: float
) -> tuple[Suspicion, ...]:
    """All tests.

    Args:
        inside: Cells of canaries in the data (steps, canaries), in units of the clipping norm.
        outside: Cells of the others.
        noise, rate: The noise multiplier and the sampling rate that are claimed.
        samples: How many samples the sampler chooses from, None if not known.
        level: The risk of a false alarm for all tests together.
    """
    setting = _Setting(
        len(inside),
        inside.shape[1],
        outside.shape[1],
        noise,
        rate,
        samples,
        level,
        moments(rate, noise),
    )
    chance = drawn(inside, rate, 1.0, noise)
    return (
        *_noise(outside, setting),
        *_contribution(inside, chance, setting),
        *_draws(chance, setting),
    )


def _two_sided(z: float) -> float:
    from scipy.special import ndtr

    return min(1.0, 2 * float(ndtr(-abs(z))))


def _noise(outside: Array, setting: _Setting) -> tuple[Suspicion, ...]:
    from scipy.special import chdtr, chdtrc, chdtri

    cells = outside.size
    square = float((outside**2).sum()) / setting.noise**2
    p = 2 * min(float(chdtr(cells, square)), float(chdtrc(cells, square)))
    # Noise that is halved has a quarter of the variance.
    least = float(chdtri(cells, 1 - setting.level / _TESTS / 2))
    power = float(chdtr(cells, 4 * least))
    few = f"{cells} cells of noise"
    return (
        _suspicion("noise", min(p, 1.0), "noise of another strength, halved or missing", power, few),
        _repeated("noise over steps", outside, "noise that is used again at a later step"),
        _repeated("noise over weights", outside.T, "noise that several weights share"),
    )


def _suspicion(name: str, p: float, fault: str, power: float, few: str) -> Suspicion:
    reason = (
        ""
        if power >= _ENOUGH
        else f"not resolvable with {few}: {fault} would be found in {power:.0%} of runs"
    )
    return Suspicion(name, p, fault, power, reason)


def _repeated(name: str, rows: Array, fault: str) -> Suspicion:
    """The largest correlation of two rows; that of independent noise has a known distribution."""
    from scipy.special import stdtr

    n, length = rows.shape
    sizes = np.sqrt((rows**2).sum(1, keepdims=True))
    unit = rows / np.where(sizes > 0, sizes, 1.0)
    largest = 0.0
    for start in range(0, n, _ROWS):
        products = np.abs(unit[start : start + _ROWS] @ unit[start:].T)
        largest = max(largest, float(np.triu(products, 1).max()))
    pairs = n * (n - 1) / 2
    if not pairs or length < 2:
        return _suspicion(name, 1.0, fault, 0.0, f"{n} steps")
    square = min(largest**2, _CERTAIN)
    # Of noise around a mean of 0, a correlation without centering has as many degrees of freedom.
    t = math.sqrt((length - 1) * square / (1 - square))
    p = min(1.0, 2 * float(stdtr(length - 1, -t)) * pairs)
    certain = math.sqrt((length - 1) * _CERTAIN / (1 - _CERTAIN))
    seen = 2 * float(stdtr(length - 1, -certain)) * pairs
    return _suspicion(name, p, fault, float(seen < 1e-6), f"{length} numbers to compare by")


def _contribution(inside: Array, chance: Array, setting: _Setting) -> tuple[Suspicion, ...]:
    """Score tests of rate and norm: under the claims, sums of independent numbers of known variance."""
    known, cells, rate = setting.moments, inside.size, setting.rate
    few = f"{cells * rate:.0f} draws in noise of {setting.noise:g} clipping norms"
    drawn_too_often = float((chance - rate).sum()) / math.sqrt(cells * known.variance)
    too_long = float(pulls(inside, chance, 1.0, setting.noise).sum()) / math.sqrt(cells * known.pull)
    halved = rate / 2 * setting.sharpness * math.sqrt(cells / known.variance)
    doubled = known.shift * math.sqrt(cells / known.pull)
    rarely = cells * rate < _DRAWS
    return (
        _suspicion(
            "sampling rate",
            _two_sided(drawn_too_often),
            "a sampling rate that is halved",
            0.0 if rarely else _power(halved, setting),
            few,
        ),
        _suspicion(
            "clipping norm",
            _two_sided(too_long),
            "a contribution of twice the clipping norm, or one that is not clipped",
            0.0 if rarely else _power(doubled, setting),
            few,
        ),
    )


def _power(shift: float, setting: _Setting) -> float:
    from scipy.special import ndtr

    return float(ndtr(abs(shift) - setting.critical))


def _draws(chance: Array, setting: _Setting) -> tuple[Suspicion, ...]:
    """Are draws independent? Products of pairs, whose mean is 0 if they are, tell."""
    centered = chance - chance.mean()
    spread = float((centered**2).mean())
    rate, sharp, steps, inside = setting.rate, setting.sharpness, setting.steps, setting.inside
    window = setting.window
    near = inside * sum(steps - lag for lag in range(1, window))
    all_pairs = inside * steps * (steps - 1) / 2
    within = steps * inside * (inside - 1) / 2
    few = f"{inside} canaries over {steps} steps in noise of {setting.noise:g} clipping norms"
    odds = rate / (1 - rate)
    # Once per epoch: no two draws in one, which is a covariance of - rate^2 in as many pairs as an epoch has.
    together = inside * steps * (window - 1) / 2
    once = sharp * odds * together / math.sqrt(near) if near else 0.0
    uneven = sharp * odds / 4 * math.sqrt(all_pairs)
    share = inside / setting.samples if setting.samples else 0.0
    fixed = sharp * share * math.sqrt(steps / 2)
    known = (
        f"{few}, {share:.0%} of the samples" if setting.samples else f"{few}, of an unknown number of samples"
    )
    tests: tuple[tuple[str, float, float, str, float, str], ...] = (
        (
            "draws over steps",
            _near(centered, window),
            near,
            "samples that are drawn once per epoch",
            once,
            few,
        ),
        (
            "draws of one sample",
            _along(centered, 0),
            all_pairs,
            "samples that are drawn at rates of their own, half too much or too little",
            uneven,
            few,
        ),
        ("batch size", _along(centered, 1), within, "batches of a fixed size", fixed, known),
    )
    return tuple(
        _suspicion(name, _two_sided(_standard(total, spread, pairs)), fault, _power(shift, setting), seen)
        for name, total, pairs, fault, shift, seen in tests
    )


def _standard(total: float, spread: float, pairs: float) -> float:
    return total / (spread * math.sqrt(pairs)) if spread > 0 and pairs else 0.0


def _near(centered: Array, window: int) -> float:
    """The sum of products of what one canary saw at two steps less than a window apart."""
    sums = np.concatenate([np.zeros((1, centered.shape[1])), np.cumsum(centered, 0)])
    here = np.arange(len(centered))
    before = sums[here] - sums[np.maximum(here - window + 1, 0)]
    return float((centered * before).sum())


def _along(centered: Array, axis: int) -> float:
    """The sum of products of all pairs along an axis."""
    return float((centered.sum(axis) ** 2).sum() - (centered**2).sum()) / 2
