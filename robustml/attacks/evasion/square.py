from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...losses import Loss, loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat, overwrite_, reads_freely
from ..active import Columns, Search
from ..windows import Grid, Span, bumps, spans

_TINY = 1e-12
_NOTHING = 1e-5  # changes below this share of the budget are what rounding left of larger ones


@attack(
    "square",
    access=Access.SCORE,
    norms={"linf", "l2", "l1"},
    reference="Andriushchenko, Croce, Flammarion and Hein 2020, Algorithms 1 to 3; L1: Croce and Hein 2021",
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
    run = _run_linf if threat.norm == "linf" else _run_relief
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
    old = state.z.gather(1, window)
    new = state.corners.gather(1, _in_corner(window, draws[:, 2:], features))
    # A window that has its colours already would waste the query; with the opposite ones it does not.
    idle = (new == old).all(1, keepdim=True)
    if not reads_freely(idle) or bool(idle.any()):
        new = state.corners.gather(1, _in_corner(window, draws[:, 2:] ^ idle, features))
    state.z.scatter_(1, window, new)
    value = objective(search.look(state.z.view_as(search.x)), search.y)
    better = value > state.value
    state.z.scatter_(1, window, torch.where(better[:, None], new, old))
    state.value = torch.where(better, value, state.value)


def _in_corner(window: Tensor, highest: Tensor, features: int) -> Tensor:
    """Where in `corners` the colours of a window lie, given for each channel whether it takes the highest."""
    by_channel = window.view(*highest.shape, -1)
    return torch.add(by_channel, highest[:, :, None], alpha=features).flatten(1)


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


def _run_relief(search: Search, objective: Loss, queries: int, p: float) -> Tensor:
    """Algorithm 3, and its version for L1: the budget of one window moves into another."""
    grid, order = Grid.of(search.x), 1 if search.ball.threat.norm == "l1" else 2
    low, high = search.ball.room()
    state = _Relief(delta=_tiles(search, grid, order), value=search.y, low=low, high=high, draws=search.rows)
    state.delta.mul_(search.ball.eps / _length(state.delta, order).clamp_min(_TINY))
    _spend(state.delta, state, search.ball.eps, order)
    state.value = objective(search.look(search.ball.point(state.delta)), search.y)
    move = 0
    for span in spans(grid, queries, p, search.x.device, smallest=3, odd=True):
        state.draws = span.draw(search.streams, windows=2, coins=1 + grid.channels)
        patterns = bumps(span.height, span.width, search.x, order)
        for turn in range(span.moves):
            if not search.prune(move, state):
                return search.ball.point(state.delta)
            delta = _shift(state, span, turn, patterns, search.ball.eps, order)
            value = objective(search.look(search.ball.point(delta)), search.y)
            better = value > state.value
            overwrite_(state.delta, better, delta)
            state.value = torch.where(better, value, state.value)
            move += 1
    return search.ball.point(state.delta)


def _shift(state: _Relief, span: Span, turn: int, patterns: Tensor, eps: float, order: int) -> Tensor:
    """Clear one window and raise a bump in another, of the length that this makes free: (n, features)."""
    draws = state.draws[:, turn]
    here, there = span.at(draws[:, 0], draws[:, 1]), span.at(draws[:, 2], draws[:, 3])
    channels = span.grid.channels
    by_channel = (len(draws), channels, span.height * span.width)
    signs = (2 * draws[:, 5:, None] - 1).to(state.delta.dtype)
    unused = (eps**order - _powers(state.delta, order).sum(1)).clamp_min(0)[:, None, None]
    old = state.delta.gather(1, here).view(by_channel)
    cleared = state.delta.gather(1, there).view(by_channel)
    delta = state.delta.scatter(1, there, 0.0)
    kept = delta.gather(1, here).view(by_channel)
    free = (_powers(kept, order) + _powers(cleared, order)).sum(2, keepdim=True) + unused / channels
    # In L1 one window gets more than is free; the rest, and small changes first, pay for it.
    free = free.sqrt() if order == 2 else free * channels
    shape = old / _over_windows(old, order).clamp_min(_NOTHING * eps)
    new = signs * patterns[draws[:, 4], None] + shape
    new = new * (free / _over_windows(new, order).clamp_min(_TINY))
    delta.scatter_(1, here, new.flatten(1))
    _spend(delta, state, eps, order)
    return delta


def _over_windows(values: Tensor, order: int) -> Tensor:
    # The general norm of torch takes ten times as long for order 1.
    if order == 1:
        return values.abs().sum(2, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(values, dim=2, keepdim=True)
    return length


def _powers(values: Tensor, order: int) -> Tensor:
    return values.square() if order == 2 else values.abs()


def _spend(delta: Tensor, state: _Relief, eps: float, order: int) -> None:
    """Make perturbations of about the length of the budget as long as it allows, in place.

    The range of the features cuts off a part of them, which the papers leave unused; here it is spread over
    the rest. That regains nearly all of it, at a fraction of what a projection costs.
    """
    torch.clamp(delta, state.low, state.high, out=delta)
    size = None
    if order == 1:
        size = _shrink(delta, eps)
    delta.mul_(eps / _length(delta, order, size).clamp_min_(_TINY))
    torch.clamp(delta, state.low, state.high, out=delta)


def _length(delta: Tensor, order: int, size: Tensor | None = None) -> Tensor:
    """The norm of each perturbation (n, 1); `size` are the absolute changes, where they are known."""
    if order == 1:
        return (delta.abs() if size is None else size).sum(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return length


def _shrink(delta: Tensor, eps: float) -> Tensor:
    """Take the same from every change until they sum to about the budget: a step of Newton's method.

    Returns:
        The absolute changes that are left.
    """
    size = delta.abs()
    excess = (size.sum(1, keepdim=True) - eps).clamp_min_(0)
    # A comparison that writes numbers: choosing by a mask costs many times as much.
    counted = torch.gt(size, _NOTHING * eps, out=torch.empty_like(size))
    size.sub_(excess / counted.sum(1, keepdim=True).clamp_min_(1)).clamp_min_(0)
    torch.mul(torch.sign(delta, out=counted), size, out=delta)
    return size


def _tiles(search: Search, grid: Grid, order: int) -> Tensor:
    """The start of Algorithm 3: five by five bumps of random sign: (n, features)."""
    x = search.x
    height, width = max(grid.height // 5, 1), max(grid.width // 5, 1)
    down, across = grid.height // height, grid.width // width
    signs = search.streams.signs(grid.channels, down * across, 1, dtype=x.dtype)
    turned = search.streams.integers(2, down * across)
    tiles = signs * bumps(height, width, x, order)[turned][:, None]
    tiles = tiles.view(len(x), grid.channels, down, across, height, width).transpose(3, 4)
    top, left = (grid.height - down * height) // 2, (grid.width - across * width) // 2
    canvas = x.new_zeros(len(x), grid.channels, grid.height, grid.width)
    inside = canvas[:, :, top : top + down * height, left : left + across * width]
    inside.copy_(tiles.reshape(inside.shape))
    return canvas.flatten(1)
