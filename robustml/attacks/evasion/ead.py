from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat, reads_freely
from ..penalty import Confident, Stages, bisect, restore_, scaled_margin, scales

_REFINE = 4  # forward passes that move the result to the boundary
# The first weight. On a linear model 1 + l2 suffices; an early success is worth more than a precise one.
_WEIGHT = 20.0
_SLOWEST = 0.01  # the share of the first step that is left at the end of a stage


@dataclass
class _State(Stages):
    scale: Tensor
    """Of the margin to each class (n, classes)."""
    delta: Tensor
    """The perturbation (n, features)."""
    length: Tensor
    """How far the boundary seems to be (n,)."""


@attack(
    "ead",
    access=Access.GRADIENT,
    norms={"l1"},
    reference="Chen et al. 2018, Algorithm 1",
    minimum=True,
)
def ead(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    binary_steps: Annotated[int, Ge(1)] = 5,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] = 0.1,
    l2: Annotated[float, Ge(0)] = 0.03,
    confidence: Annotated[float, Ge(0)] = 0.0,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """EAD: shrinkage steps on an elastic-net distance plus weighted margin, for sparse perturbations.

    Weights, steps and stages are chosen as in `carlini_wagner`; the iteration is that without momentum,
    which does more harm than good when stages begin at the nearest success of those before.

    Args:
        binary_steps: Stages of the search for the weight.
        steps: Gradient steps per stage, at most.
        step_size: Length of the first steps of a stage, relative to the distance of the boundary.
        l2: The part of the squared L2 norm in the distance, as the slope that it has there.
        confidence: By how much a wrong logit must exceed the label's.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Confident(model, x, y, threat, streams, nearest=nearest, start=start)
    search.confidence = confidence
    smooth = gradient == "smooth"
    state = _begin(search, smooth=smooth)
    for step in range(binary_steps * steps):
        objective = scaled_margin(state.scale, confidence)
        point = search.ball.point(state.delta)
        # What the range leaves of it.
        state.delta = search.ball.delta(point)
        value, slope = search.climb(point, objective, smooth=smooth)
        _descend(state, value, search.ball.slope(slope), steps, step_size, l2)
        if (step + 1) % Stages.period(steps) == 0:
            _turn(state, search, steps, binary_steps)
        if not search.prune(step, state, done=state.stage >= binary_steps):
            break
    bisect(search, _REFINE)
    return search.finish()


def _begin(search: Confident, *, smooth: bool) -> _State:
    scale, _, length = scales(search, smooth=smooth, confidence=search.confidence)
    delta = search.ball.delta(search.x)
    return _State(
        **vars(Stages.begin(torch.full_like(length, _WEIGHT))),
        scale=scale,
        delta=delta,
        length=length,
    )


def _descend(state: _State, value: Tensor, slope: Tensor, steps: int, step_size: float, l2: float) -> None:
    """One step of iterative shrinkage (ISTA, equation 6), shorter where the penalty weighs more.

    It overwrites `slope`.
    """
    delta, weight = state.delta, state.weight
    distance = torch.linalg.vector_norm(delta, dim=1).square_().mul_(l2 / 2).div_(state.length)
    distance += delta.abs().sum(1)
    state.note(torch.addcmul(distance, weight, value.clamp_max(0), value=-1), value > 0)
    decay = (1 - state.age / steps).clamp_min(_SLOWEST) / weight.clamp_min(1).sqrt()
    share = (step_size * decay)[:, None]
    length = share * state.length[:, None]
    # Where a wrong logit leads by enough, the distance alone counts.
    moved = slope.mul_((weight * (value <= 0))[:, None] * length)
    moved.addcmul_(delta, 1 - l2 * share)
    # What is left after the shrinkage towards 0. To clamp by rows takes four times as long as these two.
    lost = torch.minimum(moved, length, out=delta)
    state.delta = moved.sub_(torch.maximum(lost, -length, out=lost))


def _turn(state: _State, search: Confident, steps: int, stages: int) -> None:
    over = state.turn(steps, stages)
    if reads_freely(over) and not bool(over.any()):
        return
    restore_(search, state.delta, over)
    # From a point near a boundary the plain margin leads on; the distances measured at x mean little there.
    state.scale = torch.where(over[:, None], state.scale.mean(1, keepdim=True), state.scale)
    known = over & (search.reached < torch.inf)
    state.length = torch.where(known, search.reached, state.length)
