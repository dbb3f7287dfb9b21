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

_OVERSHOOT = 0.02  # by how much a perturbation is stretched, to end behind the boundary
_PATIENCE = 10  # steps without an arrival after which that has doubled


@dataclass
class _State(Columns):
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""
    projected: Tensor
    """Whether it is a projection, bool (n,)."""
    age: Tensor
    """Steps since the last arrival (n,)."""
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
    state = _State(torch.zeros_like(low), low, high, projected=no, age=low.new_zeros(len(low)), done=no)
    for step in range(steps):
        before = search.reached
        seen = torch.clamp(state.delta * _stretch(state), state.low, state.high)
        boundary = nearest_boundary(search, seen, state.low, state.high, count=classes, smooth=smooth)
        crossed = (boundary.away < 0) | (search.reached < before)
        state.done = state.done | (crossed & state.projected) | (search.reached <= 0)
        ahead = step_across("l2", boundary, state.delta, state.low, state.high)
        ahead = ahead.lerp_(_projected(state, seen, boundary), crossed[:, None].to(ahead.dtype))
        # Those that have finished stay where they are until they leave.
        state.delta = ahead.lerp_(state.delta, state.done[:, None].to(ahead.dtype))
        state.projected = crossed
        state.age = (state.age + 1).mul_((~crossed).to(state.age.dtype))
        if not search.prune(step, state, done=state.done):
            return
    search.look(search.ball.point(state.delta * _stretch(state)))


def _stretch(state: _State) -> Tensor:
    return (1 + _OVERSHOOT * (1 + (state.age / _PATIENCE).square()))[:, None]


def _projected(state: _State, seen: Tensor, boundary: Boundary) -> Tensor:
    """The way from the input to the boundary as it looks from the arrival, anew: (n, features)."""
    rise = torch.linalg.vecdot(boundary.slope, seen) + boundary.away
    return to_plane("l2", boundary.slope, rise, state.low, state.high)
