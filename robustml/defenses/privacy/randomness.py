"""Where the random numbers of private training come from: the operating system, or a seed."""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ...sampling import Streams

__all__ = ["Randomness", "Seeded", "System", "randomness"]


class Randomness(ABC):
    """What decides who is sampled and what noise is added.

    The guarantee holds against those who do not know these numbers.
    """

    name: str

    @abstractmethod
    def words(self, purpose: str, step: int, count: int) -> Tensor:
        """Uniform random words of 32 bits, int32 (count,).

        Args:
            purpose: What they are for: the same words never serve two purposes.
            step: Of the run.
            count: How many.
        """

    def chosen(self, step: int, n: int, rate: float) -> Tensor:
        """Which of n samples a step takes, each on its own with a probability: int64, ascending.

        The probability is rounded down to a multiple of 2**-32, so that it is never above what is accounted.
        """
        threshold = min(math.floor(rate * 2**32), 2**32) - 2**31
        return (self.words("sample", step, n).to(torch.int64) < threshold).nonzero()[:, 0]

    def normal(self, step: int, count: int) -> Tensor:
        """Standard normal numbers, float32 (count,) (Box and Muller 1958)."""
        half = -(-count // 2)
        # Without their sign, since single precision is fine near 0 alone, where the logarithm is steep; and
        # in the middle of 2**31 cells, so that it is never infinite.
        unit = self.words("noise", step, 2 * half).abs_().to(torch.float32).abs_().add_(0.5).mul_(2.0**-31)
        unit.clamp_(max=1 - 2.0**-24)
        radius = unit[:half].log().mul_(-2).sqrt_()
        angle = unit[half:] * (2 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


class System(Randomness):
    """Every bit comes from the operating system's generator, so that no seed can be guessed or kept."""

    name = "operating system"

    def words(self, purpose: str, step: int, count: int) -> Tensor:
        if not count:
            return torch.zeros(0, dtype=torch.int32)
        return torch.frombuffer(bytearray(os.urandom(4 * count)), dtype=torch.int32)


class Seeded(Randomness):
    """A run that can be repeated to the last bit. Whoever knows the seed can undo noise and sampling.

    Args:
        seed: Of the privacy mechanism; not that of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.name = f"seed {seed}"

    def words(self, purpose: str, step: int, count: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{purpose}/{step}".encode(), digest_size=8).digest()
        key = torch.tensor([int.from_bytes(digest, "little", signed=True)])
        return Streams(key).bits(-(-count // 2))[0].view(torch.int32)[:count]


def randomness(seed: int | None) -> Randomness:
    """That of a seed, or of the operating system if there is none."""
    return System() if seed is None else Seeded(seed)
