"""Perturbations of a given size: what minimum-norm attacks hold themselves to, and how far they step.

Cheap relatives of `Ball.project` for attacks whose balls change at every step. They need not be exact, since
`Nearest` measures what is found; every operation here takes a small part of the time of a forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import ENDLESS

__all__ = ["ascend", "room_of", "shrink"]

_HALVINGS = 14
_TIE = 0.01
_TINY = 1e-30


def room_of(low: Tensor, high: Tensor) -> Tensor:
    """The longest way that a feature of each sample can go, finite: (n,)."""
    return torch.maximum(high, -low).amax(1).clamp_max(ENDLESS)


def ascend(norm: str, slope: Tensor, length: Tensor) -> Tensor:
    """A step along a gradient (n, features) whose size is `length` (n,).

    The size is that of the norm for Linf and L2; for L1 and L0, whose steepest ascent moves a single feature,
    it is the change of the feature that changes most.
    """
    if norm == "linf":
        return slope.sign() * length[:, None]
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    peak = torch.linalg.vector_norm(slope, ord=torch.inf, dim=1, keepdim=True)
    unit: Tensor = slope / peak.clamp_min(_TINY)
    if norm == "l2":
        length = length / torch.linalg.vector_norm(unit, dim=1).clamp_min(1.0)
    unit *= length[:, None]
    return unit


def shrink(norm: str, delta: Tensor, radius: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bring perturbations (n, features) into range and to a size of at most about `radius` (n,).

    Args:
        norm: Of the size.
        delta: Perturbations, in range or not.
        radius: The largest size.
        slope: A gradient (n, features), by which L0 chooses between features that have changed as much.
        low: Lowest value of each feature (n, features).
        high: Highest value of each feature (n, features).
    """
    if norm == "l1":
        return _soft(delta, radius, low, high)
    delta = torch.minimum(torch.maximum(delta, low), high)
    limit = radius[:, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -limit), limit)
    if norm == "l2":
        size = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
        return delta.mul_((limit / size.clamp_min(_TINY)).clamp_max(1.0))
    return _hard(delta, radius, slope)


def _soft(delta: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Project onto the L1 ball within the range: bisection for the threshold.

    The threshold comes off before the range cuts, so that a feature at its end stays there.
    """
    size, up = delta.abs(), torch.empty_like(delta)
    torch.gt(delta, 0, out=up)
    room = torch.lerp(-low, high, up)
    least, most = torch.zeros_like(radius), size.amax(1)
    over = torch.empty_like(delta)
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        torch.sub(size, middle[:, None], out=over)
        torch.minimum(over.clamp_min_(0), room, out=over)
        fits = over.sum(1) <= radius
        least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
    # What fits as it is keeps its size, to the last bit.
    whole = torch.minimum(size, room)
    most = torch.where(whole.sum(1) <= radius, 0.0, most)
    torch.sub(size, most[:, None], out=over)
    return torch.minimum(over.clamp_min_(0), room, out=over).copysign_(delta)


def _hard(delta: Tensor, radius: Tensor, slope: Tensor) -> Tensor:
    """Keep the features that have changed most, as many as allowed; bisection for the threshold."""
    # Features at the end of their range are equally large; the gradient decides between them.
    steep = slope.abs()
    steep /= torch.linalg.vector_norm(slope, ord=torch.inf, dim=1, keepdim=True).clamp_min(_TINY)
    worth = delta.abs().mul_(steep.mul_(_TIE).add_(1))
    least, most = torch.zeros_like(radius), worth.amax(1) * (1 + 2.0**-_HALVINGS)
    kept = torch.empty_like(delta)
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        torch.gt(worth, middle[:, None], out=kept)
        fits = kept.sum(1) <= radius
        least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
    torch.gt(worth, most[:, None], out=kept)
    return kept.mul_(delta)
