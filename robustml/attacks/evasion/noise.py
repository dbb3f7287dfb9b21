from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...threats import Threat
from ..active import Columns, Search


@dataclass
class _State(Columns):
    z: Tensor


@attack(
    "noise",
    access=Access.DECISION,
    norms={"linf", "l2", "l1", "l0"},
    reference="Carlini et al. 2019, section 4.4 (random search as a sanity check)",
)
def noise(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    draws: Annotated[int, Ge(1)] = 100,
) -> Tensor:
    """Random points of the ball, drawn independently: the weakest attack that there is.

    Args:
        draws: Points tried per sample.
    """
    search = Search(model, x, y, threat, streams)
    state = _State(z=x)
    for draw in range(draws):
        state.z = search.ball.random(search.streams)
        search.look(state.z)
        if not search.prune(draw, state):
            break
    return search.finish(state.z)
