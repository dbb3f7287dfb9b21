from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ...losses import loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Columns, Search
from ..steps import free_gradient, sparse_ascent

# Of the features, the share that an L1 step moves (Tramer and Boneh 2019, section 5, SLIDE).
_L1_SHARE = 0.01
# Iterates count as the same one when no feature differs by more than this share of a step: the same steps
# forth and back leave rounding errors behind.
_SAME = 1e-3


@dataclass
class _State(Columns):
    z: Tensor
    anchor: Tensor
    """An earlier iterate, that of the last step whose number is a power of two (n, *shape)."""
    cycling: Tensor
    """Whether an iterate has come back, bool (n,)."""


@attack(
    "pgd",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1"},
    reference="Madry, Makelov, Schmidt, Tsipras and Vladu 2018, section 2.1; cycles as in Doldo et al. 2025",
)
def pgd(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    loss: str = "ce",
    steps: Annotated[int, Ge(1)] = 40,
    step_size: Annotated[float, Gt(0)] | None = None,
    restarts: Annotated[int, Ge(1)] = 1,
    gradient: Gradient = "true",
    cycles: bool = True,
) -> Tensor:
    """Projected gradient descent from a random start, with steps of a fixed size.

    Args:
        loss: What to maximise: "ce", "dlr" or "margin".
        steps: Gradient steps per restart.
        step_size: Length of a step as a share of the budget; 2.5 / steps if not given, which reaches
            every point of the ball.
        restarts: Random starts; a later one works only on samples that still stand.
        gradient: Follow the "true" gradient, or the "smooth" one of the surrogates.
        cycles: Under Linf, leave a sample whose iterates have begun to repeat: what follows is known.
    """
    objective, smooth = loss_named(loss), gradient == "smooth"
    search = Search(model, x, y, threat, streams)
    length = search.ball.eps * (step_size or 2.5 / steps)
    watch = cycles and threat.norm == "linf"
    z = x
    for number in range(restarts):
        if not search.restart(number):
            break
        state = _begin(search)
        for step in range(steps):
            _, slope = search.climb(state.z, objective, smooth=smooth)
            state.z = _moved(search, state.z, slope, length)
            if watch:
                _compare(state, step, length)
            if not search.prune(step, state, state.cycling):
                break
        z = state.z
        if len(search):
            search.look(z)
    return search.finish(z)


def _begin(search: Search) -> _State:
    start = search.ball.random(search.streams)
    cycling = torch.zeros(len(search), dtype=torch.bool, device=start.device)
    return _State(z=start, anchor=start, cycling=cycling)


def _compare(state: _State, step: int, length: float) -> None:
    """Notice an iterate that was there before: a step depends on the iterate alone (Brent 1980)."""
    apart = (state.z - state.anchor).flatten(1).abs_().amax(1)
    state.cycling = state.cycling | (apart <= _SAME * length)
    if (step + 1) & step == 0:
        state.anchor = state.z


def _moved(search: Search, z: Tensor, gradient: Tensor, length: float) -> Tensor:
    if search.ball.threat.norm != "l1":
        return search.ball.uphill(z, gradient, length)
    # Steepest ascent in L1 moves one feature only, which a bounded range soon stops.
    share = gradient.new_full((len(z),), _L1_SHARE)
    return search.ball.advance(z, sparse_ascent(free_gradient(gradient, z, search.ball), share), length)
