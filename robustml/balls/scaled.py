"""Scaling within a box, the projection onto a Euclidean ball: the factor for every row of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .waiting import reads_freely

__all__ = ["scaled"]

_ROUNDS = 12
_TINY = 1e-12  # a radius below it, 0 above all, is worked out at this size: squares must not underflow
_ROUNDING = 8  # units in the last place within which a square cannot be told from another
_FEW = 4  # to copy rows out pays once no more than one in so many is left
_LEAST = 1e-6  # a round lowers the square of the factor to no less than this share of it


def scaled(delta: Tensor, low: Tensor, high: Tensor, radius: Tensor | float) -> Tensor:
    """The point nearest to each perturbation whose Euclidean norm is at most the radius, within the box.

    That is clip(t * delta) with the t that makes its norm the radius, 1 where it is no longer than that. The
    square of the norm is concave and piecewise linear in the square of t, so Newton's method is exact once it
    is on the right piece; from its second round on it comes from below.

    Args:
        delta: Perturbations (n, features).
        low: Lowest value of each feature, at most 0, perhaps infinite (n, features).
        high: Highest value of each feature, at least 0, perhaps infinite (n, features).
        radius: Of the ball, at least 0; one, or one per row (n, 1).
    """
    radius = radius if isinstance(radius, Tensor) else delta.new_full((len(delta), 1), radius)
    out = torch.clamp(delta, low, high)
    length = _norm(out)
    # At this factor it is too long, if at all: what is clipped already is not shortened as much as the rest.
    at = (length / radius.clamp_min(_TINY)).clamp_min_(1).reciprocal_()
    if not reads_freely(delta):
        return _closing_in(delta, low, high, radius, at, rounds=_ROUNDS)
    # Asking costs nothing here, and few rows may be left that need the work.
    rows = (length > radius).nonzero()[:, 0]
    if _FEW * len(rows) > len(out):
        return _closing_in(delta, low, high, radius, at, rounds=_ROUNDS)
    if len(rows):
        part = (whole.index_select(0, rows) for whole in (delta, low, high, radius, at))
        out.index_copy_(0, rows, _closing_in(*part, rounds=_ROUNDS))
    return out


def _closing_in(
    delta: Tensor, low: Tensor, high: Tensor, radius: Tensor, at: Tensor, *, rounds: int
) -> Tensor:
    """The rounds of Newton's method from a factor (n, 1) on, and the point that it ends at."""
    precision = _ROUNDING * torch.finfo(delta.dtype).eps
    unit = radius.clamp_min(_TINY)
    out, free = torch.empty_like(delta), torch.empty_like(delta)
    for turn in range(1, rounds + 1):
        torch.clamp(torch.mul(delta, at, out=free), low, high, out=out)
        square = (_norm(out) / unit).square_()
        done = ((square - 1).abs_() <= precision) | ((at >= 1) & (square <= 1))
        rows = (~done).nonzero()[:, 0] if reads_freely(delta) else None
        if rows is not None and not len(rows):
            break
        # A comparison that writes numbers: choosing by a mask costs many times as much.
        moving = (_norm(torch.eq(out, free, out=free).mul_(out)) / unit).square_()
        factor = (1 + (1 - square) / moving).clamp_min_(_LEAST).sqrt_()
        at = torch.where(done, at, at * factor)
        if rows is not None and turn < rounds and _FEW * len(rows) <= len(out):
            part = (whole.index_select(0, rows) for whole in (delta, low, high, radius, at))
            rest = _closing_in(*part, rounds=rounds - turn)
            return _shortened(out, square, radius).index_copy_(0, rows, rest)
    return _shortened(out, square, radius)


def _shortened(out: Tensor, square: Tensor, radius: Tensor) -> Tensor:
    """Scaled down, which stays in the box, where the square of the length is above 1 yet."""
    return out.mul_(square.clamp_min_(1).rsqrt_().mul_((radius / _TINY).clamp_max_(1)))


def _norm(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return norm
