"""Which class to aim at first."""

from __future__ import annotations

import torch
from torch import Tensor

from .active import Search

__all__ = ["ranked_targets"]

_TINY = 1e-12


def ranked_targets(search: Search, z: Tensor, *, count: int, smooth: bool = False) -> tuple[Tensor, Tensor]:
    """The classes that each active sample may be mistaken for, the nearest first.

    Nearest is the one whose decision boundary would be closest to z if the model were linear there: the lead
    of the label's logit, divided by the dual norm of its gradient (MALT, Melamed et al. 2024). Where there
    are more classes than `count`, only those with the largest logits are considered.

    Args:
        search: The samples; one forward pass, and one backward pass per class, are spent on each.
        z: Where to linearise, (n, *shape).
        count: How many classes to rank, at most; k is smaller where there are fewer.
        smooth: Linearise with the surrogates, which also see behind operations without a gradient.

    Returns:
        The classes int64 (n, k), and the logits at z (n, classes).
    """
    chosen: list[Tensor] = []

    def candidates(logits: Tensor) -> Tensor:
        others = logits.scatter(1, search.y[:, None], -torch.inf)
        chosen.append(others.topk(min(count, logits.shape[1] - 1), dim=1).indices)
        return chosen[0]

    logits, gradients = search.slopes(z, candidates, smooth=smooth)
    leads = logits.gather(1, search.y[:, None]) - logits.gather(1, chosen[0])
    steepness = torch.stack([search.ball.dual(gradient) for gradient in gradients.unbind(1)], dim=1)
    return chosen[0].gather(1, (leads / steepness.clamp_min(_TINY)).argsort(dim=1)), logits
