"""Scaling within a box, the projection onto a Euclidean ball: the factor for every row of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["scaled"]

_ROUNDS = 12
_TINY = 1e-30
_ROUNDING = 8  # units in the last place within which a square cannot be told from another
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
    unit = radius.clamp_min(_TINY) if isinstance(radius, Tensor) else radius
    out = torch.clamp(delta, low, high)
    excess = _norm(out) / unit
    fits = excess <= 1
    # Waiting for the device would cost more than the rounds that it saves.
    waits = delta.device.type == "cpu"
    if waits and bool(fits.all()):
        return out
    precision = _ROUNDING * torch.finfo(delta.dtype).eps
    # At this factor it is too long, if at all: what is clipped already is not shortened as much as the rest.
    at = excess.clamp_min(1).reciprocal_()
    factor, free = torch.empty_like(at), torch.empty_like(out)
    for _ in range(_ROUNDS):
        torch.clamp(torch.mul(delta, at, out=free), low, high, out=out)
        square = (_norm(out) / unit).square_()
        done = fits | ((square - 1).abs_() <= precision)
        if waits and bool(done.all()):
            break
        # A comparison that writes numbers: choosing by a mask costs many times as much.
        moving = (_norm(torch.eq(out, free, out=free).mul_(out)) / unit).square_()
        torch.sqrt((1 + (1 - square) / moving).clamp_min_(_LEAST), out=factor)
        at = torch.where(done, at, at * factor)
    # Scaling down stays in the box.
    return out.mul_(square.clamp_min_(1).rsqrt_())


def _norm(delta: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return norm
