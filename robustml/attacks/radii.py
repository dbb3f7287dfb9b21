"""Perturbations of a given size: what minimum-norm attacks hold themselves to, and how far they step.

Cheap relatives of `Ball.project` for attacks whose balls change at every step. They need not be exact, since
`Nearest` measures what is found; every operation here takes a small part of the time of a forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..balls.soft import headroom, softened
from .planes import ENDLESS

__all__ = ["ascend", "dual_of", "free_slope", "room_of", "shrink", "size_of"]

_HALVINGS = 14
_TIE = 0.01
_TINY = 1e-30


def room_of(low: Tensor, high: Tensor) -> Tensor:
    """The longest way that a feature of each sample can go, finite: (n,)."""
    return torch.maximum(high, -low).amax(1).clamp_max(ENDLESS)


def size_of(norm: str, delta: Tensor) -> Tensor:
    """The norm of perturbations (n, features): (n,)."""
    if norm == "l0":
        return torch.ne(delta, 0, out=torch.empty_like(delta)).sum(1)
    return _DUAL_SIZES[_DUAL[norm]](delta)


def dual_of(norm: str, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """By how much a function of this gradient (n, features) rises per unit of the norm: (n,)."""
    if norm == "l0":
        # One feature may go to the end of its range, whichever pays best.
        return torch.maximum(slope * low, slope * high).amax(1)
    return _DUAL_SIZES[norm](slope)


def _sum(values: Tensor) -> Tensor:
    return values.abs().sum(1)


def _peak(values: Tensor) -> Tensor:
    return values.abs().amax(1)


def _euclid(values: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(values, dim=1)
    return size


# The general norm of torch takes ten times as long as these.
_DUAL_SIZES = {"linf": _sum, "l2": _euclid, "l1": _peak}
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def free_slope(slope: Tensor, delta: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The part of a gradient (n, ...) that a perturbation in range can follow; it overwrites `slope`."""
    # Comparisons that write numbers: choosing by a mask costs many times as much.
    rises, falls = torch.empty_like(slope), torch.empty_like(slope)
    torch.lt(delta, high, out=rises)
    torch.gt(delta, low, out=falls)
    rises.mul_(slope.clamp_min(0))
    return rises.addcmul_(falls, slope.clamp_max_(0))


def ascend(norm: str, slope: Tensor, length: Tensor) -> Tensor:
    """A step along a gradient (n, features) whose size is `length` (n,).

    The size is that of the norm for Linf and L2; for L1 and L0, whose steepest ascent moves a single feature,
    it is the change of the feature that changes most.
    """
    if norm == "linf":
        return slope.sign() * length[:, None]
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    unit = slope / _peak(slope).clamp_min(_TINY)[:, None]
    if norm == "l2":
        length = length / _euclid(unit).clamp_min(1.0)
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
        return softened(delta, headroom(delta, -low, high), radius[:, None])
    delta = torch.minimum(torch.maximum(delta, low), high)
    limit = radius[:, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -limit), limit)
    if norm == "l2":
        return delta.mul_((radius / _euclid(delta).clamp_min(_TINY)).clamp_max(1.0)[:, None])
    return _hard(delta, radius, slope)


def _hard(delta: Tensor, radius: Tensor, slope: Tensor) -> Tensor:
    """Keep the features that have changed most, as many as allowed; bisection for the threshold."""
    # Features at the end of their range are equally large; the gradient decides between them.
    steep = slope.abs()
    steep /= steep.amax(1, keepdim=True).clamp_min(_TINY)
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
