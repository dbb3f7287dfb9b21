"""Perturbations of a given size: what minimum-norm attacks hold themselves to, and how far they step.

Cheap relatives of `Ball.project` for attacks whose balls change at every step. They need not be exact, since
`Nearest` measures what is found; every operation here takes a small part of the time of a forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..balls.soft import headroom, softened
from .planes import ENDLESS

__all__ = ["ahead", "dual_of", "free_slope", "room_of", "shrink", "size_of"]

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
        up, down = slope * high, slope * low
        return torch.maximum(up, down, out=up).amax(1)
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
    """The part of a gradient (n, ...) that a perturbation in range can follow; `slope` stays as it is."""
    # Comparisons that write numbers: choosing by a mask costs many times as much. The end of the range that a
    # feature is drawn to is not a number where there is none, which differs from everything, as it should.
    end = torch.gt(slope, 0, out=torch.empty_like(slope))
    torch.lerp(low, high, end, out=end)
    return torch.ne(delta, end, out=end).mul_(slope)


def ahead(norm: str, delta: Tensor, slope: Tensor, length: Tensor) -> Tensor:
    """Perturbations (n, features) after a step along a gradient (n, features) whose size is `length` (n,).

    The size is that of the norm for Linf and L2; for L1 and L0, whose steepest ascent moves a single feature,
    it is the change of the feature that changes most.
    """
    return torch.addcmul(delta, *_uphill(norm, slope, length))


def _uphill(norm: str, slope: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The direction (n, features) of a step, and by what to multiply it (n, 1)."""
    if norm == "linf":
        return slope.sign(), length[:, None]
    peak = _peak(slope).clamp_min(_TINY)
    if norm != "l2":
        return slope, (length / peak).clamp_max(torch.finfo(slope.dtype).max)[:, None]
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    unit = slope / peak[:, None]
    return unit, (length / _euclid(unit).clamp_min(1.0))[:, None]


def shrink(norm: str, delta: Tensor, radius: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bring perturbations (n, features) into range and to a size of at most about `radius` (n,), in place.

    Args:
        norm: Of the size.
        delta: Perturbations, in range or not; overwritten.
        radius: The largest size.
        slope: A gradient (n, features), by which L0 chooses between features that have changed as much.
        low: Lowest value of each feature (n, features).
        high: Highest value of each feature (n, features).
    """
    if norm == "l1":
        return softened(delta, headroom(delta, -low, high), radius[:, None])
    torch.clamp(delta, low, high, out=delta)
    limit = radius[:, None]
    if norm == "linf":
        # Two operations, since a clamp whose limits differ between rows is five times as slow.
        return torch.minimum(torch.maximum(delta, -limit, out=delta), limit, out=delta)
    if norm == "l2":
        return delta.mul_((radius / _euclid(delta).clamp_min(_TINY)).clamp_max(1.0)[:, None])
    return _hard(delta, radius, slope)


def _hard(delta: Tensor, radius: Tensor, slope: Tensor) -> Tensor:
    """Keep the features that have changed most, as many as allowed."""
    # Features at the end of their range are equally large; the gradient decides between them.
    steep = slope.abs()
    steep.mul_((_TIE / steep.amax(1).clamp_min(_TINY))[:, None]).add_(1)
    worth = delta.abs().mul_(steep)
    threshold = _above(worth, radius)[:, None]
    return torch.gt(worth, threshold, out=worth).mul_(delta)


def _above(worth: Tensor, count: Tensor) -> Tensor:
    """A threshold that no more than so many values of each row exceed, by bisection: (n,).

    Args:
        worth: Values of at least 0 (n, features).
        count: How many (n,).
    """
    low, high = torch.zeros_like(count), worth.amax(1) * (1 + 2.0**-_HALVINGS)
    kept = torch.empty_like(worth)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = torch.gt(worth, middle[:, None], out=kept).sum(1) <= count
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high
