from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...losses import Loss, cross_entropy, margin, targeted_margin
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat
from ..active import Columns, Search
from ..ranking import ranked_targets
from ..windows import Grid

_MOMENTUM = 0.75
_WIDEST = 20  # classes that are worth a backward pass each to find out which is nearest


@dataclass(frozen=True)
class Leg:
    """One short run: where it starts, what it maximises, and whose gradient it follows."""

    start: Literal["uniform", "corners", "stripes"]
    smooth: bool
    loss: Loss | None = None
    """None: the logit of a target class minus the label's."""
    rank: int = 0
    """Which of the nearest classes is the target."""


# The order was measured on six networks (docs/benchmarks): each leg still breaks samples after the others.
_FIRST = (
    Leg("corners", smooth=True, loss=margin),
    Leg("uniform", smooth=True, loss=cross_entropy),
    Leg("stripes", smooth=False, loss=margin),
    Leg("corners", smooth=True, rank=0),
)
_LATER = (
    Leg("uniform", smooth=False, rank=1),
    Leg("stripes", smooth=True, rank=2),
    Leg("corners", smooth=False, rank=0),
    Leg("uniform", smooth=True, loss=margin),
    Leg("stripes", smooth=False, rank=3),
    Leg("corners", smooth=True, loss=cross_entropy),
)


@dataclass
class _State(Columns):
    z: Tensor
    previous: Tensor
    closest: Tensor
    """The highest margin so far (n,)."""


@attack(
    "relay",
    access=Access.GRADIENT,
    norms={"linf", "l2"},
    reference="this project; momentum steps of Croce and Hein 2020, targets of Melamed et al. 2024",
)
def relay(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    legs: Annotated[int, Ge(1)] = 28,
    steps: Annotated[int, Ge(1)] = 12,
    later_steps: Annotated[int, Ge(1)] = 20,
    step_size: Annotated[float, Gt(0)] = 2.0,
    near: Annotated[float, Gt(0), Le(1)] | None = 0.2,
) -> Tensor:
    """Short runs in turn, each with another start, loss and gradient: what one cannot break the next may.

    Gradient attacks fail in different ways: at a bad start, with a loss that points to the wrong class, at
    units that pass no gradient back. Long runs of one kind repeat their failure. Each leg here differs from
    the last in all of these: it starts at random points, corners or stripes of the ball; maximises the
    margin, the cross-entropy or the logit of one of the nearest classes; follows the true gradient or that
    of the surrogates (`robustml.surrogates`). Steps have momentum and shrink to zero along a cosine.

    After four legs the rest is for the samples that came near to breaking. Where none of the four took away
    most of the label's lead, no later one was seen to break a sample (docs/benchmarks).

    Args:
        legs: How many runs.
        steps: Gradient steps of each of the first four.
        later_steps: Gradient steps of each later one.
        step_size: Length of the first step as a share of the budget.
        near: Later runs go on only with samples whose lead fell below this share of what it was without an
            attack; with all survivors if None.
    """
    search = Search(model, x, y, threat, streams)
    # Of each sample of the batch: the highest margin seen, and the lead of the label without an attack.
    closest = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    course = _Course(search, closest, threat.eps * step_size)
    last = x
    for number in range(legs):
        first = number < len(_FIRST)
        if not search.restart(number, None if first or near is None else course.within(near)):
            break
        last = course.run(number, steps if first else later_steps)
    return search.finish(last)


class _Course:
    """What one leg hands on to the next."""

    def __init__(self, search: Search, closest: Tensor, longest: float) -> None:
        self.search = search
        self._closest = closest
        self._longest = longest
        self._lead = torch.zeros_like(closest)
        self._ranked: Tensor | None = None

    def within(self, share: float) -> Tensor:
        """The samples whose lead has fallen below a share of what it was: bool (n,)."""
        return -self._closest <= share * self._lead

    def run(self, number: int, steps: int) -> Tensor:
        """One leg on the active samples: where it ended (n, *shape)."""
        leg, search = _leg(number), self.search
        if leg.loss is None:
            self._aim(leg.rank)

        def towards_target(logits: Tensor, y: Tensor) -> Tensor:
            return targeted_margin(logits, y, search.target)

        loss = leg.loss or towards_target
        start = _start(search, leg.start)
        state = _State(z=start, previous=start, closest=self._closest[search.rows])
        for step in range(steps):
            value, gradient = search.climb(state.z, loss, smooth=leg.smooth)
            if leg.loss is not cross_entropy:
                # Of the margins it is the best one that tells how near the sample came.
                state.closest = torch.maximum(state.closest, value)
            _advance(state, search, gradient, self._longest * (1 + math.cos(math.pi * step / steps)) / 2)
            if not search.prune(step, state):
                return state.z
        search.look(state.z)
        self._closest[search.rows] = state.closest
        return state.z

    def _aim(self, rank: int) -> None:
        search = self.search
        if self._ranked is None:
            nearest, logits = ranked_targets(search, search.x, count=_WIDEST, smooth=True)
            self._ranked = nearest.new_zeros(len(self._closest), nearest.shape[1])
            self._ranked[search.rows] = nearest
            self._lead[search.rows] = -margin(logits, search.y)
        search.aim(self._ranked[:, rank % self._ranked.shape[1]])


def _leg(number: int) -> Leg:
    """The run with this number; each later round aims at farther classes."""
    if number < len(_FIRST):
        return _FIRST[number]
    rounds, place = divmod(number - len(_FIRST), len(_LATER))
    leg = _LATER[place]
    return Leg(leg.start, smooth=leg.smooth ^ (rounds % 2 == 1), loss=leg.loss, rank=leg.rank + 4 * rounds)


def _advance(state: _State, search: Search, gradient: Tensor, length: float) -> None:
    if state.previous is state.z:
        ahead = search.ball.uphill(state.z, gradient, length)
    else:
        ahead = search.ball.swing(state.z, state.previous, gradient, length, _MOMENTUM)
    state.previous, state.z = state.z, ahead


def _start(search: Search, kind: str) -> Tensor:
    x, ball = search.x, search.ball
    if kind == "uniform":
        return ball.random(search.streams)
    grid = Grid.of(x)
    rows = grid.height if kind == "corners" else 1
    signs = search.streams.signs(grid.channels, rows, grid.width, dtype=x.dtype)
    # As far as the range allows; the projection then finds the valid point that is nearest to it.
    delta = signs.expand(-1, -1, grid.height, -1).reshape(len(x), -1) * ball.eps
    return ball.project(ball.point(delta))
