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
from ..boundaries import nearest_boundary, step_across
from ..nearest import Nearest
from ..penalty import bisect
from ..planes import ENDLESS

_PATIENCE = (
    10  # steps after which the overshoot has doubled, which ends the cycles that some samples fall into
)


@dataclass
class _State(Columns):
    delta: Tensor
    """The perturbation (n, features)."""
    low: Tensor
    high: Tensor
    """Its range (n, features)."""
    crossed: Tensor
    """Whether a point was adversarial, bool (n,)."""


@attack(
    "deepfool",
    access=Access.GRADIENT,
    norms={"linf", "l2"},
    reference="Moosavi-Dezfooli, Fawzi and Frossard 2016, Algorithm 2",
    minimum=True,
)
def deepfool(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    start: Tensor | None = None,
    steps: Annotated[int, Ge(1)] = 50,
    classes: Annotated[int, Ge(1)] = 9,
    overshoot: Annotated[float, Ge(0)] = 0.02,
    refine: Annotated[int, Ge(0)] = 5,
    gradient: Gradient = "true",
    nearest: bool = False,
) -> Tensor:
    """DeepFool: from one linearised boundary to the next, until the first of them is really crossed.

    Beyond the paper, features at the end of their range take no part in a step (on images with many black and
    white pixels most of a step would be lost), a sample that does not arrive is stretched more and more, and
    the way back to the input is searched for the boundary.

    Args:
        steps: Linearisations at most; one look more tells where the last step led.
        classes: How many of the likeliest classes to look at, a backward pass each.
        overshoot: By how much the perturbation is stretched, to end behind the boundary; this grows with the
            steps.
        refine: Looks between the input and the point found, at the end.
        gradient: "true" or "smooth": that of the model or of its surrogates.
        nearest: Refine what is within the budget, too.
    """
    search = Nearest(model, x, y, threat, streams, nearest=nearest, start=start)
    low, high = (side.clamp(-ENDLESS, ENDLESS) for side in search.ball.room())
    crossed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    state = _State(torch.zeros_like(low), low, high, crossed)
    for step in range(steps):
        before = search.reached
        stretch = 1 + overshoot * (1 + (step / _PATIENCE) ** 2)
        seen = torch.clamp(state.delta * stretch, state.low, state.high)
        boundary = nearest_boundary(
            search, seen, state.low, state.high, count=classes, smooth=gradient == "smooth"
        )
        state.crossed = state.crossed | (boundary.away < 0) | (search.reached < before)
        ahead = step_across(threat.norm, boundary, state.delta, state.low, state.high)
        # Those that have arrived stay where they are until they leave.
        state.delta = ahead.lerp_(state.delta, state.crossed[:, None].to(ahead.dtype))
        if not search.prune(step, state, done=state.crossed):
            break
    else:
        search.look(search.ball.point(state.delta * stretch))
    if search.restart(1):
        bisect(search, refine)
    return search.finish()
