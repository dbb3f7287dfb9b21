from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...losses import Loss, loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat
from ..active import Columns, Search
from ..windows import Grid, Span, bumps, spans

_TINY = 1e-12


@attack(
    "square",
    access=Access.SCORE,
    norms={"linf", "l2"},
    reference="Andriushchenko, Croce, Flammarion and Hein 2020, Algorithms 1 to 3",
)
def square(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    queries: Annotated[int, Ge(1)] = 1000,
    p: Annotated[float, Gt(0), Le(1)] = 0.8,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: str = "margin",
) -> Tensor:
    """Square attack: random search that repaints square windows and keeps what raises the loss.

    On inputs without rows and columns the windows are segments of the vector.

    Args:
        queries: Evaluations of the model per sample and restart, the starting point included.
        p: Share of the features that the first windows cover; it is halved as the queries are spent.
        restarts: Random starts; a later one works only on samples that still stand.
        loss: What to maximise: "margin", "ce" or "dlr".
    """
    objective = loss_named(loss)
    search = Search(model, x, y, threat, streams)
    run = _run_l2 if threat.norm == "l2" else _run_linf
    last = x
    for number in range(restarts):
        if not search.restart(number):
            break
        last = run(search, objective, queries, p)
    return search.finish(last)


@dataclass
class _Painting(Columns):
    z: Tensor
    """The best point, flattened (n, features); windows are painted in place."""
    value: Tensor
    """Its loss (n,)."""
    corners: Tensor
    """The lowest corner of the ball, then the highest: (n, 2 * features)."""
    draws: Tensor
    """Row, column and the colour of each channel, for every move of a span: (n, moves, 2 + channels)."""


def _run_linf(search: Search, objective: Loss, queries: int, p: float) -> Tensor:
    """Algorithm 2: from vertical stripes on, windows take their colours from a corner of the ball."""
    grid, shape = Grid.of(search.x), search.x.shape[1:]
    lower, upper = search.ball.lower, search.ball.upper
    stripes = search.streams.integers(2, grid.channels, 1, grid.width).bool()
    start = torch.where(stripes.expand(-1, -1, grid.height, -1).reshape(lower.shape), upper, lower)
    state = _Painting(
        z=start.flatten(1).clone(),
        value=objective(search.look(start), search.y),
        corners=torch.cat([lower.flatten(1), upper.flatten(1)], dim=1),
        draws=search.rows,
    )
    move = 0
    for span in spans(grid, queries, p, start.device, smallest=1, odd=False):
        state.draws = span.draw(search.streams, windows=1, coins=grid.channels)
        for turn in range(span.moves):
            if not search.prune(move, state):
                return state.z.view(-1, *shape)
            _paint(state, span, turn, search, objective)
            move += 1
    return state.z.view(-1, *shape)


def _paint(state: _Painting, span: Span, turn: int, search: Search, objective: Loss) -> None:
    draws = state.draws[:, turn]
    window = span.at(draws[:, 0], draws[:, 1])
    features = state.z.shape[1]
    highest = draws[:, 2:].repeat_interleave(span.height * span.width, dim=1)
    old = state.z.gather(1, window)
    new = state.corners.gather(1, window + highest * features)
    # A window that has its colours already would waste the query; with the opposite ones it does not.
    idle = (new == old).all(1, keepdim=True)
    new = state.corners.gather(1, window + (highest ^ idle) * features)
    state.z.scatter_(1, window, new)
    value = objective(search.look(state.z.view_as(search.x)), search.y)
    better = value > state.value
    state.z.scatter_(1, window, torch.where(better[:, None], new, old))
    state.value = torch.where(better, value, state.value)


@dataclass
class _Relief(Columns):
    delta: Tensor
    """The best perturbation in units of the scale, flattened: (n, features)."""
    value: Tensor
    """Its loss (n,)."""
    low: Tensor
    """The lowest and the highest value that each feature of `delta` may have: (n, features)."""
    high: Tensor
    draws: Tensor
    """Row and column of two windows, orientation and signs, for every move: (n, moves, 5 + channels)."""


def _run_l2(search: Search, objective: Loss, queries: int, p: float) -> Tensor:
    """Algorithm 3: the budget of one window moves into another."""
    grid, scale = Grid.of(search.x), _scale(search)
    state = _Relief(
        delta=_tiles(search, grid),
        value=search.y,
        low=((search.ball.lower - search.x) / scale).flatten(1),
        high=((search.ball.upper - search.x) / scale).flatten(1),
        draws=search.rows,
    )
    _spend(state.delta, state, search.ball.eps)
    state.value = objective(search.look(_point(state.delta, scale, search)), search.y)
    move = 0
    for span in spans(grid, queries, p, search.x.device, smallest=3, odd=True):
        state.draws = span.draw(search.streams, windows=2, coins=1 + grid.channels)
        patterns = bumps(span.height, span.width, search.x)
        for turn in range(span.moves):
            if not search.prune(move, state):
                return _point(state.delta, scale, search)
            delta = _shift(state, span, turn, patterns, search.ball.eps)
            value = objective(search.look(_point(delta, scale, search)), search.y)
            better = value > state.value
            state.delta = torch.where(better[:, None], delta, state.delta)
            state.value = torch.where(better, value, state.value)
            move += 1
    return _point(state.delta, scale, search)


def _shift(state: _Relief, span: Span, turn: int, patterns: Tensor, eps: float) -> Tensor:
    """Clear one window and raise a bump in another, of the length that this makes free: (n, features)."""
    draws = state.draws[:, turn]
    here, there = span.at(draws[:, 0], draws[:, 1]), span.at(draws[:, 2], draws[:, 3])
    channels = span.grid.channels
    by_channel = (len(draws), channels, span.height * span.width)
    signs = (2 * draws[:, 5:, None] - 1).to(state.delta.dtype)
    unused = (eps**2 - state.delta.square().sum(1)).clamp_min(0)[:, None, None]
    old = state.delta.gather(1, here).view(by_channel)
    cleared = state.delta.gather(1, there).view(by_channel)
    delta = state.delta.scatter(1, there, 0.0)
    kept = delta.gather(1, here).view(by_channel)
    free = (kept.square() + cleared.square()).sum(2, keepdim=True) + unused / channels
    new = signs * patterns[draws[:, 4], None] + old / old.norm(dim=2, keepdim=True).clamp_min(_TINY)
    new = new * (free.sqrt() / new.norm(dim=2, keepdim=True).clamp_min(_TINY))
    delta.scatter_(1, here, new.flatten(1))
    _spend(delta, state, eps)
    return delta


def _spend(delta: Tensor, state: _Relief, eps: float) -> None:
    """Make each perturbation as long as the budget allows, in place.

    The range of the features cuts off a part of it, which Algorithm 3 leaves unused; here it is spread
    over the rest. The second round regains nearly all of it, at a fraction of what a projection costs.
    """
    for _ in range(2):
        delta.mul_(eps / delta.norm(dim=1, keepdim=True).clamp_min(_TINY))
        torch.clamp(delta, state.low, state.high, out=delta)


def _tiles(search: Search, grid: Grid) -> Tensor:
    """The start of Algorithm 3: five by five bumps of random sign: (n, features)."""
    x = search.x
    height, width = max(grid.height // 5, 1), max(grid.width // 5, 1)
    down, across = grid.height // height, grid.width // width
    signs = search.streams.signs(grid.channels, down * across, 1, dtype=x.dtype)
    turned = search.streams.integers(2, down * across)
    tiles = signs * bumps(height, width, x)[turned][:, None]
    tiles = tiles.view(len(x), grid.channels, down, across, height, width).transpose(3, 4)
    top, left = (grid.height - down * height) // 2, (grid.width - across * width) // 2
    canvas = x.new_zeros(len(x), grid.channels, grid.height, grid.width)
    inside = canvas[:, :, top : top + down * height, left : left + across * width]
    inside.copy_(tiles.reshape(inside.shape))
    return canvas.flatten(1)


def _point(delta: Tensor, scale: Tensor | float, search: Search) -> Tensor:
    """The input that a perturbation leads to; the clamp takes away what rounding adds."""
    moved = delta.view_as(search.x)
    z = search.x + (moved if isinstance(scale, float) else moved * scale)
    return torch.clamp(z, search.ball.lower, search.ball.upper)


def _scale(search: Search) -> Tensor | float:
    inputs = search.ball.threat.inputs
    if inputs is None or inputs.scale == 1.0:
        return 1.0
    return inputs.like(inputs.scale, search.x)
