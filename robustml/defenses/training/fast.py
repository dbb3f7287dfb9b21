"""Adversarial training for the price of two or three plain steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import real
from ...classifier import Classifier
from ...losses import cross_entropy
from .adversarial import Against
from .objective import Answers, Batch, ascend

__all__ = ["Fast"]


@dataclass(frozen=True)
class Fast(Against):
    """One large gradient step from a random point (FGSM-RS, Wong et al. 2020), with aligned gradients.

    A single step can be overfitted to: from some epoch on the model withstands it and nothing else
    (catastrophic overfitting). What it takes for that is a gradient that turns within the ball, so the
    cosine between the input gradient at the input and at a random point of the ball is to be 1 (GradAlign,
    Andriushchenko and Flammarion 2020, equation 3). That differentiates twice: two more forward passes, and
    three to four times the cost of the step without; leave it out where nothing collapses.

    Gradients are compared in the units of the threat model, features that cannot change left out. A layer
    that normalises over the batch in training couples the samples of a batch in their gradients, too.

    Args:
        threat, ramp: As for `Against`.
        alpha: The length of the step, as a share of eps; 1.25 in Wong et al. 2020.
        align: The weight of 1 - cosine; 0.2 is what the authors of GradAlign take for CIFAR-10 at 8/255; 0
            for none, which is the cheapest and may collapse.
    """

    alpha: float = 1.25
    align: float = 0.2

    name = "fast"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("alpha", self.alpha)
        real("align", self.align, closed=True)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        start = ball.random(batch.streams)
        return ascend(model, ball, batch.y, start, steps=1, length=self.alpha * self.reach(batch))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        losses = cross_entropy(ask(z), batch.y)
        if not self.align:
            return losses
        return losses + self.align * self._turn(ask, batch)

    def _turn(self, ask: Answers, batch: Batch) -> Tensor:
        """1 - cosine of the input gradients at the input and at a random point of its ball: (n,)."""
        ball = self.ball(batch)
        # Streams of their own: the same point, however often the losses of a batch are taken.
        random = ball.snap(ball.random(batch.streams.restart(1)))
        here, there = (
            _direction(ball.slope(_gradient(ask.model, point, batch.y))) for point in (batch.x, random)
        )
        # A sample without a gradient has nothing to align.
        known = here.detach().any(1) & there.detach().any(1)
        return torch.where(known, 1 - (here * there).sum(1), 0)


def _gradient(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """The input gradient of the cross-entropy, which can be differentiated again: (n, *shape)."""
    point = x.detach().requires_grad_()
    loss = cross_entropy(model(point), y).sum()
    (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
    return gradient


def _direction(slope: Tensor) -> Tensor:
    """Each row at length 1; a row of zeros stays."""
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    peak = slope.detach().abs().amax(1, keepdim=True)
    slope = slope / torch.where(peak > 0, peak, 1)
    length: Tensor = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
    return slope / torch.where(peak > 0, length, 1)
