"""Free adversarial training: the gradient of each step also moves the perturbation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...checks import real, whole
from ...classifier import Classifier
from ...losses import cross_entropy
from .adversarial import Against
from .objective import Answers, Batch

__all__ = ["Free"]


@dataclass
class _Slot:
    """A batch that is at work: where its views are before rounding, and how many replays it has left."""

    z: Tensor
    left: int


@dataclass
class _Memory:
    at_work: dict[tuple[int, ...], _Slot] = field(default_factory=dict)
    carried: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Free(Against):
    """Adversarial training on batches that are replayed (Shafahi et al. 2019, Algorithm 1).

    One backward pass gives the gradient for the weights and the one for the perturbation, which moves by it
    for the next replay. The next batch begins with the perturbation that the last one left, place by place,
    also where it is cut into parts; an epoch begins with none (in the paper only the first one does), so
    that a run resumes where an epoch ended.

    An epoch is `replays` times as many steps as usual: ask for as many times fewer epochs. What one sample
    leaves is what another begins with, so the losses of a sample depend on others.

    Args:
        threat, ramp: As for `Against`.
        replays: Steps on each batch, m in the paper.
        step: By how much the perturbation moves after each, as a share of eps.
    """

    replays: int = 8
    step: float = 1.0

    name = "free"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("replays", self.replays, 1)
        real("step", self.step)

    @property
    def follows(self) -> bool:
        return True

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        ball = self.ball(batch)
        memory = _remembered(batch)
        slot = memory.at_work.get(_key(batch))
        if slot is None:
            delta = _fitting(memory.carried.pop(0), batch.x) if memory.carried else 0
            slot = memory.at_work[_key(batch)] = _Slot(ball.project(batch.x + delta), self.replays)
        return ball.snap(slot.z).detach()

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return cross_entropy(ask(z), batch.y)

    def absorb(self, batch: Batch, gradient: Tensor) -> None:
        ball = self.ball(batch)
        memory = _remembered(batch)
        slot = memory.at_work[_key(batch)]
        slot.z = ball.uphill(slot.z, gradient, self.step * self.reach(batch))
        slot.left -= 1
        if not slot.left:
            del memory.at_work[_key(batch)]
            memory.carried.append(slot.z - batch.x)


def _remembered(batch: Batch) -> _Memory:
    memory: _Memory = batch.memory.setdefault("free", _Memory())
    return memory


def _key(batch: Batch) -> tuple[int, ...]:
    """What a batch, or a part of one, is known by within an epoch: its first sample."""
    return tuple(batch.ids[:1].tolist())


def _fitting(delta: Tensor, x: Tensor) -> Tensor:
    """A perturbation for as many samples as there are: cut, or with zeros at the end."""
    missing = len(x) - len(delta)
    return torch.cat([delta, torch.zeros_like(x[:missing])]) if missing > 0 else delta[: len(x)]
