"""The shortest way to a hyperplane within a box, for batches and without waiting for the device.

Everything here is written for the time that it takes: it runs twice in every step of an attack, and a small
network is hardly slower. Hence comparisons that write numbers (to choose by a mask costs many times as much)
and sums of products in a buffer, which take less time than `vecdot`.
On the CPU rows whose search is over are left out of its further rounds; a device goes through all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..balls import reads_freely

__all__ = ["ENDLESS", "Planes", "to_plane"]

ENDLESS = 1e20
"""Stands for infinity, whose product with 0 is not a number."""

_NEWTON = {"linf": 6, "l2": 8}  # rounds; with too few the way falls short, and L2 needs more
_NARROWINGS = 16  # rounds for L1; each takes at least a quarter off, and most of them far more
_FINEST = 2.0**-16
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

    def room(self, low: Tensor, high: Tensor, turn: Tensor) -> Tensor:
        """How far each feature can go along its `sign` or, where `turn` is -1, against it: (n, features).

        Args:
            low: Lowest change of each feature, from -`ENDLESS` to 0 (n, features).
            high: Highest change of each feature, from 0 to `ENDLESS` (n, features).
            turn: 1 or -1 (n,).
        """
        rises = torch.mul(self.sign, turn[:, None])
        torch.gt(rises, 0, out=rises)
        return torch.lerp(low, high, rises, out=rises).abs_()

    def reach(self, room: Tensor, rise: Tensor, rounds: int = _NARROWINGS) -> Tensor:
        """By how much each feature must go so that the function rises by so much.

        Where the room does not allow the rise, all of it is used.

        Args:
            room: As `room` returns it (n, features).
            rise: At least 0 (n,).
            rounds: For L1, how precisely the shortest way is sought; with ten it is longer by a thousandth at
                most in practice.
        """
        return self._greedy(room, rise, rounds) if self.norm == "l1" else self._even(room, rise)

    def _even(self, room: Tensor, rise: Tensor) -> Tensor:
        """min(t * rate, room) with the t at which the function has risen."""
        knee = room / self._size.clamp_min(_TINY) if self.norm == "l2" else room
        time = _arrival(knee, self._steep, rise, rounds=_NEWTON[self.norm])[:, None]
        way = torch.mul(self._size, time) if self.norm == "l2" else time
        return torch.minimum(way, room)

    def _greedy(self, room: Tensor, rise: Tensor, rounds: int) -> Tensor:
        """All the room of the features with the largest coefficients, and a part of it at the threshold."""
        low, high, part = _threshold(self._size, self._size * room, rise, rounds=rounds)
        wider, chosen = torch.empty_like(room), torch.empty_like(room)
        torch.ge(self._size, low[:, None], out=wider)
        torch.ge(self._size, high[:, None], out=chosen)
        return torch.lerp(chosen, wider, part[:, None], out=chosen).mul_(room)


def _arrival(knee: Tensor, steep: Tensor, rise: Tensor, *, rounds: int) -> Tensor:
    """The time at which features that rise at the speed `steep` until their `knee` have risen enough: (n,).

    The rise is concave and piecewise linear in the time, so Newton's method, which begins at 0, never goes
    too far, and a round that ends no further feature is exact.

    Args:
        knee: When each feature ends (n, features).
        steep: What it gives in a unit of time (n, features).
        rise: What all of them are to give (n,).
        rounds: At most.
    """
    buffer = torch.empty_like(knee)
    speed = torch.gt(knee, 0, out=buffer).mul_(steep).sum(1)
    time = (rise / speed.clamp_min(_TINY)).clamp_max_(ENDLESS)
    whole, places = time, None
    for _ in range(1, rounds):
        before, speed = speed, torch.gt(knee, time[:, None], out=buffer).mul_(steep).sum(1)
        if reads_freely(knee):
            # The same speed as in the last round: no further feature has ended.
            rows = (speed != before).nonzero()[:, 0]
            if not len(rows):
                break
            if 2 * len(rows) <= len(speed):
                whole = _merged(whole, places, time)
                places = rows if places is None else places[rows]
                knee, steep, rise, time, speed = (
                    column.index_select(0, rows) for column in (knee, steep, rise, time, speed)
                )
                buffer = torch.empty_like(knee)
        left = rise - torch.minimum(knee, time[:, None], out=buffer).mul_(steep).sum(1)
        time = (time + left.clamp_min_(0).div_(speed.clamp_min(_TINY))).clamp_max_(ENDLESS)
    return _merged(whole, places, time)


def _threshold(size: Tensor, gain: Tensor, rise: Tensor, *, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Between which coefficients the threshold lies from which on features give the rise.

    Args:
        size: The coefficients, at least 0 (n, features).
        gain: What each feature gives (n, features).
        rise: What they are to give together (n,).
        rounds: Looks at thresholds between.

    Returns:
        The lower and the upper end, and the part of the features between them that is needed; each is (n,).
    """
    # Each end is a threshold and what the features from it on give.
    lower = torch.stack([torch.zeros_like(rise), gain.sum(1)])
    upper = torch.stack([size.amax(1) * (1 + _FINEST), torch.zeros_like(rise)])
    chosen = torch.empty_like(size)
    for _ in range(rounds):
        # Halfway between the middle and where the secant arrives: that alone leaves one end where it is.
        share = ((lower[1] - rise) / (lower[1] - upper[1]).clamp_min(_TINY)).clamp_(0, 1)
        middle = torch.lerp(lower[0], upper[0], share.add_(0.5).mul_(0.5))
        given = torch.ge(size, middle[:, None], out=chosen).mul_(gain).sum(1)
        enough, point = given >= rise, torch.stack([middle, given])
        lower, upper = torch.where(enough, point, lower), torch.where(enough, upper, point)
    (low, below), (high, above) = lower, upper
    return low, high, ((rise - above) / (below - above).clamp_min(_TINY)).clamp(0, 1)


def _merged(whole: Tensor, places: Tensor | None, part: Tensor) -> Tensor:
    """Put what was found for some of the samples back to the others."""
    return part if places is None else whole.index_copy_(0, places, part)


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
    planes, turn = Planes(norm, slope), 1.0 - 2.0 * (rise < 0)
    way = planes.reach(planes.room(low, high, turn), rise.abs())
    return way.mul_(planes.sign).mul_(turn[:, None])
