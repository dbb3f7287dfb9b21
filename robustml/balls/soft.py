"""Soft thresholding within a box, the projection onto an L1 ball: the threshold for every row of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .waiting import reads_freely

__all__ = ["headroom", "soft_threshold", "softened"]

_ROUNDS = 20
_FEW = 3  # to copy rows out pays once no more than one in so many is left
_FREE_ROUNDS = 8  # without a bracket
_TINY = 1e-30
_ROUNDING = 8  # units in the last place within which a threshold cannot be told from another


def headroom(delta: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """How far each feature may go in the direction that it already has: (n, features).

    Args:
        delta: Perturbations (n, features).
        down, up: How far each may go in either direction, finite and at least 0 (n, features).
    """
    # A comparison that writes numbers: choosing by a mask costs many times as much.
    rises = torch.gt(delta, 0, out=torch.empty_like(delta))
    return torch.lerp(down, up, rises, out=rises)


def soft_threshold(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The t at which the sum of min(max(size - t, 0), room) is the radius, 0 where less is there: (n, 1).

    The sum falls in t and is piecewise linear, so Newton's method is exact once it is on the right piece. The
    room makes it neither convex nor concave: the method could run in circles, and is held within a bracket
    that every round narrows, by halving it where Newton would leave it. The sum is right to about the
    rounding of the thresholds; rows whose search does not end within 20 rounds get one a little too high.

    Args:
        size: At least 0 (n, features).
        room: How much may be left of each feature at most, at least 0, perhaps infinite (n, features).
        radius: Of the ball, at least 0 (n, 1).
    """
    if not reads_freely(size):
        return _bracketed(size, room, radius)
    at, rows = _newton(size, room, radius)
    if len(rows):
        part = (whole.index_select(0, rows) for whole in (size, room, radius))
        at.index_copy_(0, rows, _bracketed(*part))
    return at


def _bracketed(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    start = torch.zeros_like(radius)
    return _closing_in(size, room, radius, start, start, size.amax(1, keepdim=True), rounds=_ROUNDS)


def _newton(size: Tensor, room: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method from 0 without a bracket: the thresholds (n, 1), and the rows that need one.

    Few do, and a round with a bracket takes twice as many operations.
    """
    at, kept = torch.zeros_like(radius), torch.minimum(size, room)
    excess = kept.sum(1, keepdim=True).sub_(radius)
    # At 0 less than the radius will do.
    rows = (excess > 0)[:, 0].nonzero()[:, 0]
    if len(rows) < len(size):
        size, room, radius, excess = (whole.index_select(0, rows) for whole in (size, room, radius, excess))
    allowed = radius * (_ROUNDING * torch.finfo(size.dtype).eps)
    here, left, going = torch.zeros_like(radius), size, excess > allowed
    kept, free = kept[: len(rows)], torch.empty_like(size)
    for _ in range(_FREE_ROUNDS if len(rows) else 0):
        # Only features strictly between 0 and their room change with the threshold.
        moving = torch.lt(left, room, out=kept).mul_(torch.sign(left, out=free)).sum(1, keepdim=True)
        # Rows that have arrived stay where they are, whatever becomes of the others.
        here = torch.where(going, excess.div_(moving.clamp_min_(_TINY)).add_(here), here)
        left = torch.sub(size, here, out=free).clamp_min_(0)
        excess = torch.minimum(left, room, out=kept).sum(1, keepdim=True).sub_(radius)
        going = excess.abs() > allowed
        left_over = going[:, 0].nonzero()[:, 0]
        if _FEW * len(left_over) <= len(rows):
            at.index_copy_(0, rows, here)
            rows = rows.index_select(0, left_over)
            if not len(rows):
                break
            parts = (size, room, radius, allowed, here, excess, left, going)
            size, room, radius, allowed, here, excess, left, going = (
                part.index_select(0, left_over) for part in parts
            )
            kept, free = kept[: len(rows)], free[: len(rows)]
    return at, rows


def _closing_in(
    size: Tensor, room: Tensor, radius: Tensor, at: Tensor, low: Tensor, high: Tensor, *, rounds: int
) -> Tensor:
    """The rounds of the search from a threshold on, within its bracket; all of them are (n, 1)."""
    precision = _ROUNDING * torch.finfo(size.dtype).eps
    left, free = torch.empty_like(size), torch.empty_like(size)
    done = torch.zeros_like(at, dtype=torch.bool)
    for turn in range(1, rounds + 1):
        torch.sub(size, at, out=left).clamp_min_(0)
        excess = torch.minimum(left, room, out=free).sum(1, keepdim=True) - radius
        done = done | (excess.abs() <= precision * radius) | ((at <= 0) & (excess <= 0))
        # Asking costs nothing here; elsewhere it would cost more than the rounds that it saves.
        rows = (~done).nonzero()[:, 0] if reads_freely(size) else None
        if rows is not None and not len(rows):
            return at
        above = excess > 0
        low, high = torch.where(above, at, low), torch.where(above, high, at)
        # Only features strictly between 0 and their room change with the threshold.
        moving = torch.lt(left, room, out=free).mul_(left.sign_()).sum(1, keepdim=True)
        newton = at + excess / moving.clamp_min(_TINY)
        still = (moving > 0) & ((newton - at).abs() <= precision * at) & ~done
        done = done | still
        # Rather a little too much off than too little.
        at = torch.where(still, at * (1 + precision), at)
        inside = (newton > low) & (newton < high) & (moving > 0)
        at = torch.where(done, at, torch.where(inside, newton, (low + high) / 2))
        if rows is not None and turn < rounds and 2 * len(rows) <= len(at):
            rows = (~done).nonzero()[:, 0]
            part = (whole.index_select(0, rows) for whole in (size, room, radius, at, low, high))
            return at.index_copy_(0, rows, _closing_in(*part, rounds=rounds - turn))
    return torch.where(done, at, high)


def softened(delta: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The point nearest to each perturbation whose L1 norm is at most the radius, within its room.

    Args:
        delta: Perturbations (n, features).
        room: How far each feature may go in the direction that it has, at least 0 (n, features).
        radius: Of the ball, at least 0 (n, 1).
    """
    size = delta.abs()
    size.sub_(soft_threshold(size, room, radius)).clamp_min_(0)
    # The range cuts last, so that a feature at its end stays there to the last bit.
    return torch.minimum(size, room, out=size).copysign_(delta)
