"""What a step of training minimises: an objective, to which terms and perturbed weights may be added."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...inputs import InputSpec
from ...losses import cross_entropy
from ...sampling import Streams
from ...threats import Ball, Threat

__all__ = ["Answers", "Batch", "Objective", "Standard", "Term", "ascend"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Batch:
    """What one step is about.

    Attributes:
        x: Inputs (n, *shape), in input units.
        y: Labels int64 (n,).
        ids: What the samples are called, int64 (n,): they key the random numbers of each.
        streams: Random numbers for this step, one stream per sample.
        progress: The share of the run that lies behind this step, from 0 to 1.
        memory: What an objective keeps from step to step within an epoch.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    streams: Streams
    progress: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


class Answers:
    """The model in training, which is not asked twice about the very same tensor."""

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self._known: list[tuple[Tensor, Tensor]] = []
        self._split: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (n, classes), with the graph that leads to the weights."""
        for asked, logits in self._known:
            if asked is x:
                return logits
        logits = self.model(x)
        self._known.append((x, logits))
        return logits

    def views(self, z: Tensor, n: int) -> tuple[Tensor, ...]:
        """The views of n samples, (n, *shape) each; the very same tensors whenever it is asked."""
        if len(z) == n:
            return (z,)
        for whole, parts in self._split:
            if whole is z:
                return parts
        self._split.append((z, torch.split(z, n)))
        return self._split[-1][1]

    def right(self, y: Tensor) -> Tensor:
        """How many samples the first answer got right, a tensor of one number."""
        if not self._known:
            return torch.zeros((), device=y.device)
        logits = self._known[0][1].detach()
        return (logits[: len(y)].argmax(1) == y).sum()


class Objective(ABC):
    """An objective. Subclasses are frozen dataclasses, whose fields are what a recipe sets.

    A step crafts views of the batch, asks for one loss per sample, and goes down their mean. That the two are
    apart is what differential privacy and perturbed weights need: crafting leaves no trace in the weights'
    gradients, and a sample with all of its views has one loss.
    """

    name: ClassVar[str]

    @property
    def threats(self) -> tuple[Threat, ...]:
        """What it defends against; the validation that chooses the epoch attacks within all of them."""
        return ()

    @property
    def replays(self) -> int:
        """How many steps are made on each batch."""
        return 1

    @property
    def follows(self) -> bool:
        """Whether `absorb` wants the gradient that a step has left in its views."""
        return False

    def within(self, inputs: InputSpec) -> Objective:
        """The same objective with its threat models bound to a space of inputs."""
        return self

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        """Views of the batch to learn from; the model is in evaluation mode meanwhile.

        They are (n, *shape); several views of each sample are (views * n, *shape), all samples in turn.
        """
        return batch.x

    @abstractmethod
    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        """One loss per sample (n,), given the views that were crafted."""

    def absorb(self, batch: Batch, gradient: Tensor) -> None:  # noqa: B027
        """Learn from the gradient of the step with respect to the views, if it `follows`."""

    def perturbed(
        self, model: Classifier, batch: Batch, z: Tensor
    ) -> contextlib.AbstractContextManager[None]:
        """What the weights are while the losses are taken; the step is made from what they were before."""
        return contextlib.nullcontext()

    def check(self, model: Classifier) -> None:  # noqa: B027
        """Refuse a model that it cannot train.

        Raises:
            InputError: saying why.
        """


@dataclass(frozen=True)
class Standard(Objective):
    """Cross-entropy on the data as it is: no defense."""

    name = "standard"

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return cross_entropy(ask(batch.x), batch.y)


class Term(ABC):
    """Something that is added to any objective: a frozen dataclass with a `weight`."""

    name: ClassVar[str]
    weight: float

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor | None:
        """One value per sample (n,), or None for a term that is about the weights alone."""
        return None

    def penalty(self, module: nn.Module) -> Tensor | None:
        """One value, about the weights alone; None for a term that is about samples."""
        return None


def ascend(
    ask: Callable[[Tensor], Tensor],
    ball: Ball,
    y: Tensor,
    start: Tensor,
    *,
    steps: int,
    length: float,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Projected gradient ascent on the inputs (Madry et al. 2018, section 2.1): points of the ball.

    Weights get no gradients, and samples that are misclassified go on: they are to be learned from.

    Args:
        ask: Gives logits (n, classes).
        ball: The balls around the inputs.
        y: What the loss takes beside the logits: labels int64 (n,), or whatever else it wants.
        start: Where to begin (n, *shape).
        steps: Gradient steps.
        length: Of each step, in units of the norm.
        loss: To be maximised: one value per sample.
    """
    z = start
    for _ in range(steps):
        # Where features are whole numbers or groups, the model sees valid points (straight-through).
        point = ball.snap(z).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(ask(point), y).sum(), point)
        z = ball.uphill(z, gradient, length)
    return ball.snap(z).detach()


def total(objective: Objective, terms: Sequence[Term], ask: Answers, batch: Batch, z: Tensor) -> Tensor:
    """The losses of a batch with all terms that are about samples: (n,)."""
    losses = objective.losses(ask, batch, z)
    for term in terms:
        # Of several views of a sample, a term takes the mean.
        values = [term.losses(ask, batch, view) for view in ask.views(z, len(batch))]
        found = [value for value in values if value is not None]
        if found:
            losses = losses + term.weight * (found[0] if len(found) == 1 else torch.stack(found).mean(0))
    return losses
