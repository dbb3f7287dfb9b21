from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns
from ..boundaries import fewest_features, nearest_boundary
from ..nearest import Nearest
from ..penalty import scaled_margin
from ..planes import ENDLESS
from ..radii import ahead, dual_of, free_slope, room_of, shrink

_SMOOTH_SHARE = 0.6  # of the steps follow the surrogates, if they are asked for; the rest is precise work
_FASTEST, _SLOWEST = 0.05, 0.001  # how much the radius changes per step, at the start and at the end
_LEAP = 0.2  # how far below the distance reached the linear estimate may pull the radius
_BEYOND = 1.02  # how much farther than the boundary seems to be the first successes are sought
_CREEP, _GROWTH = 1.1, 1.5  # how fast the radius grows, at least and at most, until the first success
# The first step, as a share of the radius (or, for L1 and L0, of what one feature can do).
_STRIDE = {"linf": 2.0, "l2": 2.0, "l1": 0.3, "l0": 0.6}
_TINY = 1e-12


@dataclass
class _State(Columns):
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""
    radius: Tensor
    """The size that it is held to (n,)."""
    room: Tensor
    """The longest way that a feature can go (n,)."""
    won: Tensor
    """Whether it has had a success of its own, bool (n,)."""
    scale: Tensor
    """What turns the lead of each class into a distance (n, classes)."""


@attack(
    "fmn",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1", "l0"},
    reference="Pintor, Roli, Brendel and Biggio 2021, Algorithm 1",
    minimum=True,
)
def fmn(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(2)] = 100,
    classes: Annotated[int, Ge(1)] = 3,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """FMN: ascent of the margin on a sphere that shrinks after a success and grows otherwise.

    Beyond the paper, and why:

    - The first look takes the gradient of several classes and steps towards the nearest of their linearised
      boundaries (MALT, Melamed et al. 2024); the paper's loss rarely leaves the class with the largest logit.
    - After a success the linear estimate of the boundary pulls the radius down faster than a fixed rate can.
    - Steps are steepest ascent in the norm at hand and proportional to the radius, which makes them
      independent of units; features at the end of their range take no part.
    - With `gradient="smooth"` the last two fifths of the steps follow the true gradient again: the surrogates
      find the way around dead units, the true gradient is more precise at the end of it.

    Args:
        steps: Evaluations of the model; the last one takes no gradient.
        classes: How many classes to look at in the first step, a backward pass each.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    smooth = gradient == "smooth"
    state = _begin(search, classes, smooth=smooth)
    for step in range(1, steps - 1):
        if not search.prune(step - 1, state, done=_settled(search)):
            return search.finish()
        _advance(search, state, step / steps, smooth=smooth and step < _SMOOTH_SHARE * steps)
    search.look(search.ball.point(state.delta))
    return search.finish()


def _begin(search: Nearest, classes: int, *, smooth: bool) -> _State:
    """The first step: towards the nearest of several boundaries, as far as it seems to be."""
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    delta = torch.zeros_like(low)
    boundary = nearest_boundary(search, delta, low, high, count=classes, smooth=smooth)
    away = (boundary.away * _BEYOND).clamp(0, ENDLESS)
    state = _State(
        delta=delta,
        low=low,
        high=high,
        radius=torch.minimum(away, search.reached * (1 - _FASTEST)),
        room=room_of(low, high),
        won=torch.zeros_like(away, dtype=torch.bool),
        scale=boundary.scale,
    )
    if search.ball.threat.norm == "l0":
        # The optimum if the model is linear; elsewhere it says how many features to begin with.
        corner = fewest_features(boundary, low, high)
        search.look(search.ball.point(corner))
        state.radius = torch.minimum(corner.count_nonzero(1), search.reached - 1).clamp_min(1)
    _step(search, state, boundary.slope, 0.0)
    return state


def _advance(search: Nearest, state: _State, time: float, *, smooth: bool) -> None:
    """Look at where the last step led, choose the radius and take the next step; `time` runs from 0 to 1."""
    norm = search.ball.threat.norm
    before = search.reached
    point = search.ball.point(state.delta)
    lead, gradient = search.climb(point, scaled_margin(state.scale), smooth=smooth)
    slope = free_slope(search.ball.slope(gradient), state.delta, state.low, state.high)
    success = (lead > 0) | (search.reached < before)
    rise = dual_of(norm, slope, state.low, state.high).clamp_min(_TINY)
    boundary = (search.visited - lead / rise).nan_to_num(ENDLESS)
    _resize(search, state, success, boundary, time)
    _step(search, state, slope, time)


def _resize(search: Nearest, state: _State, success: Tensor, boundary: Tensor, time: float) -> None:
    """The radius of the next step, from the one of the last and the estimated distance of the boundary."""
    rate = _cosine(_FASTEST, _SLOWEST, time)
    near, radius = search.reached, state.radius
    state.won = state.won | success
    # A little beyond the estimate: on it, rounding alone would decide between success and failure.
    smaller = torch.maximum(boundary * (1 + rate / 4), near * (1 - _LEAP))
    smaller = torch.minimum(smaller, near * (1 - rate))
    larger = torch.maximum(radius * _CREEP, torch.minimum(boundary * _BEYOND, radius * _GROWTH))
    larger = torch.where(state.won, radius * (1 + rate), larger)
    larger = torch.minimum(larger, near * (1 - rate / 4))
    state.radius = torch.where(success, smaller, larger).clamp(0, ENDLESS)
    if search.ball.threat.norm == "l0":
        whole = torch.where(success, state.radius.floor(), state.radius.ceil())
        state.radius = torch.minimum(whole, near - 1).clamp_min(1)


def _step(search: Nearest, state: _State, slope: Tensor, time: float) -> None:
    """Ascend along a gradient with respect to `delta` and come back to the radius."""
    norm = search.ball.threat.norm
    reach = {"l1": torch.minimum(state.radius, state.room), "l0": state.room}.get(norm, state.radius)
    length = _STRIDE[norm] * _cosine(1.0, 0.0, time) * reach
    further = ahead(norm, state.delta, slope, length)
    state.delta = shrink(norm, further, state.radius, slope, state.low, state.high)


def _cosine(first: float, last: float, time: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * time)) / 2


def _settled(search: Nearest) -> Tensor:
    """Samples whose nearest adversarial point cannot be improved on: bool (n,)."""
    return search.reached <= (1 if search.ball.threat.norm == "l0" else 0)
