"""Attacks with a goal: the model as it looks when only some answers are worth anything to the attacker."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Logits
from ..surrogates import exact

__all__ = ["Aimed", "outcome", "towards"]


class Aimed:
    """A model of two classes: 0, that no target class wins, and 1, that one does.

    Every attack then reaches for the targets by leaving class 0, whether it follows gradients, scores or
    labels, and the margin of class 0 is the targeted margin.

    Args:
        model: The model under attack.
        targets: The target classes, bool (classes,).
    """

    def __init__(self, model: Logits, targets: Tensor) -> None:
        self._model = model
        self._targets = targets

    def __call__(self, x: Tensor, /) -> Tensor:
        logits = self._model(x)
        # The attack may have put surrogates around this call; they are for the model.
        with exact():
            return towards(logits, self._targets)


def towards(logits: Tensor, targets: Tensor) -> Tensor:
    """The best logit outside of the targets and the best within: (n, 2)."""
    return torch.stack([logits[:, ~targets].amax(1), logits[:, targets].amax(1)], dim=1)


def outcome(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """Logits (n, classes) that are wrong exactly where the model's answer is a target.

    The label stands for every class that is no target of its sample, so that the margin is the targeted
    margin and the largest entry of a wrong row is what the model answers.

    Args:
        logits: Of the model (n, classes).
        y: Labels int64 (n,).
        targets: The target classes of each sample, bool (n, classes); the label is not among them.
    """
    within = logits.masked_fill(~targets, -torch.inf)
    others = logits.masked_fill(targets, -torch.inf).amax(1)
    hit = targets.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    equal = others == within.amax(1)
    low = torch.full((), -torch.inf, dtype=logits.dtype, device=logits.device)
    # The model decides ties by the order of the classes, which the label does not stand in for.
    within = torch.where((equal & ~hit)[:, None], torch.nextafter(within, low), within)
    others = torch.where(equal & hit, torch.nextafter(others, low), others)
    return within.scatter(1, y[:, None], others[:, None])
