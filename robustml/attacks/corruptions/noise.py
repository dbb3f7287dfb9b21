"""Noise of sensors: of electronics, of few photons, of dead pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...registry import corruption
from ...sampling import Streams
from .sizes import amount

__all__ = ["gaussian_noise", "impulse_noise", "poisson", "shot_noise", "speckle_noise"]

_FEW = 16

_REFERENCE = "Hendrycks and Dietterich 2019, section 3.1"


@corruption("gaussian-noise", group="noise", reference=_REFERENCE)
def gaussian_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Normal noise of the same size everywhere, as in low light."""
    size = amount(x, severity, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return x + size * streams.normal(*x.shape[1:], dtype=x.dtype)


@corruption("shot-noise", group="noise", reference=_REFERENCE)
def shot_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Poisson noise: an image made of a limited number of photons."""
    photons = amount(x, severity, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    return poisson(x * photons, streams) / photons


def poisson(rate: Tensor, streams: Streams) -> Tensor:
    """Poisson numbers of given rates (n, ...) from the streams: exact up to a rate of 16, close above.

    Above, the Cornish-Fisher expansion of the quantile is used (Abramowitz and Stegun 1964, 26.2.49).
    """
    u = streams.uniform(*rate.shape[1:], dtype=torch.float64).clamp_min(2.0**-54)
    z = torch.special.ndtri(u)
    many = rate + rate.sqrt() * z + (z * z - 1) / 6 + (z - z**3) / (72 * rate.clamp_min(1).sqrt())
    small = rate <= _FEW
    few, u = rate[small], u[small]
    chance = (-few).exp()
    below, count = chance.clone(), torch.zeros_like(few)
    # A Poisson number of rate 16 is above 60 with a probability of less than 1e-16.
    for k in range(1, 61):
        count += u > below
        chance = chance * few / k
        below += chance
    numbers: Tensor = many.round().clamp_min(0)
    numbers[small] = count
    return numbers


@corruption("impulse-noise", group="noise", reference=_REFERENCE)
def impulse_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Salt and pepper: some values become the lowest or the highest, as with faulty bits."""
    share = amount(x, severity, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    u = streams.uniform(*x.shape[1:], dtype=x.dtype)
    return torch.where(u < share / 2, 0.0, torch.where(u >= 1 - share / 2, 1.0, x))


@corruption("speckle-noise", group="noise", reference="Hendrycks and Dietterich 2019, appendix B")
def speckle_noise(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Normal noise in proportion to the value of the pixel."""
    size = amount(x, severity, (0.06, 0.10, 0.12, 0.16, 0.20), (0.15, 0.20, 0.35, 0.45, 0.60))
    return x + x * size * streams.normal(*x.shape[1:], dtype=x.dtype)
