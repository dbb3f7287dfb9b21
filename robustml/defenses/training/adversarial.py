"""Adversarial training by projected gradient ascent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from ...checks import real, share, whole
from ...classifier import Classifier
from ...errors import InputError, brief
from ...inputs import InputSpec
from ...losses import cross_entropy
from ...threats import Ball, Threat
from .objective import Answers, Batch, Loss, Objective, ascend

__all__ = ["PGD", "Against", "Bounded"]

_LEAST = 0.02  # of eps, where it begins to grow


@dataclass(frozen=True)
class Against(Objective):
    """An objective that defends against one threat model.

    Args:
        threat: The threat model; L0 has no gradient steps to train with.
        ramp: The share of the run in which eps grows from 0 to its full size; a small network that meets a
            large eps at once may learn nothing.
    """

    threat: Threat
    ramp: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise InputError(f"threat={brief(self.threat)} is not a threat model, as in Linf(8/255)")
        if self.threat.norm == "l0":
            raise InputError("threat is L0, which has no gradient steps to train with; use L1 or L2")
        share("ramp", self.ramp)

    @property
    def threats(self) -> tuple[Threat, ...]:
        return (self.threat,)

    def reach(self, batch: Batch) -> float:
        """The eps that this batch is trained within."""
        grown = 1.0 if batch.progress >= self.ramp else max(batch.progress / self.ramp, _LEAST)
        return grown * self.threat.eps

    def ball(self, batch: Batch) -> Ball:
        """The balls that this batch is trained within."""
        ball, reach = self.threat.around(batch.x), self.reach(batch)
        if reach == self.threat.eps:
            return ball
        # Not a threat model of that eps: it may be too small for one, where values have levels.
        return ball.resized(batch.x.new_full((len(batch),), reach))

    def within(self, inputs: InputSpec) -> Self:
        return dataclasses.replace(self, threat=self.threat.within(inputs))


@dataclass(frozen=True)
class Bounded(Against):
    """An objective that crafts views within one threat model, by projected gradient ascent.

    Args:
        threat, ramp: As for `Against`.
        steps: Gradient steps that craft a view.
        step: The length of each, as a share of eps; None for 2.5 / steps (Madry et al. 2018, section 5).
    """

    steps: int = 10
    step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("steps", self.steps, 0)
        if self.step is not None:
            real("step", self.step)

    @property
    def length(self) -> float:
        """The length of a step as a share of eps."""
        return 2.5 / max(self.steps, 1) if self.step is None else self.step

    def climbed(
        self,
        ask: Callable[[Tensor], Tensor],
        batch: Batch,
        ball: Ball,
        start: Tensor,
        loss: Loss | None = None,
    ) -> Tensor:
        """The point that the gradient steps of this objective lead to, from a start (n, *shape)."""
        length = self.length * self.reach(batch)
        return ascend(ask, ball, batch.y, start, steps=self.steps, length=length, loss=loss or cross_entropy)


@dataclass(frozen=True)
class PGD(Bounded):
    """Adversarial training: cross-entropy at the worst point that PGD finds (Madry et al. 2018, equation 2).

    Args:
        threat, steps, step, ramp: As for `Bounded`; the search begins at a random point of the ball.
        clean: The share of the loss that goes to the inputs as they are, from 0 to 1.
    """

    clean: float = 0.0

    name = "pgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        share("clean", self.clean)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        return self.climbed(model, batch, ball, ball.random(batch.streams))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        losses = cross_entropy(ask(z), batch.y)
        if not self.clean:
            return losses
        return (1 - self.clean) * losses + self.clean * cross_entropy(ask(batch.x), batch.y)
