"""The shortest way to a hyperplane within a box, for batches and without waiting for the device.

Everything here is written for the time that it takes: it runs twice in every step of an attack, and a small
network is hardly slower. Hence comparisons that write numbers: to choose by a mask costs many times as much.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

__all__ = ["ENDLESS", "Planes", "to_plane"]

ENDLESS = 1e20
"""Stands for infinity, whose product with 0 is not a number."""

_NEWTON = {"linf": 6, "l2": 8}  # rounds; with too few the way falls short, and L2 needs more
_HALVINGS = 16
_TINY = 1e-30


class Planes:
    """Hyperplanes with a normal for each sample, to which the shortest way in a norm is wanted.

    Args:
        norm: "linf", "l2" or "l1".
        slope: The normals: coefficients of a linear function (n, features).

    Attributes:
        sign: The direction in which each feature raises the function, -1, 0 or 1 (n, features).
    """

    def __init__(self, norm: str, slope: Tensor) -> None:
        self.norm = norm
        self.sign = slope.sign()
        self._size = slope.abs()
        self._steep = self._size.square() if norm == "l2" else self._size

    def turned(self, rise: Tensor) -> Planes:
        """The same planes, their normals turned round for the samples whose rise (n,) is negative."""
        clone = copy.copy(self)
        clone.sign = self.sign * (1.0 - 2.0 * (rise < 0))[:, None]
        return clone

    def room(self, low: Tensor, high: Tensor) -> Tensor:
        """How far each feature can go along its `sign` (n, features), given its lowest and highest change.

        Args:
            low: From -`ENDLESS` to 0 (n, features).
            high: From 0 to `ENDLESS` (n, features).
        """
        return torch.maximum(self.sign * low, self.sign * high)

    def reach(self, room: Tensor, rise: Tensor) -> Tensor:
        """By how much each feature must go along its `sign` so that the function rises by so much.

        Where the room does not allow the rise, all of it is used. For L1 the way is the shortest to within
        2**-16 of the largest coefficient.

        Args:
            room: As `room` returns it (n, features).
            rise: At least 0 (n,).
        """
        return self._greedy(room, rise) if self.norm == "l1" else self._even(room, rise)

    def _even(self, room: Tensor, rise: Tensor) -> Tensor:
        """min(t * rate, room) with the t at which the function has risen; Newton comes to it from below.

        The rise is concave and piecewise linear in t, so no round goes too far, and one that ends no further
        feature is exact.
        """
        gain = self._size * room
        knee = room / self._size.clamp_min(_TINY) if self.norm == "l2" else room
        ended, free = torch.empty_like(room), torch.empty_like(room)
        time = torch.zeros_like(rise)
        for _ in range(_NEWTON[self.norm]):
            torch.le(knee, time[:, None], out=ended)
            torch.gt(knee, time[:, None], out=free)
            left = (rise - torch.linalg.vecdot(gain, ended)).clamp_min_(0)
            fresh = left / torch.linalg.vecdot(self._steep, free).clamp_min_(_TINY)
            time = torch.maximum(time, fresh.clamp_max_(ENDLESS))
        if self.norm == "l2":
            return torch.minimum(torch.mul(self._size, time[:, None], out=free), room)
        return torch.minimum(room, time[:, None])

    def _greedy(self, room: Tensor, rise: Tensor) -> Tensor:
        """All the room of the features with the largest coefficients, and a part of it at the threshold."""
        gain, chosen = self._size * room, torch.empty_like(room)
        low, high = torch.zeros_like(rise), self._size.amax(1) * (1 + 2.0**-_HALVINGS)
        below = gain.sum(1)  # the rise that the features above the lower threshold give
        above = torch.zeros_like(rise)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            torch.ge(self._size, middle[:, None], out=chosen)
            given = torch.linalg.vecdot(gain, chosen)
            enough = given >= rise
            low, below = torch.where(enough, middle, low), torch.where(enough, given, below)
            high, above = torch.where(enough, high, middle), torch.where(enough, above, given)
        part = ((rise - above) / (below - above).clamp_min(_TINY)).clamp(0, 1)[:, None]
        wider = torch.empty_like(room)
        torch.ge(self._size, low[:, None], out=wider)
        torch.ge(self._size, high[:, None], out=chosen)
        return torch.lerp(chosen, wider, part).mul_(room)


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
        The change (n, features).
    """
    planes = Planes(norm, slope).turned(rise)
    return planes.reach(planes.room(low, high), rise.abs()).mul_(planes.sign)
