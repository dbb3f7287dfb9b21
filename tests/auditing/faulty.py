"""Private training with one part exchanged for a faulty one, of which the accountant is not told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustml.defenses.privacy import DifferentialPrivacy
from robustml.defenses.privacy.mechanism import Mechanism, Sampler

Array = np.ndarray[Any, Any]

FAULTS = {
    "noise missing": "noise",
    "noise halved": "noise",
    "noise reused": "noise over steps",
    "noise shared": "noise over weights",
    "clipping missing": "clipping norm",
    "sensitivity doubled": "clipping norm",
    "rate doubled": "sampling rate",
    "rate halved": "sampling rate",
    "shuffled": "draws over steps",
    "rates of their own": "draws of one sample",
    "batches of fixed size": "batch size",
}


@dataclass(frozen=True)
class FaultySampler(Sampler):
    """A sampler with a fault."""

    fault: str = ""
    seed: int = 0

    def draw(self, step: int) -> Tensor:
        rng = np.random.default_rng([self.seed, step])
        batch = round(self.samples * self.rate)
        if self.fault == "shuffled":
            per_epoch = -(-self.samples // batch)
            order = np.random.default_rng([self.seed, step // per_epoch]).permutation(self.samples)
            start = step % per_epoch * batch
            return torch.from_numpy(np.sort(order[start : start + batch]))
        if self.fault == "batches of fixed size":
            return torch.from_numpy(np.sort(rng.permutation(self.samples)[:batch]))
        if self.fault == "rates of their own":
            rates = self.rate * np.where(np.arange(self.samples) % 2, 1.5, 0.5)
            return torch.from_numpy(np.flatnonzero(rng.random(self.samples) < rates))
        factor = {"rate doubled": 2.0, "rate halved": 0.5}[self.fault]
        return self.randomness.chosen(step, self.samples, factor * self.rate)


@dataclass(frozen=True)
class FaultyMechanism(Mechanism):
    """Clipping and noise with a fault."""

    fault: str = ""

    def factors(self, norms: Tensor) -> Tensor:
        if self.fault == "clipping missing":
            return torch.ones_like(norms)
        return super().factors(norms) * (2.0 if self.fault == "sensitivity doubled" else 1.0)

    def noised(self, step: int, sums: Sequence[Tensor]) -> list[Tensor]:
        if self.fault == "noise missing":
            return list(sums)
        if self.fault == "noise reused":
            return super().noised(step % 10, sums)
        if self.fault == "noise shared":
            noise = self.randomness.normal(step, 1) * self.noise_multiplier * self.clipping_norm
            return [each + noise.to(each) for each in sums]
        fresh = super().noised(step, sums)
        if self.fault == "noise halved":
            return [(a + b) / 2 for a, b in zip(fresh, sums, strict=True)]
        return fresh


@dataclass(frozen=True)
class FaultyPrivacy(DifferentialPrivacy):
    """Private training with a fault."""

    fault: str = field(default="", kw_only=True)

    def sampler(self, samples: int, rate: float) -> Sampler:
        right = super().sampler(samples, rate)
        if FAULTS.get(self.fault) in {
            "sampling rate",
            "draws over steps",
            "draws of one sample",
            "batch size",
        }:
            return FaultySampler(samples, rate, right.randomness, self.fault, self.seed or 0)
        return right

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        right = super().mechanism(noise_multiplier)
        return FaultyMechanism(right.clipping_norm, noise_multiplier, right.randomness, self.fault)
