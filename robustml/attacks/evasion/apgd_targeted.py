from __future__ import annotations

import functools
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from ...losses import targeted_loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Search
from ..ranking import ranked_targets
from .apgd import ascend


@attack(
    "apgd-t",
    access=Access.GRADIENT,
    norms={"linf", "l2", "l1"},
    reference="Croce and Hein 2020, section 4.1; targets ranked as in Melamed et al. 2024, section 3",
)
def apgd_targeted(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    loss: str = "dlr",
    steps: Annotated[int, Ge(1)] = 100,
    targets: Annotated[int, Ge(1)] = 9,
    restarts: Annotated[int, Ge(1)] = 1,
    gradient: Gradient = "true",
) -> Tensor:
    """Targeted Auto-PGD: one run towards each of the nearest classes; any wrong answer is a success.

    Args:
        loss: What to maximise: "dlr", or "margin", the plain difference of two logits.
        steps: Gradient steps per target and restart.
        targets: How many classes to aim at, in the order of the linearised distance to their boundary.
        restarts: Random starts for each target; a later run works only on samples that still stand.
        gradient: Follow the "true" gradient, or the "smooth" one of the surrogates.
    """
    objective = targeted_loss_named(loss)
    search = Search(model, x, y, threat, streams)
    smooth = gradient == "smooth"

    def towards_target(logits: Tensor, y: Tensor) -> Tensor:
        return objective(logits, y, search.target)

    climb = functools.partial(search.climb, loss=towards_target, smooth=smooth)
    if not len(x):
        return x
    ranked, _ = ranked_targets(search, x, count=targets, smooth=smooth)
    last = x
    for number in range(restarts * ranked.shape[1]):
        search.aim(ranked[:, number % ranked.shape[1]])
        if not search.restart(number):
            break
        last = ascend(search, climb, steps)
    return search.finish(last)
