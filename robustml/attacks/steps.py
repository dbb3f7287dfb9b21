"""Steps along a gradient that several attacks take."""

from __future__ import annotations

import torch
from torch import Tensor

from ..threats import Ball, reads_freely
from .radii import free_slope

__all__ = ["free_gradient", "sparse_ascent"]

_HALVINGS = 15


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
    threshold = _nth_largest(size, count)
    # A comparison that writes numbers: choosing by a mask costs many times as much.
    signs = torch.ge(size, threshold, out=size).mul_(slope.sign())
    return (signs.div_(signs.abs().sum(1, keepdim=True).clamp_min(1e-10))).view_as(gradient)


def _nth_largest(size: Tensor, count: Tensor) -> Tensor:
    """A threshold that so many values of each row reach, or more where several are equal: (n, 1).

    Sorting takes a CPU as long as a pass of a small network, so there the threshold is found by halving, and
    only the few rows that this does not separate are sorted.

    Args:
        size: Values of at least 0 (n, features).
        count: Int64 (n, 1).
    """
    if not len(size) or not reads_freely(size):
        return size.sort(dim=1, descending=True).values.gather(1, count - 1)
    low, high = torch.zeros_like(count, dtype=size.dtype), size.amax(1, keepdim=True)
    reached, wanted = torch.empty_like(size), count.to(size.dtype)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        more = torch.ge(size, middle, out=reached).sum(1, keepdim=True) - wanted
        low, high = torch.where(more >= 0, middle, low), torch.where(more <= 0, middle, high)
    rows = (low != high).nonzero()[:, 0]
    if len(rows):
        here = count.index_select(0, rows)
        top = size.index_select(0, rows).topk(int(here.max()), dim=1).values
        low.index_copy_(0, rows, top.gather(1, here - 1))
    return low


def free_gradient(gradient: Tensor, z: Tensor, ball: Ball) -> Tensor:
    """The gradient without the features that already are at the end of their range (n, *shape)."""
    return free_slope(gradient.clone(), z, ball.lower, ball.upper)
