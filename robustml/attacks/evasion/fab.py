from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...losses import Loss
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns
from ..nearest import Nearest
from ..penalty import bisect
from ..planes import ENDLESS, Planes
from ..ranking import ranked_targets

# As in the paper: how far a step goes beyond the boundary, how much of it leads from the input itself, and
# what share of a perturbation is kept after a success.
_BEYOND = 1.05
_TOWARDS_INPUT = 0.1
_KEPT = 0.9
# Back from beyond the boundary a step goes a little less far than out: with equal factors both parts of it
# can add up to a point on the plane itself, where the last digit decides what happens next.
_BACK = 1.04
_REFINE = 3  # forward passes that move the result to the boundary
_RANKED = 9  # classes among which the nearest are chosen, at least
_ROUNDS = 7  # in search of the shortest way to a plane under L1
_TINY = 1e-30


@dataclass
class _State(Columns):
    target: Tensor
    """The class that is being tried, int64 (n,)."""
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""


@attack(
    "fab",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1"},
    reference="Croce and Hein 2020, Algorithm 1; targeted as in AutoAttack",
    minimum=True,
)
def fab(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    targets: Annotated[int, Ge(1)] = 9,
    steps: Annotated[int, Ge(1)] = 100,
    restarts: Annotated[int, Ge(1)] = 1,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """FAB-T: steps to the linearised boundary of one class after another, held close to the input.

    Args:
        targets: How many classes to try, those with the nearest linearised boundaries first.
        steps: Gradient steps per class.
        restarts: Rounds over the classes; the first begins at the input and the others near it.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    smooth = gradient == "smooth"
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    ranking, _ = ranked_targets(search, x, count=max(targets, _RANKED), smooth=smooth)
    count = min(targets, ranking.shape[1])
    for number in range(restarts * count):
        if not search.restart(number):
            break
        target = ranking[search.rows, number % count]
        _run(search, target, steps, smooth=smooth, anew=number >= count)
    bisect(search, _REFINE)
    return search.finish()


def _run(search: Nearest, target: Tensor, steps: int, *, smooth: bool, anew: bool) -> None:
    """The steps towards one class for each active sample."""
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    begin = _near(search) if anew else search.x
    state = _State(target=target, delta=search.ball.delta(begin), low=low, high=high)
    norm = search.ball.threat.norm
    for step in range(steps):
        point = search.ball.point(state.delta)
        before = search.reached
        lead, slope = search.climb(point, _gap(state.target), smooth=smooth)
        success = (lead > 0) | (search.reached < before)
        state.delta = _step(state, norm, lead, search.ball.slope(slope), success)
        if not search.prune(step, state):
            break
    else:
        search.look(search.ball.point(state.delta))


def _near(search: Nearest) -> Tensor:
    """A random point at up to half of the distance that is to be undercut (n, *shape)."""
    far = search.reached.clamp_max(search.budget)
    return search.ball.resized(far / 2).random(search.streams)


def _gap(target: Tensor) -> Loss:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]

    return loss


def _step(state: _State, norm: str, lead: Tensor, slope: Tensor, success: Tensor) -> Tensor:
    """The next perturbation: between the projections of the last one and of 0 onto the linearised boundary.

    After a success the last one is drawn back towards the input first. The paper evaluates the model there
    anew; here the plane of the success serves, which saves half of the forward passes.
    """
    planes = Planes(norm, slope)
    risen = torch.linalg.vecdot(slope, state.delta)
    level = risen - lead
    kept = 1 - (1 - _KEPT) * success.to(lead.dtype)
    base = state.delta * kept[:, None]
    rise = level - kept * risen
    whole_turn, near_turn = 1.0 - 2.0 * (level < 0), 1.0 - 2.0 * (rise < 0)
    whole_way = planes.reach(planes.room(state.low, state.high, whole_turn), level.abs(), _ROUNDS)
    near_room = planes.room(state.low - base, state.high - base, near_turn)
    near_way = planes.reach(near_room, rise.abs(), _ROUNDS)
    near_size, whole_size = _size(norm, near_way), _size(norm, whole_way)
    share = (near_size / (near_size + whole_size).clamp_min(_TINY)).clamp_max(_TOWARDS_INPUT)
    beyond = torch.where(rise < 0, _BACK, _BEYOND)
    near_way.mul_((near_turn * beyond * (1 - share))[:, None])
    near_way.add_(whole_way.mul_((whole_turn * _BEYOND * share)[:, None]))
    base.mul_((1 - share)[:, None]).addcmul_(near_way, planes.sign)
    return torch.clamp(base, state.low, state.high, out=base)


def _size(norm: str, way: Tensor) -> Tensor:
    """The length of changes that are all at least 0, apart from their signs: (n,)."""
    if norm == "l2":
        length: Tensor = torch.linalg.vector_norm(way, dim=1)
        return length
    return way.amax(1) if norm == "linf" else way.sum(1)
