"""Simulated mechanisms: what phantom canaries would see of a run with a fault, or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robustml.attacks.audit import Claims

Array = np.ndarray[Any, Any]

FAULTS = {
    "noise missing": "noise",
    "noise halved": "noise",
    "noise reused": "noise over steps",
    "noise repeated once": "noise over steps",
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
class Mechanism:
    """A run with so many canaries beside `others` samples."""

    canaries: int = 500
    steps: int = 160
    rate: float = 0.1
    noise: float = 0.3
    norm: float = 1.0
    others: int = 40

    @property
    def claims(self) -> Claims:
        return Claims(self.noise, self.norm, self.rate, self.steps)

    def run(self, seed: int, fault: str = "") -> tuple[Array, Array, int]:
        """What was seen, who was included, and of how many samples."""
        rng = np.random.default_rng([seed, 20])
        included = rng.random(self.canaries) < 0.5
        samples = int(included.sum()) + self.others
        draws = self._draws(rng, samples, fault)
        size = {"clipping missing": 10.0, "sensitivity doubled": 2.0}.get(fault, 1.0)
        noise = rng.normal(size=(self.steps, self.canaries))
        if fault == "noise reused":
            noise = noise[np.arange(self.steps) % 10]
        if fault == "noise repeated once":
            noise[self.steps // 2] = noise[3]
        if fault == "noise shared":
            noise[:] = noise[:, :1]
        noise *= {"noise missing": 0.0, "noise halved": 0.5}.get(fault, 1.0)
        seen = self.noise * noise
        seen[:, included] += size * draws[:, : int(included.sum())]
        return self.norm * seen, included, samples

    def _draws(self, rng: np.random.Generator, samples: int, fault: str) -> Array:
        batch = round(self.rate * samples)
        if fault == "shuffled":
            per_epoch = round(1 / self.rate)
            epochs = -(-self.steps // per_epoch)
            turns = [np.argsort(rng.random(samples)) % per_epoch for _ in range(epochs)]
            rows = [turn == step for turn in turns for step in range(per_epoch)]
            return np.stack(rows[: self.steps])
        if fault == "batches of fixed size":
            return np.stack([np.argsort(rng.random(samples)) < batch for _ in range(self.steps)])
        rates = np.full(samples, self.rate)
        rates *= {"rate doubled": 2.0, "rate halved": 0.5}.get(fault, 1.0)
        if fault == "rates of their own":
            rates *= np.where(np.arange(samples) % 2, 1.5, 0.5)
        return rng.random((self.steps, samples)) < rates
