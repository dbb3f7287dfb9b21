from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from ...losses import Loss, loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat, overwrite_, per_row, reads_freely
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
    """For every move of a span, where the corner of its window lies: (n, moves)."""
    colors: Tensor
    """The colors that it takes (n, moves, window)."""
    opposite: Tensor
    """The opposite ones, for a window that has its colors already."""


def _run_linf(search: Search, objective: Loss, queries: int, p: float) -> Tensor:
    """Algorithm 2: from vertical stripes on, windows take their colors from a corner of the ball."""
    grid, shape = Grid.of(search.x), search.x.shape[1:]
    lower, upper = search.ball.lower, search.ball.upper
    stripes = search.streams.integers(2, grid.channels, 1, grid.width).bool()
    start = torch.where(stripes.expand(-1, -1, grid.height, -1).reshape(lower.shape), upper, lower)
    state = _Painting(
        z=start.flatten(1).clone(),
        value=objective(search.look(start), search.y),
        corners=search.rows,
        colors=search.rows,
        opposite=search.rows,
    )
    move = 0
    for span in spans(grid, queries, p, start.device, smallest=1, odd=False):
        _mix(state, span, search)
        for turn in range(span.moves):
            if not search.prune(move, state):
                return state.z.view(-1, *shape)
            _paint(state, span, turn, search, objective)
            move += 1
    return state.z.view(-1, *shape)


def _mix(state: _Painting, span: Span, search: Search) -> None:
    """The windows of all moves of a span and their colors, which are a corner of the ball."""
    draws = span.draw(search.streams, windows=1, coins=span.grid.channels)
    state.corners = span.corner(draws[..., 0], draws[..., 1])
    lower, upper = (
        span.ahead(corner.flatten(1), state.corners) for corner in (search.ball.lower, search.ball.upper)
    )
    # To choose by numbers costs a fraction of what choosing by a mask does, and is exact as well.
    highest = draws[..., 2:].to(lower.dtype).repeat_interleave(span.height * span.width, dim=2)
    state.colors, state.opposite = torch.lerp(lower, upper, highest), torch.lerp(upper, lower, highest)


def _paint(state: _Painting, span: Span, turn: int, search: Search, objective: Loss) -> None:
    window, new = span.at(state.corners[:, turn]), state.colors[:, turn]
    old = state.z.gather(1, window)
    # A window that has its colors already would waste the query; with the opposite ones it does not.
    idle = (new - old).abs_().sum(1, keepdim=True).eq(0)
    new = torch.lerp(new, state.opposite[:, turn], idle.to(new.dtype))
    state.z.scatter_(1, window, new)
    value = objective(search.look(state.z.view_as(search.x)), search.y)
    better = value > state.value
    state.z.scatter_(1, window, torch.lerp(old, new, better[:, None].to(new.dtype)))
    state.value = torch.where(better, value, state.value)


@dataclass
class _Relief(Columns):
    delta: Tensor
    """The best perturbation in units of the scale, flattened (n, features); windows are changed in place.
    Stretched to the length of the budget it leads to the best point."""
    point: Tensor
    """The point that is asked about, overwritten by every move: (n, *shape)."""
    value: Tensor
    """The loss of the best perturbation (n,)."""
    used: Tensor
    """Its length, to the power of the norm's order: (n, 1)."""
    corners: Tensor
    """For every move of a span, where the corners lie of the window that is filled and of the one that is
    cleared: (n, moves, 2)."""
    low: Tensor
    """The lowest and the highest value of a perturbation in the window that is filled: (n, moves, window)."""
    high: Tensor
    upright: Tensor
    """Which of two patterns is raised: (n, moves)."""
    signs: Tensor
    """Its sign in each channel: (n, moves, channels, 1)."""


@dataclass(frozen=True)
class _Rules:
    """What holds for every move of a search under L2 or L1."""

    order: int
    eps: float
    channels: int
    unit: Tensor | None
    """The unit of each feature, if it is not 1: a number or (*shape)."""
    ends: tuple[float, float] | None
    """The range of every feature, where it is known to be the same for all."""

    @classmethod
    def of(cls, search: Search, grid: Grid) -> _Rules:
        threat = search.ball.threat
        order = 1 if threat.norm == "l1" else 2
        scaled = threat.inputs is not None and threat.inputs.scale != 1.0
        unit = threat.inputs.like(threat.inputs.scale, search.x) if threat.inputs and scaled else None
        return cls(order, search.ball.eps, grid.channels, unit, _ends(search))

    @property
    def budget(self) -> float:
        return self.eps**self.order

    def power(self, delta: Tensor) -> Tensor:
        """The sum of the powers over the last axis, which is kept."""
        return (delta.square() if self.order == 2 else delta.abs()).sum(-1, keepdim=True)

    def root(self, power: Tensor) -> Tensor:
        return power.sqrt() if self.order == 2 else power

    def length(self, delta: Tensor) -> Tensor:
        """The norm over the last axis, which is kept."""
        # The general norm of torch takes ten times as long for order 1.
        if self.order == 1:
            return delta.abs().sum(-1, keepdim=True)
        length: Tensor = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
        return length

    def stretch(self, used: Tensor) -> Tensor:
        """By which factor perturbations of a power (n, 1) would have the length of the budget."""
        return self.root(self.budget / used.clamp_min(_TINY))

    def point(self, delta: Tensor, search: Search, out: Tensor, stretch: Tensor) -> None:
        """Write the valid points that perturbations lead to, made longer by one factor each (n, 1)."""
        delta = delta.view_as(search.x)
        step = delta if self.unit is None else delta * self.unit
        torch.addcmul(search.x, step, per_row(stretch, step), out=out)
        # Reading the ends of every single feature would take twice as long.
        if self.ends is None:
            torch.clamp(out, search.ball.lower, search.ball.upper, out=out)
        else:
            out.clamp_(*self.ends)


def _ends(search: Search) -> tuple[float, float] | None:
    lower, upper = search.ball.lower, search.ball.upper
    if not len(lower) or not reads_freely(lower):
        return None
    low, high = float(lower.amin()), float(upper.amax())
    same = low == float(lower.amax()) and high == float(upper.amin())
    return (low, high) if same else None


def _run_relief(search: Search, objective: Loss, queries: int, p: float) -> Tensor:
    """Algorithm 3, and its version for L1: the budget of one window moves into another."""
    grid = Grid.of(search.x)
    rules = _Rules.of(search, grid)
    delta = _tiles(search, grid, rules.order)
    delta.mul_(rules.eps / rules.length(delta).clamp_min(_TINY))
    _spend(delta, search, rules)
    point, rows = search.ball.point(delta), search.rows
    used = rules.power(delta)
    state = _Relief(delta, point, search.y, used, corners=rows, low=rows, high=rows, upright=rows, signs=rows)
    state.value = objective(search.look(point), search.y)
    move = 0
    for span in spans(grid, queries, p, point.device, smallest=3, odd=True):
        draws = span.draw(search.streams, windows=2, coins=1 + grid.channels)
        state.corners = span.corner(draws[..., 0:4:2], draws[..., 1:4:2])
        state.low, state.high = (span.ahead(end, state.corners[..., 0]) for end in search.ball.room())
        state.upright, state.signs = draws[..., 4], (2 * draws[..., 5:, None] - 1).to(delta.dtype)
        patterns = bumps(span.height, span.width, delta, rules.order)
        _settle(state, search, rules)
        for turn in range(span.moves):
            if not search.prune(move, state):
                return state.point
            _shift(state, span, turn, patterns, search, objective, rules)
            move += 1
    _settle(state, search, rules)
    return state.point


def _settle(state: _Relief, search: Search, rules: _Rules) -> None:
    """Replace the best perturbation by what the range leaves of it when it is stretched.

    The range cuts off a part, which the papers leave unused; stretching spreads it over all features. To do
    so for good in every move would take as long as the rest of it, so it is done once in a span.
    """
    rules.point(state.delta, search, state.point, rules.stretch(state.used))
    state.delta = search.ball.delta(state.point)
    state.used = rules.power(state.delta)


def _shift(
    state: _Relief, span: Span, turn: int, patterns: Tensor, search: Search, objective: Loss, rules: _Rules
) -> None:
    """Clear one window and raise a bump in another, of the length that this makes free, if that helps."""
    delta = state.delta
    windows = span.at(state.corners[:, turn])
    here, there = windows.unbind(1)
    both = windows.flatten(1)
    before = delta.gather(1, both)
    delta.scatter_(1, there, 0.0)
    bump = patterns.index_select(0, state.upright[:, turn])[:, None] * state.signs[:, turn]
    # The windows may overlap: what is left of this one is not what it was.
    new, used = _raised(state, turn, before, delta.gather(1, here), bump, rules)
    delta.scatter_(1, here, new)
    if _all_pay(rules):
        stretched = delta.clone()
        _spend(stretched, search, rules)
        state.point.copy_(search.ball.point(stretched))
    else:
        rules.point(delta, search, state.point, rules.stretch(used))
    value = objective(search.look(state.point), search.y)
    better = value > state.value
    state.value = torch.where(better, value, state.value)
    if _all_pay(rules):
        overwrite_(delta.scatter_(1, both, before), better, stretched)
        used = rules.power(stretched)
    else:
        # To choose by numbers costs a fraction of what choosing by a mask does, and is exact as well. The
        # bump comes last, since it holds where the windows overlap.
        worse = (~better)[:, None].to(delta.dtype)
        was_here, was_there = before.chunk(2, dim=1)
        delta.scatter_(1, there, was_there * worse).scatter_(1, here, torch.lerp(new, was_here, worse))
    state.used = torch.where(better[:, None], used, state.used)


def _all_pay(rules: _Rules) -> bool:
    """Whether a window gets more than is free, so that all features, small changes first, pay for it."""
    return rules.order == 1 and rules.channels > 1


def _raised(
    state: _Relief, turn: int, before: Tensor, left: Tensor, bump: Tensor, rules: _Rules
) -> tuple[Tensor, Tensor]:
    """What a window is filled with (n, window), and the power of the perturbation then (n, 1).

    Args:
        state: The search.
        turn: The move of its span.
        before: What was in this window, and in the one that is cleared: (n, 2 * window).
        left: What is in it now (n, window).
        bump: To raise, of length 1 in each channel (n, channels, height * width).
        rules: What holds for all moves.
    """
    old, cleared = before.view(len(before), 2, *bump.shape[1:]).unbind(1)
    free = rules.power(cleared).add_(rules.power(left.view_as(bump)))
    others = state.used - free.sum(1)
    if _all_pay(rules):
        free.mul_(rules.channels)
    # To scale the bump and not what it comes on top of saves an operation.
    new = torch.addcmul(old, bump, rules.length(old).clamp_min_(_NOTHING * rules.eps))
    new.mul_(rules.root(free).div(rules.length(new).clamp_min_(_TINY)))
    flat = new.view_as(left)
    torch.clamp(flat, state.low[:, turn], state.high[:, turn], out=flat)
    return flat, others.add_(rules.power(flat))


def _spend(delta: Tensor, search: Search, rules: _Rules) -> None:
    """Make perturbations (n, features) of about the length of the budget as long as it allows, in place.

    The range of the features cuts off a part of them, which the papers leave unused; here it is spread over
    the rest. That regains nearly all of it, at a fraction of what a projection costs.
    """
    low, high = search.ball.room()
    torch.clamp(delta, low, high, out=delta)
    if rules.order == 1:
        _shrink(delta, rules.eps)
    delta.mul_(rules.eps / rules.length(delta).clamp_min_(_TINY))
    torch.clamp(delta, low, high, out=delta)


def _shrink(delta: Tensor, eps: float) -> None:
    """Take the same from every change until they sum to about the budget: a step of Newton's method."""
    size = delta.abs()
    excess = (size.sum(1, keepdim=True) - eps).clamp_min_(0)
    # A comparison that writes numbers: choosing by a mask costs many times as much.
    counted = torch.gt(size, _NOTHING * eps, out=torch.empty_like(size))
    size.sub_(excess / counted.sum(1, keepdim=True).clamp_min_(1)).clamp_min_(0)
    torch.mul(torch.sign(delta, out=counted), size, out=delta)


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
