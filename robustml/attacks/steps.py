"""Steps along a gradient that several attacks take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..threats import Ball, reads_freely
from .radii import free_slope

__all__ = ["free_gradient", "sparse_ascent"]


def sparse_ascent(gradient: Tensor, share: Tensor) -> Tensor:
    """A step of L1 length 1, spread evenly over the features with the largest gradients.

    Args:
        gradient: Of the loss (n, *shape).
        share: The share of the features that move, at least one of them: (n,).
    """
    slope = gradient.flatten(1)
    size = slope.abs()
    features = size.shape[1]
    # Rounded down, so that a share that keeps shrinking arrives at a single feature.
    count = (share * features).long().clamp(1, features)[:, None]
    # A gradient of 0 says nothing about where to go, so at least the smallest number above it is asked for.
    unit = torch.finfo(size.dtype)
    threshold = _nth_largest(size, count).clamp_min(unit.smallest_normal * unit.eps)
    # A comparison that writes numbers: choosing by a mask costs many times as much.
    chosen = torch.ge(size, threshold, out=size)
    length = 1 / chosen.sum(1, keepdim=True).clamp_min(1)
    return chosen.mul_(length).copysign_(slope).view_as(gradient)


def _nth_largest(size: Tensor, count: Tensor) -> Tensor:
    """The threshold that so many values of each row reach, or more where several are equal: (n, 1).

    Args:
        size: Values of at least 0 (n, features).
        count: Int64 (n, 1).
    """
    if reads_freely(size):
        # NumPy sorts short rows ten times as fast as torch does on a CPU.
        return torch.from_numpy(np.sort(size.numpy(), axis=1)).gather(1, size.shape[1] - count)
    return size.sort(dim=1, descending=True).values.gather(1, count - 1)


def free_gradient(gradient: Tensor, z: Tensor, ball: Ball) -> Tensor:
    """The gradient without the features that already are at the end of their range (n, *shape)."""
    return free_slope(gradient.clone(), z, ball.lower, ball.upper)
