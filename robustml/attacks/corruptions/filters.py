"""Filters, warps and random fields, written so that a sample never depends on the batch that it is in.

Sums run in a fixed order over elementwise operations: libraries choose another order for another batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ...sampling import Streams

__all__ = ["convolve", "fractal", "gaussian", "sample", "smooth", "splat", "spread"]


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate images (n, c, h, w) with a kernel (a, b), or one each (n, a, b); edges are repeated.

    Both sides of the kernel are odd.
    """
    kernel = kernel if kernel.ndim == 3 else kernel[None]
    up, left = kernel.shape[1] // 2, kernel.shape[2] // 2
    height, width = x.shape[2:]
    padded = functional.pad(x, (left, left, up, up), mode="replicate")
    result = torch.zeros_like(x)
    for i, j in kernel.ne(0).any(0).nonzero().tolist():
        result += kernel[:, i, j, None, None, None] * padded[:, :, i : i + height, j : j + width]
    return result


def gaussian(sigma: float) -> Tensor:
    """A normal distribution on pixels (2 r + 1,), cut beyond 4 sigma; each pixel holds its integral.

    Integrated and not sampled, so that a sigma far below one pixel still has its small effect.
    """
    radius = math.ceil(4 * sigma) + 1
    edges = torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5
    weights: Tensor = torch.special.ndtr(edges / sigma).diff()
    return weights / weights.sum()


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Blur images (n, c, h, w) with a Gaussian of standard deviation `sigma` in pixels."""
    line = gaussian(sigma).to(x.device)
    return convolve(convolve(x, line[None, :]), line[:, None])


def splat(points: Tensor, weights: Tensor) -> Tensor:
    """A kernel (n, 2 r + 1, 2 r + 1) that averages the image at some points, interpolated linearly.

    Args:
        points: Offsets (n, k, 2) in pixels, as (row, column).
        weights: Their weights (k,), which sum to 1.
    """
    radius = max(1, math.ceil(float(points.abs().max()))) if points.numel() else 1
    ticks = torch.arange(-radius, radius + 1, dtype=points.dtype, device=points.device)
    near = (1 - (points[..., None] - ticks).abs()).clamp_min(0)  # (n, k, 2, side)
    kernel = points.new_zeros(len(points), len(ticks), len(ticks))
    for k, weight in enumerate(weights.tolist()):
        kernel += weight * near[:, k, 0, :, None] * near[:, k, 1, None, :]
    return kernel


def sample(x: Tensor, rows: Tensor, columns: Tensor, *, outside: str = "border") -> Tensor:
    """Read images (n, c, h, w) at pixel coordinates (n, a, b), interpolated linearly.

    Args:
        x: The images.
        rows, columns: Where to read; 0 is the center of the first pixel.
        outside: "border" repeats the edge, "reflection" mirrors the image, "zeros" is black.
    """
    height, width = x.shape[2:]
    places = torch.stack([_relative(columns, width), _relative(rows, height)], dim=-1)
    return functional.grid_sample(x, places, mode="bilinear", padding_mode=outside, align_corners=True)


def _relative(place: Tensor, size: int) -> Tensor:
    return place * (2 / max(size - 1, 1)) - 1


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """The row and column of every pixel: two tensors (1, h, w)."""
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=x.dtype, device=x.device)
    columns = torch.arange(width, dtype=x.dtype, device=x.device)
    return rows[None, :, None].expand(1, height, width), columns[None, None, :].expand(1, height, width)


def fractal(x: Tensor, streams: Streams, *, roughness: float) -> Tensor:
    """Clouds (n, 1, h, w) in [0, 1]: random values on ever finer lattices, each weaker by `roughness`."""
    rows, columns = (place.expand(len(x), -1, -1) for place in spread(x))
    side = max(x.shape[-2:])
    total = torch.zeros(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    scale, weight, octave = 0.0, 1.0, 0
    while True:
        cells = 2 ** (octave + 1)
        lattice = streams.uniform(1, cells + 1, cells + 1, dtype=x.dtype)
        step = cells / max(side - 1, 1)
        total += weight * sample(lattice, rows * step, columns * step)
        scale += weight
        weight, octave = weight * roughness, octave + 1
        if cells >= side:
            return total / scale
