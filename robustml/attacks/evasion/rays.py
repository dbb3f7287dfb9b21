from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat, overwrite_
from ..active import Columns
from ..decisions import Questions
from ..windows import Grid

_PRECISION = 3e-4  # a radius is determined to this share of itself, and has to fall by as much
_LEAP = 0.8  # how far down a radius is looked for first


@dataclass
class _Ray(Columns):
    signs: Tensor
    """The best corner direction (n, features)."""
    radius: Tensor
    """How far the boundary is along it (n,); the widest there is before one was found."""
    first: Tensor
    """The block of features that is being turned around: places from `first` on (n,)."""
    size: Tensor
    """How many features a block holds at this level of the hierarchy (n,)."""
    low: Tensor
    """While the radius with that block turned is narrowed down, its limits (n,); else `high` is 0."""
    high: Tensor


@attack(
    "rays",
    access=Access.DECISION,
    norms={"linf"},
    reference="Chen and Gu 2020, Algorithm 3",
    minimum=True,
)
def rays(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    queries: Annotated[int, Ge(1)] = 1000,
    nearest: bool = False,
) -> Tensor:
    """RayS: turns around ever smaller blocks of a corner direction wherever this brings the boundary nearer.

    The blocks are runs of features in an order that keeps neighbors of a picture together.

    Args:
        start: Adversarial points that are known (n, *shape); the input itself where there is none.
        queries: Evaluations of the model per sample, at most.
        nearest: Go on within the budget, for the nearest adversarial point.
    """
    search = Questions(model, x, y, threat, streams, nearest=nearest, start=start, queries=queries)
    place = _places(search)
    state = _begin(search)
    while search.leave(state):
        _turn(search, state, place)
    return search.finish()


def _begin(search: Questions) -> _Ray:
    delta = search.ball.delta(search.best)
    # Without a range to fill, the radius grows until the model is wrong.
    widest = search.ball.threat.eps if search.ball.threat.inputs else 4 * search.budget
    zeros = torch.zeros_like(search.reached)
    return _Ray(
        signs=torch.where(delta < 0, -1.0, 1.0).to(delta.dtype),
        radius=search.reached.clamp_max(widest),
        first=torch.zeros_like(search.y),
        size=torch.full_like(search.y, delta.shape[1]),
        low=zeros,
        high=zeros,
    )


def _turn(search: Questions, state: _Ray, place: Tensor) -> None:
    """One question: about the best radius with a block turned, or about a shorter one after a yes to that."""
    narrowing = state.high > 0
    first = state.first.int()[:, None]
    inside = (place >= first) & (place < first + state.size.int()[:, None])
    signs = torch.where(inside, -state.signs, state.signs)
    # After a yes, leaps of growing length until a no; between the two, halving.
    leap = (state.high - 4 * (state.radius - state.high)).clamp_min(0)
    middle = search.middle(torch.where(state.low > 0, state.low, leap), state.high)
    length = torch.where(narrowing, middle, state.radius * (1 - _PRECISION))
    wrong = search.ask(search.ball.point(signs * length[:, None]))
    low = torch.where(narrowing & ~wrong, length, state.low)
    high = torch.where(wrong, length, state.high)
    found = narrowing & (high - low <= _PRECISION * high)
    overwrite_(state.signs, found, signs)
    state.radius = torch.where(found, high, state.radius)
    if search.ball.threat.inputs is None:
        state.radius = torch.where(search.reached < torch.inf, state.radius, 2 * state.radius)
    over = found | ~(narrowing | wrong)
    state.low, state.high = torch.where(over, 0, low), torch.where(over, 0, high)
    _next_block(state, over, place.numel())


def _next_block(state: _Ray, over: Tensor, features: int) -> None:
    after = state.first + state.size
    last = after >= features
    finer = torch.where(state.size > 1, (state.size + 1) // 2, features)
    state.first = torch.where(over, torch.where(last, 0, after), state.first)
    state.size = torch.where(over & last, finer, state.size)


def _places(search: Questions) -> Tensor:
    """The place of each feature in the order in which blocks are cut (Morton 1966): (features,)."""
    grid = Grid.of(search.x)
    rows = torch.arange(grid.height, device=search.x.device)[:, None]
    columns = torch.arange(grid.width, device=search.x.device)
    key = torch.zeros_like(rows + columns)
    for bit in range(max(grid.height, grid.width).bit_length()):
        key += ((columns >> bit & 1) << 2 * bit) + ((rows >> bit & 1) << 2 * bit + 1)
    # Channels of a pixel stay together.
    keys = key.flatten() * grid.channels + torch.arange(grid.channels, device=key.device)[:, None]
    return keys.flatten().argsort().argsort().int()
