"""MART: samples that are misclassified count for more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ...checks import real
from ...classifier import Classifier
from ...losses import cross_entropy
from .adversarial import Bounded
from .distillation import divergence
from .objective import Answers, Batch

__all__ = ["MART"]


@dataclass(frozen=True)
class MART(Bounded):
    """Misclassification-aware adversarial training (Wang et al. 2020, equation 11).

    Boosted cross-entropy at the view, plus the divergence of the answer there from that to the input as it
    is, which counts by how little probability the label has at the input. The view is the one that PGD on
    the cross-entropy finds from a random point of the ball.

    Args:
        threat, steps, step, ramp: As for `Bounded`.
        beta: The weight of the divergence, lambda of the equation.
    """

    beta: float = 5.0

    name = "mart"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("beta", self.beta, closed=True)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        return self.climbed(model, batch, ball, ball.random(batch.streams))

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        nearby = ask(z)
        clean = log_softmax(ask(batch.x), 1)
        unsure = -torch.expm1(clean.gather(1, batch.y[:, None])[:, 0])
        return boosted(nearby, batch.y) + self.beta * unsure * divergence(nearby, clean)


def boosted(logits: Tensor, y: Tensor) -> Tensor:
    """Boosted cross-entropy, -log p[y] - log(1 - largest other p), as equation 11 has it: (n,)."""
    other = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    # 1 - p as the sum of the rest: exact where p is nearly 1, which is where it matters.
    rest = log_softmax(logits, 1).scatter(1, other, -torch.inf).logsumexp(1)
    return cross_entropy(logits, y) - rest
