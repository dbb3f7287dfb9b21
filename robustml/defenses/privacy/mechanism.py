"""The mechanism of private training: who is sampled, what is clipped, what noise is added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import Randomness

__all__ = ["Mechanism", "Sampler"]

_SLACK = 1e-6  # relative: keeps a clipped norm below the clipping norm in spite of rounding


@dataclass(frozen=True)
class Sampler:
    """Poisson sampling: each sample is taken on its own, with the same probability, at each step.

    Attributes:
        samples: How many there are.
        rate: The probability.
        randomness: Where it comes from.
    """

    samples: int
    rate: float
    randomness: Randomness

    def draw(self, step: int) -> Tensor:
        """The rows that a step takes, int64, ascending; possibly none."""
        return self.randomness.chosen(step, self.samples, self.rate)


@dataclass(frozen=True)
class Mechanism:
    """Clipping and noise.

    Attributes:
        clipping_norm: The largest norm of what one sample contributes to a sum.
        noise_multiplier: Standard deviation of the noise in units of that.
        randomness: Where it comes from.
    """

    clipping_norm: float
    noise_multiplier: float
    randomness: Randomness

    def factors(self, norms: Tensor) -> Tensor:
        """What each sample's gradient is multiplied by (n,), given its norm (n,): at most 1."""
        return ((1 - _SLACK) * self.clipping_norm / norms).clamp(max=1.0)

    def noised(self, step: int, sums: Sequence[Tensor]) -> list[Tensor]:
        """Sums of clipped gradients, each with fresh noise."""
        if not self.noise_multiplier:
            return list(sums)
        noise = self.randomness.normal(step, sum(each.numel() for each in sums))
        noise *= self.noise_multiplier * self.clipping_norm
        parts = torch.split(noise, [each.numel() for each in sums])
        return [part.view_as(each).to(each).add_(each) for each, part in zip(sums, parts, strict=True)]
