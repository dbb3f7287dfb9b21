from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns
from ..boundaries import Boundary, nearest_boundary, step_across
from ..nearest import Nearest
from ..penalty import bisect
from ..planes import ENDLESS, to_plane

_OVERSHOOT = 0.02  # by how much of itself a step goes too far, to end behind the boundary


@dataclass
class _State(Columns):
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""
    projected: Tensor
    """Whether it is a projection, bool (n,)."""
    done: Tensor
    """Whether a projection was adversarial, bool (n,)."""


@attack(
    "superdeepfool",
    access=Access.GRADIENT,
    norms={"l2"},
    reference="Abdollahi, Atigh and Moosavi-Dezfooli 2024, Algorithm 2, SDF(infinity, 1)",
    minimum=True,
)
def superdeepfool(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(1)] = 50,
    classes: Annotated[int, Ge(1)] = 9,
    refine: Annotated[int, Ge(0)] = 5,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """SuperDeepFool: DeepFool whose arrivals are projected onto the normal of the boundary at the input.

    DeepFool does not arrive at the nearest point of the boundary; there, the gradient would point away from
    the input. A projection that is adversarial ends the search of its sample, and from one that is not
    DeepFool goes on. Steps and projections take account of the range of the inputs, as in `deepfool`.

    Args:
        steps: Linearisations at most.
        classes: How many of the likeliest classes to look at, a backward pass each.
        refine: Looks between the input and the point found, at the end.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    _run(search, steps, classes, smooth=gradient == "smooth")
    if search.restart(1):
        bisect(search, refine)
    return search.finish()


def _run(search: Nearest, steps: int, classes: int, *, smooth: bool) -> None:
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    no = torch.zeros(len(search), dtype=torch.bool, device=low.device)
    state = _State(torch.zeros_like(low), low, high, projected=no, done=no)
    for step in range(steps):
        before = search.reached
        point = search.ball.point(state.delta)
        boundary = nearest_boundary(search, point, count=classes, smooth=smooth)
        crossed = (boundary.away < 0) | (search.reached < before)
        state.done = state.done | (crossed & state.projected) | (search.reached <= 0)
        ahead = step_across(search, boundary, state.delta, state.low, state.high, _OVERSHOOT)
        back = _projected(search, state, boundary)
        ahead = ahead.lerp_(back, crossed[:, None].to(back.dtype))
        # Those that have finished stay where they are until they leave.
        state.delta = ahead.lerp_(state.delta, state.done[:, None].to(ahead.dtype))
        state.projected = crossed
        if not search.prune(step, state, done=state.done):
            return
    search.look(search.ball.point(state.delta))


def _projected(search: Nearest, state: _State, boundary: Boundary) -> Tensor:
    """The way from the input to the boundary as it looks from the arrival, anew: (n, features)."""
    slope = search.ball.slope(boundary.gradient)
    rise = torch.linalg.vecdot(slope, state.delta) + boundary.away
    whole = to_plane("l2", slope, rise, state.low, state.high)
    return torch.minimum(torch.maximum(whole.mul_(1 + _OVERSHOOT), state.low), state.high)
