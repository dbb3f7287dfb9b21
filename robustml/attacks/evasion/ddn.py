from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from ...losses import cross_entropy
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns
from ..boundaries import nearest_boundary
from ..nearest import Nearest
from ..planes import ENDLESS
from ..radii import ahead, free_slope, size_of

_SMOOTH_SHARE = 0.6  # of the steps follow the surrogates, if they are asked for
_BEYOND = 1.02  # how much farther than the boundary seems to be the first success is sought
_SLOWEST = 0.002  # the length changes by at least this share of itself
_TINY = 1e-12


@dataclass
class _State(Columns):
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""
    radius: Tensor
    """The size that the next perturbation is given (n,)."""
    won: Tensor
    """Whether it has had a success of its own, bool (n,)."""


@attack(
    "ddn",
    access=Access.GRADIENT,
    norms={"l2"},
    reference="Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger 2019, Algorithm 1",
    minimum=True,
)
def ddn(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(2)] = 100,
    rate: Annotated[float, Gt(0), Lt(1)] = 0.1,
    classes: Annotated[int, Ge(1)] = 3,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """DDN: ascent of the cross-entropy with the length of the perturbation fixed apart from its direction.

    Beyond the paper: the first step leads to the nearest of several linearised boundaries, at the length that
    it seems to take; steps are a share of the length; the length changes less and less and stays below the
    shortest success; the range of the inputs takes part in the steps and in the length.

    Args:
        steps: Evaluations of the model; the last one takes no gradient.
        rate: By how much the length falls after a success and rises otherwise, at first.
        classes: How many classes to look at in the first step, a backward pass each.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    smooth = gradient == "smooth"
    state = _begin(search, classes, rate, smooth=smooth)
    for step in range(1, steps - 1):
        if not search.prune(step - 1, state, done=search.reached <= 0):
            return search.finish()
        _advance(search, state, step / steps, rate, smooth=smooth and step < _SMOOTH_SHARE * steps)
    search.look(search.ball.point(state.delta))
    return search.finish()


def _begin(search: Nearest, classes: int, rate: float, *, smooth: bool) -> _State:
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    delta = torch.zeros_like(low)
    boundary = nearest_boundary(search, delta, low, high, count=classes, smooth=smooth)
    radius = torch.minimum((boundary.away * _BEYOND).clamp(0, ENDLESS), search.reached * (1 - rate))
    won = torch.zeros_like(radius, dtype=torch.bool)
    state = _State(delta, low, high, radius, won)
    _step(state, boundary.slope, 1.0)
    return state


def _advance(search: Nearest, state: _State, time: float, rate: float, *, smooth: bool) -> None:
    """Look at where the last step led, choose the length and take the next step; `time` runs from 0 to 1."""
    point = search.ball.point(state.delta)
    before = search.reached
    _, gradient = search.climb(point, cross_entropy, smooth=smooth)
    near, share = search.reached, (1 + math.cos(math.pi * time)) / 2
    # The length is always below that of the last success, so that every success is nearer.
    success = near < before
    state.won = state.won | success
    # Until there is a success the length must be able to grow for as long as it takes.
    change = rate * torch.where(state.won, share, 1.0) + _SLOWEST
    less = torch.minimum(state.radius, near) * (1 - change)
    more = torch.minimum(state.radius * (1 + change), near * (1 - change / 4))
    state.radius = torch.where(success, less, more).clamp_max(ENDLESS)
    slope = free_slope(search.ball.slope(gradient), state.delta, state.low, state.high)
    _step(state, slope, share)


def _step(state: _State, slope: Tensor, share: float) -> None:
    """Go uphill by a share of the radius and give the result the length of the radius, within the range."""
    further = ahead("l2", state.delta, slope, share * state.radius)
    for _ in range(2):  # the second round makes up for most of what the range has cut off
        size = size_of("l2", further)
        further *= (state.radius / size.clamp_min(_TINY))[:, None]
        torch.clamp(further, state.low, state.high, out=further)
    state.delta = further
