"""Gaussian differential privacy: the trade-off of two normal distributions that lie mu apart."""

from __future__ import annotations

import math

from ...errors import InputError, brief

__all__ = ["gaussian_delta", "gaussian_epsilon"]

_HALVINGS = 80


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta of a mu-GDP mechanism at an epsilon (Dong, Roth and Su 2022, Corollary 2.13)."""
    from scipy.special import log_ndtr, ndtr

    if mu <= 0:
        return 0.0
    # In logarithms, since the exponential alone overflows where the product is small.
    behind = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return max(float(ndtr(-epsilon / mu + mu / 2)) - behind, 0.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of a mu-GDP mechanism at a delta, rounded down.

    Raises:
        InputError: if delta is not above 0 and below 1: no Gaussian mechanism has an epsilon without one.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta={brief(delta)} is not between 0 and 1, which Gaussian privacy needs")
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return low
