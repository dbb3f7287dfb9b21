from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...losses import loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Ball, Threat, overwrite_
from ..active import Columns, Search
from ..steps import sparse_ascent

Climb = Callable[..., tuple[Tensor, Tensor]]

_MOMENTUM = 0.75
_RISING = 0.75  # a run of steps is healthy when at least this share of them raised the loss
_L1_SHRINK = 1.5  # by how much the L1 schedule reduces the sparsity and the step
_L1_SMALLEST = 10.0  # the L1 step never falls below the first one divided by this
# The L1 ball is so thin that a search does better to start in a wider one: (width, share of the steps).
_L1_STAGES = ((3.0, 0.3), (2.0, 0.3))
_L1_TRIAL = 0.06  # the share that goes first to the ball itself, so that easy samples leave at once
_L1_FEWEST = 10  # steps that are worth dividing


@dataclass
class _State(Columns):
    z: Tensor
    """The iterate (n, *shape)."""
    previous: Tensor
    value: Tensor
    """Loss at the iterate (n,)."""
    gradient: Tensor
    step: Tensor
    """Length of the next step (n,)."""
    best: Tensor
    """The iterate of the highest loss, with its loss and gradient."""
    best_value: Tensor
    best_gradient: Tensor
    rises: Tensor
    """Steps since the last checkpoint that raised the loss (n,)."""
    checkpoint_value: Tensor
    """The highest loss at the last checkpoint (n,)."""
    halved: Tensor
    """Whether the step was halved at the last checkpoint (n,)."""
    density: Tensor
    """L1 only: the share of features that a step moves (n,)."""
    support: Tensor
    """L1 only: how many features `best` had moved at the last checkpoint (n,)."""
    start: Tensor
    """L1 only: where the wider stages start (n, *shape)."""


@attack(
    "apgd",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1"},
    reference="Croce and Hein 2020, Algorithm 1; for L1 Croce and Hein 2021, Algorithm 1",
)
def apgd(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    loss: str = "ce",
    steps: Annotated[int, Ge(1)] = 100,
    restarts: Annotated[int, Ge(1)] = 1,
    gradient: Gradient = "true",
) -> Tensor:
    """Auto-PGD: momentum steps whose size adapts to each sample's progress, from its best point so far.

    Args:
        loss: What to maximise: "ce", "dlr" or "margin".
        steps: Gradient steps per restart.
        restarts: Random starts; a later one works only on samples that still stand.
        gradient: Follow the "true" gradient, or the "smooth" one of the surrogates.
    """
    search = Search(model, x, y, threat, streams)
    climb = functools.partial(search.climb, loss=loss_named(loss), smooth=gradient == "smooth")
    last = x
    for number in range(restarts):
        if not search.restart(number):
            break
        last = ascend(search, climb, steps)
    return search.finish(last)


def ascend(search: Search, climb: Climb, steps: int) -> Tensor:
    """One run of Auto-PGD from a random start: the best point of each active sample (n, *shape).

    Args:
        search: The samples.
        climb: Evaluates the loss and its gradient at a point; `search.climb` with its loss.
        steps: Gradient steps.
    """
    run = _run_l1 if search.ball.threat.norm == "l1" else _run
    return run(search, climb, steps)


def _start(search: Search, climb: Climb, z: Tensor, step: float, *, record: bool = True) -> _State:
    value, gradient = climb(z, record=record)
    n, device = len(z), z.device
    moved = _moved(z, search.x)
    return _State(
        z=z,
        previous=z,
        value=value,
        gradient=gradient,
        step=torch.full((n,), step, dtype=z.dtype, device=device),
        best=z.clone(),
        best_value=value,
        best_gradient=gradient.clone(),
        rises=torch.zeros(n, dtype=torch.int64, device=device),
        checkpoint_value=value,
        halved=torch.ones(n, dtype=torch.bool, device=device),
        density=moved / (z[0].numel() * _L1_SHRINK),
        support=moved,
        start=z,
    )


def _moved(z: Tensor, x: Tensor) -> Tensor:
    """How many features of each input have changed: (n,)."""
    return torch.ne(z, x, out=torch.empty_like(z)).flatten(1).sum(1)


def _run(search: Search, climb: Climb, steps: int) -> Tensor:
    state = _start(search, climb, search.ball.random(search.streams), 2.0 * search.ball.eps)
    checkpoints = _checkpoints(steps)
    since = 0
    for step in range(steps):
        if not search.prune(step, state):
            break
        if step == 0:
            ahead = search.ball.uphill(state.z, state.gradient, state.step)
        else:
            ahead = search.ball.swing(state.z, state.previous, state.gradient, state.step, _MOMENTUM)
        state.previous, state.z = state.z, ahead
        if step == steps - 1:
            # The last gradient would not be used; a plain look is all that is left to do.
            search.look(state.z)
            break
        _evaluate(state, climb)
        since += 1
        if step + 1 in checkpoints:
            _halve(state, since)
            since = 0
    return state.best


def _evaluate(state: _State, climb: Climb, *, record: bool = True) -> None:
    value, gradient = climb(state.z, record=record)
    state.rises = state.rises + (value > state.value)
    better = value > state.best_value
    overwrite_(state.best, better, state.z)
    overwrite_(state.best_gradient, better, gradient)
    state.best_value = torch.where(better, value, state.best_value)
    state.value, state.gradient = value, gradient


def _halve(state: _State, since: int) -> None:
    """Conditions 1 and 2 of the paper: halve the step and go back to the best point."""
    stalled = state.rises <= _RISING * since
    stuck = ~state.halved & (state.checkpoint_value >= state.best_value)
    halve = stalled | stuck
    state.halved = halve
    state.checkpoint_value = state.best_value
    state.step = torch.where(halve, state.step / 2, state.step)
    _return_to_best(state, halve)
    state.rises = torch.zeros_like(state.rises)


def _return_to_best(state: _State, chosen: Tensor) -> None:
    # A step has been taken, so that the iterate and its gradient are tensors of their own.
    overwrite_(state.z, chosen, state.best)
    overwrite_(state.gradient, chosen, state.best_gradient)
    state.value = torch.where(chosen, state.best_value, state.value)


def _checkpoints(steps: int) -> set[int]:
    """The steps after which progress is judged: the fractions of section 3.2, times `steps`."""
    # In percent, since fractions would be rounded: 0.57 * 100 is a little more than 57.
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return {-(-share * steps // 100) for share in percent[1:]}


@dataclass
class _Point(Columns):
    z: Tensor


def _run_l1(search: Search, climb: Climb, steps: int) -> Tensor:
    """Section 4 of the second paper: wider balls first, each stage from the best point of the last."""
    noise = search.streams.normal(search.x[0].numel(), dtype=search.x.dtype)
    point = _Point(z=search.x + noise.view_as(search.x))
    if steps < _L1_FEWEST:
        return _stage(search, climb, point.z, steps, point)
    left = steps - math.ceil(_L1_TRIAL * steps)
    last = _stage(search, climb, point.z, steps - left, point)
    search.prune(0, point)
    if len(search) == 0:
        return last
    for width, share in _L1_STAGES:
        count = math.ceil(share * steps)
        left -= count
        point.z = _widened(search, climb, point.z, count, width)
    return _stage(search, climb, point.z, left, point)


def _widened(search: Search, climb: Climb, z: Tensor, steps: int, width: float) -> Tensor:
    """A stage outside of the ball: nothing that it finds counts, but it finds where to look."""
    threat = search.ball.threat
    widest = threat.widest(threat.inputs) if threat.inputs is not None else math.inf
    ball = threat.at(min(width * threat.eps, widest)).around(search.x)
    state = _start(search, climb, ball.project(z), ball.eps, record=False)
    for step in range(1, steps):
        state.z = _sparse_step(state, ball)
        _evaluate(state, climb, record=False)
        _adapt_sparsity(state, search, ball, step, steps)
    return state.best


def _stage(search: Search, climb: Climb, z: Tensor, steps: int, along: _Point) -> Tensor:
    """A stage inside of the ball; `along` is cut down with the samples that are left."""
    state = _start(search, climb, search.ball.project(z), search.ball.eps)
    state.start = along.z
    for step in range(1, steps + 1):
        if not search.prune(step - 1, state):
            break
        state.z = _sparse_step(state, search.ball)
        if step == steps:
            search.look(state.z)
            break
        _evaluate(state, climb)
        _adapt_sparsity(state, search, search.ball, step, steps)
    along.z = state.start
    return state.best


def _sparse_step(state: _State, ball: Ball) -> Tensor:
    return ball.advance(state.z, sparse_ascent(state.gradient, state.density), state.step)


def _adapt_sparsity(state: _State, search: Search, ball: Ball, step: int, steps: int) -> None:
    """Follow the sparsity of the best point; restart from it when it changed, else shorten the step."""
    if step % max(int(0.04 * steps), 1):
        return
    moved = _moved(state.best, search.x)
    sparser = moved / state.support < 0.95
    shorter = (state.step / _L1_SHRINK).clamp_min(ball.eps / _L1_SMALLEST)
    state.step = torch.where(sparser, torch.full_like(shorter, ball.eps), shorter)
    state.density = moved / (state.z[0].numel() * _L1_SHRINK)
    state.support = moved
    _return_to_best(state, sparser)
