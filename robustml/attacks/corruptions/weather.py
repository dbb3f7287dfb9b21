"""What weather does to a picture, drawn from random fields instead of photographs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...registry import corruption
from ...sampling import Streams
from .blur import streaks
from .filters import convolve, fractal, sample, spread
from .sizes import amount, length

__all__ = ["brightness", "fog", "frost", "snow"]

_REFERENCE = "Hendrycks and Dietterich 2019, section 3.1"


@corruption("snow", group="weather", reference=_REFERENCE)
def snow(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Flakes that fall, on a scene that they make whiter."""
    whiter = amount(x, severity, (0.05, 0.08, 0.11, 0.15, 0.20), (0.20, 0.25, 0.30, 0.35, 0.45))
    rare = amount(x, severity, (1.5, 1.3, 1.1, 0.95, 0.8), (1.3, 1.1, 0.9, 0.8, 0.7))
    flake = length(x, 1, *[(1.5,) * 5, (4.0,) * 5])
    rows, columns = (place.expand(len(x), -1, -1) / flake for place in spread(x))
    lattice = [math.ceil(size / flake) + 1 for size in x.shape[2:]]
    field = sample(streams.normal(1, *lattice, dtype=x.dtype), rows, columns)
    angle = (0.25 + 0.5 * streams.uniform(dtype=x.dtype)) * math.pi
    flakes = convolve((2 * (field - rare)).clamp(0, 1), streaks(angle, flake / 2))
    grey = torch.zeros_like(flakes)
    for channel in x.unbind(1):
        grey += channel[:, None] / x.shape[1]
    white = torch.maximum(x, (1.5 * grey + 0.5).clamp_max(1))
    return x + whiter * (white - x) + flakes


@corruption("frost", group="weather", reference=_REFERENCE)
def frost(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Crystals on the lens that cover a part of the scene; drawn, not photographed."""
    cover = amount(x, severity, (0.30, 0.40, 0.50, 0.60, 0.70), (0.45, 0.60, 0.70, 0.80, 0.90))
    # The crests of clouds are thin lines that branch, as ice does.
    crests = (1 - 5 * (fractal(x, streams, roughness=0.8) - 0.5).abs()).clamp(0, 1)
    return x + cover * crests * (0.95 - x)


@corruption("fog", group="weather", reference=_REFERENCE)
def fog(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Clouds between the camera and the scene, which take its contrast away."""
    thick = amount(x, severity, (0.2, 0.5, 0.75, 1.0, 1.5), (1.5, 2.0, 2.5, 2.75, 3.0))
    return (x + thick * fractal(x, streams, roughness=0.5)) / (1 + thick)


@corruption("brightness", group="weather", reference=_REFERENCE)
def brightness(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """More daylight: the same is added to every value."""
    return x + amount(x, severity, (0.05, 0.10, 0.15, 0.20, 0.30), (0.10, 0.20, 0.30, 0.40, 0.50))
