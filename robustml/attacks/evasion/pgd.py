from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from ...losses import loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat
from ..active import Columns, Search
from ..steps import free_gradient, sparse_ascent

# Of the features, the share that an L1 step moves (Tramer and Boneh 2019, section 5, SLIDE).
_L1_SHARE = 0.01


@dataclass
class _State(Columns):
    z: Tensor


@attack(
    "pgd",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1"},
    reference="Madry, Makelov, Schmidt, Tsipras and Vladu 2018, section 2.1",
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
) -> Tensor:
    """Projected gradient descent from a random start, with steps of a fixed size.

    Args:
        loss: What to maximise: "ce", "dlr" or "margin".
        steps: Gradient steps per restart.
        step_size: Length of a step as a share of the budget; 2.5 / steps if not given, which reaches
            every point of the ball.
        restarts: Random starts; a later one works only on samples that still stand.
    """
    objective = loss_named(loss)
    search = Search(model, x, y, threat, streams)
    length = search.ball.eps * (step_size or 2.5 / steps)
    state = _State(z=x)
    for number in range(restarts):
        if not search.restart(number):
            break
        state.z = search.ball.random(search.streams)
        for step in range(steps):
            _, gradient = search.climb(state.z, objective)
            state.z = search.ball.advance(state.z, _direction(search, state.z, gradient), length)
            if not search.prune(step, state):
                break
        if len(search):
            search.look(state.z)
    return search.finish(state.z)


def _direction(search: Search, z: Tensor, gradient: Tensor) -> Tensor:
    if search.ball.threat.norm != "l1":
        return search.ball.ascent(gradient)
    # Steepest ascent in L1 moves one feature only, which a bounded range soon stops.
    share = gradient.new_full((len(z),), _L1_SHARE)
    return sparse_ascent(free_gradient(gradient, z, search.ball), share)
