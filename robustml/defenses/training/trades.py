"""TRADES: what accuracy and robustness each get is set by a number."""

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

__all__ = ["TRADES"]

_ROUNDING = 8  # units of rounding within which a divergence cannot be told from none


@dataclass(frozen=True)
class TRADES(Bounded):
    """Cross-entropy on the inputs, plus how far the answers nearby diverge (Zhang et al. 2019, equation 5).

    The second part is the Kullback-Leibler divergence of the answer to the view from the answer to the input
    as it is, and the view is crafted by going up that divergence. Labels are in the first part alone.

    The search begins at a random point of the ball. The authors begin at a Gaussian step of 0.001 from the
    input, which means something else in other units, and which whole numbers would swallow: at the input
    itself the divergence has no slope. Where a step finds the divergence no larger than rounding, it goes up
    the cross-entropy instead.

    Args:
        threat, steps, step, ramp: As for `Bounded`.
        beta: The weight of the divergence, 1 / lambda of the equation; the authors take 1 and 6.
    """

    beta: float = 6.0

    name = "trades"

    def __post_init__(self) -> None:
        super().__post_init__()
        real("beta", self.beta, closed=True)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        with torch.no_grad():
            clean = log_softmax(model(batch.x), 1)

        def apart(logits: Tensor, y: Tensor) -> Tensor:
            value = divergence(logits, clean)
            flat = value.detach() <= _ROUNDING * torch.finfo(value.dtype).eps
            return torch.where(flat, cross_entropy(logits, y), value)

        return self.climbed(model, batch, ball, ball.random(batch.streams), apart)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        # The view is asked first: that is what the accuracy of the epoch counts.
        nearby = ask(z)
        clean = ask(batch.x)
        return cross_entropy(clean, batch.y) + self.beta * divergence(nearby, log_softmax(clean, 1))
