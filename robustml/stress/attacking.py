"""One attack on one batch: metered, and believed only as far as the check outside it confirms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..balls import Ball
from ..classifier import Model
from ..data import Dataset
from ..errors import RunError
from ..losses import is_wrong, margin
from ..registry import Attack
from ..sampling import Streams
from ..threats import Threat
from .folder import Evidence
from .meter import BudgetSpent, Meter
from .plan import Plan

__all__ = ["Bench", "Limits", "Outcome", "Rows", "run_attack"]


@dataclass(frozen=True)
class Bench:
    """The plan with the real model and data on the table."""

    plan: Plan
    model: Model
    data: Dataset
    device: torch.device

    def batch(self, positions: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels and sample ids of some positions of the plan, on the device."""
        ids = np.asarray(self.plan.ids)[positions]
        x = torch.from_numpy(self.data.x[ids]).to(self.device)
        y = torch.from_numpy(self.data.y[ids]).to(self.device)
        return x, y, torch.from_numpy(ids).to(self.device)


@dataclass(frozen=True)
class Rows:
    """The positions of a chunk that a stage may work on: correct on clean data, and still standing."""

    correct: np.ndarray[Any, Any]
    standing: np.ndarray[Any, Any]

    def first(self, samples: int) -> Rows:
        """Only those among the first samples of the plan."""
        return Rows(self.correct[self.correct < samples], self.standing[self.standing < samples])


@dataclass(frozen=True)
class Limits:
    """What a unit may still spend; `on_pass` is told of every forward pass."""

    max_passes: float | None = None
    deadline: float | None = None
    on_pass: Callable[[int], None] | None = None


@dataclass
class Outcome:
    """What an attack achieved on the rows it was given, as confirmed outside it."""

    broken: Tensor
    rescued: int
    unconfirmed: int
    claims: int
    evidence: Evidence
    grid_survivors: int
    status: Any
    meter: Meter
    checks: int


def run_attack(
    bench: Bench,
    attack: Attack,
    options: dict[str, Any],
    threat: Threat,
    purpose: str,
    positions: np.ndarray[Any, Any],
    limits: Limits,
) -> Outcome:
    """Run an attack on some positions of the plan and confirm what it returns.

    Raises:
        RunError: if it returns something that is not one candidate per sample.
    """
    x, y, ids = bench.batch(positions)
    ball = threat.around(x)
    meter = Meter(
        bench.model, ball, y, max_passes=limits.max_passes, deadline=limits.deadline, on_pass=limits.on_pass
    )
    streams = Streams.derive(bench.plan.seed, purpose, ids)
    status = "complete"
    if not len(positions):
        # Not every model answers for an empty batch.
        return _confirm(bench, meter, ball, y, positions, x, status)
    try:
        # Copies: the check below must not depend on what an attack does to its arguments.
        candidates = attack.function(meter, x.clone(), y.clone(), threat=threat, streams=streams, **options)
    except BudgetSpent as spent:
        status, candidates = spent.kind, meter.point
    if candidates.shape != x.shape:
        raise RunError(f"{attack.name} returned shape {tuple(candidates.shape)} for inputs {tuple(x.shape)}")
    return _confirm(bench, meter, ball, y, positions, candidates.detach().to(x.dtype), status)


def _confirm(
    bench: Bench,
    meter: Meter,
    ball: Ball,
    y: Tensor,
    positions: np.ndarray[Any, Any],
    candidates: Tensor,
    status: Any,
) -> Outcome:
    """Believe only what the plain model, in its own precision and another batch, says of valid points."""
    returned, logits = _holds(bench, ball, y, candidates)
    checks = len(y)
    point = candidates.clone()
    # The attack may have visited an adversarial point that it did not return, or that did not hold up.
    second = (meter.hit & ~returned).nonzero()[:, 0]
    broken = returned.clone()
    if len(second):
        kept, kept_logits = _holds(bench, ball.select(second), y[second], meter.point[second])
        checks += len(second)
        better = second[kept]
        point[better], logits[better], broken[better] = meter.point[better], kept_logits[kept], True
    rows = broken.nonzero()[:, 0]
    evidence = _evidence(ball.select(rows), y[rows], positions[rows.cpu().numpy()], point[rows], logits[rows])
    on_grid, grid_checks = _on_grid(bench, y[rows], point[rows])
    return Outcome(
        broken=broken,
        rescued=int((broken & ~returned).sum()),
        unconfirmed=int((meter.hit & ~broken).sum()),
        claims=int((meter.hit | broken).sum()),
        evidence=evidence,
        grid_survivors=on_grid,
        status=status,
        meter=meter,
        checks=checks + grid_checks,
    )


def _holds(bench: Bench, ball: Ball, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is valid and misclassified, with the logits."""
    if not len(z):
        return torch.zeros(0, dtype=torch.bool, device=z.device), z.new_zeros(0, bench.plan.classes)
    with torch.no_grad():
        logits = bench.model(z)
    return is_wrong(logits, y) & ball.contains(z), logits


def _evidence(
    ball: Ball, y: Tensor, positions: np.ndarray[Any, Any], point: Tensor, logits: Tensor
) -> Evidence:
    def column(tensor: Tensor) -> np.ndarray[Any, Any]:
        return tensor.detach().cpu().contiguous().numpy()

    return Evidence(
        position=np.ascontiguousarray(positions, dtype=np.int64),
        x=column(point),
        label=column(logits.argmax(1)),
        margin=column(margin(logits, y)),
        distance=column(ball.distance(point)),
    )


def _on_grid(bench: Bench, y: Tensor, point: Tensor) -> tuple[int, int]:
    """How many adversarial images stay adversarial when stored with 8 bits, and the passes this took."""
    spec = bench.plan.spec
    if not (spec.is_image and spec.bounds == (0.0, 1.0) and len(y)):
        return len(y), 0
    with torch.no_grad():
        logits = bench.model((point * 255).round() / 255)
    return int(is_wrong(logits, y).sum()), len(y)
