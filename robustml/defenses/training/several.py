"""Several threat models at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ...classifier import Classifier
from ...errors import InputError, brief, suggest
from ...inputs import InputSpec
from ...threats import Threat
from .objective import Answers, Batch, Objective

__all__ = ["Several"]

_MODES = ("max", "average")


@dataclass(frozen=True)
class Several(Objective):
    """Objectives with threat models of their own, all at once (Tramer and Boneh 2019).

    Each crafts its view. With "max", a sample is learned from the view whose own loss is the highest, and
    what is minimised is the highest of the losses there, which are one and the same where the objectives are
    of one kind. That costs one more forward pass per objective, and a step on one view. With "average", the
    losses of all views are averaged.

    Robust validation accuracy is what withstands the attacks within all of the threat models.

    Args:
        objectives: As in `(PGD(Linf(0.3)), PGD(L2(2)))`. One that replays batches or perturbs weights cannot
            be among them; `AWP` goes around it all.
        mode: "max" or "average".
    """

    objectives: tuple[Objective, ...]
    mode: Literal["max", "average"] = "max"

    name = "several"

    def __post_init__(self) -> None:
        if not isinstance(self.objectives, (tuple, list)) or len(self.objectives) < 2:
            raise InputError(f"objectives={brief(self.objectives)} is not a list of two objectives or more")
        object.__setattr__(self, "objectives", tuple(self.objectives))
        for each in self.objectives:
            if not isinstance(each, Objective):
                raise InputError(f"objectives holds {brief(each)}, which is not an objective")
            perturbs = type(each).perturbed is not Objective.perturbed
            if each.follows or each.replays > 1 or perturbs or isinstance(each, Several):
                raise InputError(f"objectives holds {each.name!r}, which cannot be one of several")
        if self.mode not in _MODES:
            raise InputError(f"mode={brief(self.mode)} is not known{suggest(str(self.mode), _MODES)}")

    @property
    def threats(self) -> tuple[Threat, ...]:
        return tuple(threat for each in self.objectives for threat in each.threats)

    def within(self, inputs: InputSpec) -> Self:
        return dataclasses.replace(self, objectives=tuple(each.within(inputs) for each in self.objectives))

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        views = [each.craft(model, batch) for each in self.objectives]
        if self.mode == "average":
            return torch.cat(views)
        # With gradients, since there are losses that contain some; the graph goes at once.
        found = [
            each.losses(Answers(model), batch, view).detach()
            for each, view in zip(self.objectives, views, strict=True)
        ]
        worst = torch.stack(found).argmax(0)
        return torch.stack(views)[worst, torch.arange(len(worst), device=worst.device)]

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        if self.mode == "max":
            return torch.stack([each.losses(ask, batch, z) for each in self.objectives]).amax(0)
        views = ask.views(z, len(batch))
        losses = [each.losses(ask, batch, view) for each, view in zip(self.objectives, views, strict=True)]
        return torch.stack(losses).mean(0)

    def check(self, model: Classifier) -> None:
        for each in self.objectives:
            each.check(model)
