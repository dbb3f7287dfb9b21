"""Steps along a gradient that several attacks take."""

from __future__ import annotations

import torch
from torch import Tensor

from ..threats import Ball

__all__ = ["free_gradient", "sparse_ascent"]


def sparse_ascent(gradient: Tensor, share: Tensor) -> Tensor:
    """A step of L1 length 1, spread evenly over the features with the largest gradients.

    Args:
        gradient: Of the loss (n, *shape).
        share: The share of the features that move, at least one of them: (n,).
    """
    size = gradient.flatten(1).abs()
    features = size.shape[1]
    # Rounded down, so that a share that keeps shrinking arrives at a single feature.
    last = (share * features).long().clamp(1, features) - 1
    threshold = size.sort(dim=1, descending=True).values.gather(1, last[:, None])
    signs = torch.where(size >= threshold, gradient.flatten(1).sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1e-10)).view_as(gradient)


def free_gradient(gradient: Tensor, z: Tensor, ball: Ball) -> Tensor:
    """The gradient without the features that already are at the end of their range (n, *shape)."""
    # Comparisons that write numbers: choosing by a mask costs many times as much.
    rises, falls = torch.empty_like(gradient), torch.empty_like(gradient)
    torch.lt(z, ball.upper, out=rises)
    torch.gt(z, ball.lower, out=falls)
    return rises.mul_(gradient.clamp_min(0)).addcmul_(falls, gradient.clamp_max(0))
