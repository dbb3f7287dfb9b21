from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
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
_LEGS = (
    Leg("corners", smooth=True, loss=margin),
    Leg("uniform", smooth=True, loss=cross_entropy),
    Leg("stripes", smooth=False, loss=margin),
    Leg("corners", smooth=True, rank=0),
    Leg("uniform", smooth=False, rank=1),
    Leg("stripes", smooth=True, rank=2),
    Leg("corners", smooth=False, rank=0),
    Leg("uniform", smooth=True, rank=3),
)
_UNTARGETED = 3  # the first so many legs need no ranking of the classes


@dataclass
class _State(Columns):
    z: Tensor
    previous: Tensor


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
    legs: Annotated[int, Ge(1)] = 8,
    steps: Annotated[int, Ge(1)] = 15,
    step_size: Annotated[float, Gt(0)] = 2.0,
) -> Tensor:
    """Short runs in turn, each with another start, loss and gradient: what one cannot break the next may.

    Gradient attacks fail in different ways: at a bad start, with a loss that points to the wrong class, at
    units that pass no gradient back. Long runs of one kind repeat their failure. Each leg here differs from
    the last in all of these: it starts at random points, corners or stripes of the ball; maximises the
    margin, the cross-entropy or the logit of one of the nearest classes; follows the true gradient or that
    of the surrogates (`robustml.surrogates`). Steps have momentum and shrink to zero along a cosine.

    Args:
        legs: How many runs; after eight the same ones follow with fresh starts and farther classes.
        steps: Gradient steps per run.
        step_size: Length of the first step as a share of the budget.
    """
    search = Search(model, x, y, threat, streams)
    ranked = None
    last = x
    for number in range(legs):
        if not search.restart(number):
            break
        leg = _leg(number)
        if leg.loss is None:
            if ranked is None:
                ranked = y[:, None].repeat(1, _WIDEST)
                nearest = ranked_targets(search, search.x, count=_WIDEST, smooth=True)
                ranked = ranked[:, : nearest.shape[1]].index_copy(0, search.rows, nearest)
            search.aim(ranked[:, leg.rank % ranked.shape[1]])
        last = _run(search, leg, steps, threat.eps * step_size)
    return search.finish(last)


def _leg(number: int) -> Leg:
    """The run with this number; later rounds leave out the untargeted ones and aim farther."""
    if number < len(_LEGS):
        return _LEGS[number]
    later = number - len(_LEGS)
    aimed = len(_LEGS) - _UNTARGETED
    leg = _LEGS[_UNTARGETED + later % aimed]
    return Leg(leg.start, smooth=later % 2 == 0, rank=later)


def _run(search: Search, leg: Leg, steps: int, longest: float) -> Tensor:
    def towards_target(logits: Tensor, y: Tensor) -> Tensor:
        return targeted_margin(logits, y, search.target)

    loss = leg.loss or towards_target
    start = _start(search, leg.start)
    state = _State(z=start, previous=start)
    for step in range(steps):
        _, gradient = search.climb(state.z, loss, smooth=leg.smooth)
        length = longest * (1 + math.cos(math.pi * step / steps)) / 2
        ahead = search.ball.advance(state.z, search.ball.ascent(gradient), length)
        if step:
            ahead = torch.lerp(state.z, ahead, _MOMENTUM)
            ahead.add_(state.z - state.previous, alpha=1 - _MOMENTUM)
            ahead = search.ball.project_(ahead)
        state.previous, state.z = state.z, ahead
        if not search.prune(step, state):
            return state.z
    search.look(state.z)
    return state.z


def _start(search: Search, kind: str) -> Tensor:
    x, ball = search.x, search.ball
    if kind == "uniform":
        return ball.random(search.streams)
    grid = Grid.of(x)
    signs = search.streams.signs(
        grid.channels, grid.height if kind == "corners" else 1, grid.width, dtype=x.dtype
    )
    # As far as the range allows; the projection then finds the valid point that is nearest to it.
    delta = signs.expand(-1, -1, grid.height, -1).reshape(len(x), -1) * ball.eps
    return ball.project(ball.point(delta))
