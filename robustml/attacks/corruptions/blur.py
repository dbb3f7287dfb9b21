"""Blur: of the lens, of movement, of frosted glass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...registry import corruption
from ...sampling import Streams
from .filters import convolve, sample, smooth, splat, spread
from .sizes import amount, length

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "streaks", "zoom_blur"]

_REFERENCE = "Hendrycks and Dietterich 2019, section 3.1"


@corruption("gaussian-blur", group="blur", reference="Hendrycks and Dietterich 2019, appendix B")
def gaussian_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Each pixel is a normally weighted mean of its surroundings."""
    return smooth(x, length(x, severity, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)))


@corruption("defocus-blur", group="blur", reference=_REFERENCE)
def defocus_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Each point becomes a disk, as out of focus."""
    radius = length(x, severity, (0.6, 0.8, 1.0, 1.25, 1.5), (3, 4, 6, 8, 10))
    # Rings of equal area, with enough points on each for the largest disks.
    rings = math.ceil(2 * radius) + 2
    spokes = 8 * rings
    reach = ((torch.arange(rings, dtype=x.dtype, device=x.device) + 0.5) / rings).sqrt() * radius
    angle = torch.arange(spokes, dtype=x.dtype, device=x.device) * (2 * math.pi / spokes)
    disk = torch.stack([reach[:, None] * angle.sin(), reach[:, None] * angle.cos()], dim=-1).view(1, -1, 2)
    even = torch.full((rings * spokes,), 1 / (rings * spokes), dtype=x.dtype)
    return convolve(x, splat(disk, even))


@corruption("motion-blur", group="blur", reference=_REFERENCE)
def motion_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """The camera moves at up to 45 degrees from the horizontal while the picture is taken."""
    sigma = length(x, severity, (1.0, 1.5, 2.0, 2.25, 2.5), (3, 5, 8, 12, 15))
    angle = (streams.uniform(dtype=x.dtype) - 0.5) * (math.pi / 2)
    return convolve(x, streaks(angle, sigma))


def streaks(angle: Tensor, sigma: float) -> Tensor:
    """Kernels (n, a, a) of a movement that begins at the pixel, half a normal distribution long.

    Args:
        angle: Its direction (n,), in radians from the horizontal.
        sigma: The standard deviation in pixels.
    """
    steps = torch.arange(0, math.ceil(6 * sigma) + 1, dtype=angle.dtype, device=angle.device) / 2
    weights = (-0.5 * (steps / sigma) ** 2).exp()
    direction = torch.stack([angle.sin(), angle.cos()], dim=-1)
    return splat(steps[None, :, None] * direction[:, None, :], weights / weights.sum())


@corruption("zoom-blur", group="blur", reference=_REFERENCE)
def zoom_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """The camera moves towards the middle of the picture while it is taken."""
    most = amount(x, severity, (0.05, 0.10, 0.15, 0.20, 0.25), (0.10, 0.15, 0.20, 0.24, 0.30))
    steps = 10
    rows, columns = (place.expand(len(x), -1, -1) for place in spread(x))
    middle = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    total = x.clone()
    for step in range(1, steps + 1):
        shrunk = 1 / (1 + most * step / steps)
        total += sample(
            x, middle[0] + (rows - middle[0]) * shrunk, middle[1] + (columns - middle[1]) * shrunk
        )
    return total / (steps + 1)


@corruption("glass-blur", group="blur", reference=_REFERENCE)
def glass_blur(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Frosted glass: each pixel shows what is at a random place close by, lightly blurred."""
    reach = length(x, severity, (0.5, 0.7, 0.9, 1.1, 1.3), (1.5, 2.0, 2.7, 3.5, 4.5))
    rows, columns = spread(x)
    shift = (2 * streams.uniform(2, *x.shape[2:], dtype=x.dtype) - 1) * reach
    seen = sample(smooth(x, 0.3 * reach), rows + shift[:, 0], columns + shift[:, 1])
    return smooth(seen, 0.3 * reach)
