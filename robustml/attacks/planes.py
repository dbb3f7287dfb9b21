"""The shortest way to a hyperplane within a box, for batches and without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ENDLESS", "to_plane"]

ENDLESS = 1e20
"""Stands for infinity, whose product with 0 is not a number."""

_NEWTON = 6  # rounds; a round is exact once it knows which features end at the limit of their range
_HALVINGS = 16
_TINY = 1e-30


def to_plane(norm: str, slope: Tensor, rise: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The smallest change that makes a linear function rise by so much, each feature within its range.

    Where the range does not allow the rise, the change that comes closest to it.

    Args:
        norm: "linf", "l2" or "l1".
        slope: Coefficients of the function (n, features).
        rise: By how much it must rise, may be negative (n,).
        low: Lowest change of each feature, from -`ENDLESS` to 0 (n, features).
        high: Highest change of each feature, from 0 to `ENDLESS` (n, features).

    Returns:
        The change (n, features). For L1 it is the smallest to within 2**-16 of the largest coefficient.
    """
    slope = slope * (1.0 - 2.0 * (rise < 0))[:, None]
    # Comparisons that write numbers: choosing by a mask costs many times as much.
    up = torch.empty_like(slope)
    torch.gt(slope, 0, out=up)
    room = torch.lerp(-low, high, up)
    fill = {"linf": _level, "l2": _proportional, "l1": _greedy}[norm]
    return fill(slope.abs(), room, rise.abs()).copysign(slope)


def _level(size: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    return _fill(size, size.sign(), size, room, rise)


def _proportional(size: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    return _fill(size, size, size.square(), room, rise)


def _fill(size: Tensor, rate: Tensor, steep: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """min(t * rate, room) with the t at which the function has risen; Newton comes to it from below.

    The rise is concave and piecewise linear in t, so no round goes too far, and the last one is exact.
    """
    time, moved, free = torch.zeros_like(rise), torch.zeros_like(room), torch.empty_like(room)
    for _ in range(_NEWTON):
        torch.lt(moved, room, out=free)
        left = (rise - torch.linalg.vecdot(size, moved)).clamp_min(0)
        time = time + left / torch.linalg.vecdot(steep, free).clamp_min(_TINY)
        time = time.clamp_max(ENDLESS)
        torch.mul(rate, time[:, None], out=moved)
        torch.minimum(moved, room, out=moved)
    return moved


def _greedy(size: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """All the room of the features with the largest coefficients, a part of it for those at the threshold."""
    room = room * size.sign()  # what does not count must not change
    gain, chosen = size * room, torch.empty_like(room)
    low, high = torch.zeros_like(rise), size.amax(1) * (1 + 2.0**-_HALVINGS)
    below = gain.sum(1)  # the rise that the features above the lower threshold give
    above = torch.zeros_like(rise)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        torch.ge(size, middle[:, None], out=chosen)
        given = torch.linalg.vecdot(gain, chosen)
        enough = given >= rise
        low, below = torch.where(enough, middle, low), torch.where(enough, given, below)
        high, above = torch.where(enough, high, middle), torch.where(enough, above, given)
    part = ((rise - above) / (below - above).clamp_min(_TINY)).clamp(0, 1)[:, None]
    wider = torch.empty_like(room)
    torch.ge(size, low[:, None], out=wider)
    torch.ge(size, high[:, None], out=chosen)
    return room.mul_(torch.lerp(chosen, wider, part))
