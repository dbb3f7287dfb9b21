"""What a phantom canary sees: at each step noise alone, or noise and one clipped gradient.

A cell is what a coordinate holds after a step. For a canary in the data it is normal with mean 0, or, with
the probability that is the sampling rate, with mean C, the clipping norm; the standard deviation is that of
the noise in either case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Fit", "Moments", "drawn", "fit", "moments"]

Array = np.ndarray[Any, Any]

_WARM, _ROUNDS, _CUTS = 15, 60, 20
_TIGHT, _NEAR = 1e-9, 1e-3
_FEW = 100_000  # cells that are enough to find the neighborhood
# Relative to the clipping norm: noise that is off altogether must not divide by zero.
_FLOOR = 1e-6
_SMALLEST = 1e-9
_NODES, _REACH = 4001, 12.0


def drawn(cells: Array, rate: float, norm: float, noise: float) -> Array:
    """How probable it is that a cell holds a gradient, by Bayes: the shape of `cells`."""
    from scipy.special import expit, logit

    return np.asarray(expit(logit(rate) + (norm * cells - norm**2 / 2) / noise**2))


@dataclass(frozen=True)
class Moments:
    """What the tests need to know about cells, in units of the clipping norm.

    Attributes:
        variance: Of the probability of having been drawn.
        pull: Variance of a cell's pull on the clipping norm, the derivative of its log likelihood.
        shift: The mean of that pull if the norm is twice what is claimed.
    """

    variance: float
    pull: float
    shift: float

    def sharpness(self, rate: float) -> float:
        """From 0 to 1: how much of the draws the noise lets through."""
        return self.variance / (rate * (1 - rate))


def pulls(cells: Array, chance: Array, norm: float, noise: float) -> Array:
    """The derivative of the log likelihood of cells with respect to the norm."""
    return chance * (cells - norm) / noise**2


def moments(rate: float, noise: float) -> Moments:
    """Integrals over the distribution of a cell whose norm is 1."""
    x = np.linspace(-_REACH * noise, 2 + _REACH * noise, _NODES)

    def normal(mean: float) -> Array:
        return np.asarray(np.exp(-(((x - mean) / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi)))

    chance = drawn(x, rate, 1.0, noise)
    pull = pulls(x, chance, 1.0, noise)
    truth = (1 - rate) * normal(0.0) + rate * normal(1.0)
    doubled = (1 - rate) * normal(0.0) + rate * normal(2.0)
    return Moments(
        float(np.trapezoid(truth * (chance - rate) ** 2, x)),
        float(np.trapezoid(truth * pull**2, x)),
        float(np.trapezoid(doubled * pull, x)),
    )


@dataclass(frozen=True)
class Fit:
    """Maximum likelihood.

    Attributes:
        rate, norm, noise: Sampling rate, clipping norm, standard deviation of the noise.
        covariance: Of (logit rate, log norm, log noise), (3, 3).
    """

    rate: float
    norm: float
    noise: float
    covariance: Array


def fit(inside: Array, outside: Array, *, rate: float, norm: float) -> Fit:
    """Fit cells of canaries in the data, with the noise taken from those of canaries that are not.

    Args:
        inside: Cells of canaries in the data, any shape.
        outside: Cells of the others.
        rate, norm: As claimed: one of the places from which the search begins.
    """
    x = inside.ravel()
    noise = max(float(np.sqrt(np.mean(outside**2))), _FLOOR * norm)
    top = float(np.quantile(x, 1 - min(rate / 2, 0.5)))
    starts = {norm, 2 * norm, max(top, norm / 4)}
    mean = float(x.mean())
    some = x if len(x) <= _FEW else np.random.default_rng(0).choice(x, _FEW, replace=False)
    best: tuple[float, float, float] | None = None
    for start in sorted(starts):
        share = min(max(mean / start, _SMALLEST), 0.9)
        found = _climbed(some, *_warmed(some, share, start, noise), noise)
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    _, rate, norm = best if some is x else _climbed(x, *best[1:], noise)
    return Fit(rate, norm, noise, _covariance(x, outside.size, rate, norm, noise))


def _warmed(x: Array, rate: float, norm: float, noise: float) -> tuple[float, float]:
    """Expectation maximization, which finds the neighborhood from afar."""
    for _ in range(_WARM):
        chance = drawn(x, rate, norm, noise)
        total = float(chance.sum())
        if total <= 0:
            break
        before = rate, norm
        rate = min(max(total / len(x), _SMALLEST), 1 - _SMALLEST)
        norm = max(float((chance * x).sum()) / total, _FLOOR * noise)
        if abs(rate - before[0]) <= _NEAR * rate and abs(norm - before[1]) <= _NEAR * norm:
            break
    return rate, norm


def _likelihood(x: Array, rate: float, norm: float, noise: float) -> float:
    ratio = (norm * x - norm**2 / 2) / noise**2
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + ratio).sum())


def _slopes(x: Array, rate: float, norm: float, noise: float) -> Array:
    """Per cell, the derivatives with respect to (logit rate, log norm): (2, n)."""
    chance = drawn(x, rate, norm, noise)
    return np.stack([chance - rate, pulls(x, chance, norm, noise) * norm])


def _climbed(x: Array, rate: float, norm: float, noise: float) -> tuple[float, float, float]:
    """Newton's method with the information as it is observed (Berndt et al. 1974): quick at the end."""
    from scipy.special import expit, logit

    value = _likelihood(x, rate, norm, noise)
    for _ in range(_ROUNDS):
        slopes = _slopes(x, rate, norm, noise)
        step = np.linalg.lstsq(slopes @ slopes.T, slopes.sum(1), rcond=None)[0]
        step = np.clip(step, -1, 1)
        for cut in range(_CUTS):
            tried = float(expit(logit(rate) + step[0] / 2**cut)), norm * math.exp(step[1] / 2**cut)
            sane = _SMALLEST <= tried[0] <= 1 - _SMALLEST
            reached = _likelihood(x, *tried, noise) if sane else -math.inf
            if reached > value:
                break
        else:
            break
        gained, value = reached - value, reached
        rate, norm = tried
        if gained < _TIGHT:
            break
    return value, rate, norm


def _covariance(x: Array, outside: int, rate: float, norm: float, noise: float) -> Array:
    """The inverse of the information, which the cells of both kinds hold."""
    chance = drawn(x, rate, norm, noise)
    squares = (1 - chance) * x**2 + chance * (x - norm) ** 2
    slopes = np.concatenate([_slopes(x, rate, norm, noise), (squares / noise**2 - 1)[None]])
    # The noise is taken from the cells outside alone. Its error is theirs, and moves the other two with it.
    information = slopes @ slopes.T
    inner = np.linalg.pinv(information[:2, :2])
    moved = -inner @ information[:2, 2]
    own = 1 / (2 * outside)
    full = np.empty((3, 3))
    full[:2, :2] = inner + own * np.outer(moved, moved)
    full[:2, 2] = full[2, :2] = own * moved
    full[2, 2] = own
    return full
