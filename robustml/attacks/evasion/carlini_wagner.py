from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat, reads_freely
from ..penalty import Confident, Stages, bisect, column_if_alike, erase_, restore_, scaled_margin, scales

_BETA1, _BETA2 = 0.9, 0.999  # Adam, as in the paper
# The paper's x = tanh(w) has no slope at the ends of the range, so that a pixel that lies there never moves.
# Here the curve is that of a range wider by this share and the perturbation is clamped to the true one.
_WIDER = 0.5
_FLATTEST = 1 - 1 / (1 + _WIDER) ** 2
_LAST = 0.1  # the length of the steps of the last stage, relative to that of the others
_WIDE = 1e3
_TINY = 1e-30
_REFINE = 4  # forward passes that move the result to the boundary


@dataclass
class _State(Stages):
    scale: Tensor
    """Of the margin to each class (n, classes)."""
    target: Tensor
    """The class whose boundary seemed the nearest at the input; the label once any class will do (n,)."""
    delta: Tensor
    """The perturbation (n, features)."""
    first: Tensor
    second: Tensor
    """Adam's moments."""
    offset: Tensor
    inverse: Tensor
    """What turns a perturbation into the tanh of the paper: (n, features), `inverse` perhaps (n, 1)."""
    length: Tensor
    """How far the boundary seems to be (n,)."""


@attack(
    "carlini-wagner",
    access=Access.GRADIENT,
    norms={"l2"},
    reference="Carlini and Wagner 2017, section VI.A",
    minimum=True,
)
def carlini_wagner(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    binary_steps: Annotated[int, Ge(1)] = 5,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] = 3.0,
    confidence: Annotated[float, Ge(0)] = 0.0,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """Carlini-Wagner: Adam on distance plus weighted margin, with a search for each sample's own weight.

    It differs from the paper in five ways. Values at the ends of their range can move. The first weight and
    the length of the steps come from the linearised distance to the boundary, so that neither depends on the
    scale of logits and inputs. The first stage is aimed at the class with the nearest linearised boundary,
    which is often not that of the largest logit. A stage begins at the nearest success of those before.
    Each sample ends its stages by itself.

    Args:
        binary_steps: Stages of the search for the weight.
        steps: Gradient steps per stage, at most.
        step_size: Length of the first steps of a stage, relative to the distance of the boundary.
        confidence: By how much a wrong logit must exceed the label's.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Confident(model, x, y, threat, streams, nearest=nearest, start=start)
    search.confidence = confidence
    smooth = gradient == "smooth"
    state = _begin(search, smooth=smooth)
    paces = _paces(steps, step_size, state.delta)
    for step in range(binary_steps * steps):
        objective = scaled_margin(state.scale, confidence, state.target)
        point = search.ball.point(state.delta)
        # What the range leaves of it.
        state.delta = search.ball.delta(point)
        value, slope = search.climb(point, objective, smooth=smooth)
        _descend(state, value, search.ball.slope(slope), paces)
        if (step + 1) % Stages.period(steps) == 0:
            _turn(state, search, steps, binary_steps)
        if not search.prune(step, state, done=state.stage >= binary_steps):
            break
    bisect(search, _REFINE)
    return search.finish()


def _begin(search: Confident, *, smooth: bool) -> _State:
    scale, target, length = scales(search, smooth=smooth, confidence=search.confidence)
    delta = search.ball.delta(search.x)
    low, high = search.ball.room()
    # Where the range is endless or all but, the curve is that of a range in which the search will stay.
    wide = _WIDE * length[:, None]
    bottom, top = low.clamp_min(-wide), high.clamp_max(wide)
    half = (top - bottom).clamp_min(_TINY) * ((1 + _WIDER) / 2)
    return _State(
        # With this weight the minimum would lie on the boundary if that were a plane.
        **vars(Stages.begin(2 * length)),
        scale=scale,
        target=target,
        delta=delta,
        first=torch.zeros_like(delta),
        second=torch.zeros_like(delta),
        offset=-(bottom + top) / (2 * half),
        inverse=column_if_alike(1 / half),
        length=length,
    )


def _paces(steps: int, step_size: float, like: Tensor) -> Tensor:
    """How long the steps of a stage are by their number, from 1, relative to the distance of the boundary."""
    count = steps + Stages.period(steps) + 1
    age = torch.arange(count, dtype=like.dtype, device=like.device).clamp_min_(1)
    even = (1 - _BETA2**age).sqrt() / (1 - _BETA1**age)
    decay = (1 + torch.cos(math.pi * age / steps)) / 2
    return step_size / math.sqrt(like.shape[1]) * even * decay


def _descend(state: _State, value: Tensor, slope: Tensor, paces: Tensor) -> None:
    """One step of Adam in the variable whose curve the perturbation follows; it overwrites `slope`."""
    delta, weight = state.delta, state.weight
    square = torch.linalg.vector_norm(delta, dim=1).square_()
    state.note(torch.addcmul(square, weight, value.clamp_max(0), value=-1), value > 0)
    # The step of tanh(w) to first order, which is enough for its length; what is constant for a feature
    # cancels out of Adam.
    place = torch.addcmul(state.offset, delta, state.inverse)
    steep = torch.addcmul(place.new_ones(()), place, place, value=-1, out=place).clamp_min_(_FLATTEST)
    active = weight * (value <= 0)
    pull = torch.addcmul(delta, slope, active[:, None], value=-0.5, out=slope).mul_(steep)
    state.first.lerp_(pull, 1 - _BETA1)
    state.second.mul_(_BETA2).addcmul_(pull, pull, value=1 - _BETA2)
    down = torch.add(state.second, _TINY, out=pull).rsqrt_().mul_(state.first).mul_(steep)
    delta.addcmul_(down, (paces[state.age] * state.length)[:, None], value=-1)


def _turn(state: _State, search: Confident, steps: int, stages: int) -> None:
    over = state.turn(steps, stages)
    if reads_freely(over) and not bool(over.any()):
        return
    restore_(search, state.delta, over)
    erase_(over, state.first, state.second)
    state.target = torch.where(over, search.y, state.target)
    known = over & (search.reached < torch.inf)
    share = torch.where(state.stage == stages - 1, _LAST, 1.0)
    state.length = torch.where(known, search.reached * share, state.length)
