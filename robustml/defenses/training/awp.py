"""Adversarial weight perturbation: a loss that is low around the weights, too."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ...checks import real
from ...classifier import Classifier
from ...errors import InputError
from ...inputs import InputSpec
from ...threats import Threat
from .objective import Answers, Batch, Objective

__all__ = ["AWP"]


@dataclass(frozen=True)
class AWP(Objective):
    """Any objective, at the worst weights nearby (Wu et al. 2020, Algorithm 1).

    Once views are crafted, the weights of each layer go up the objective by one step whose length is a share
    of theirs; the gradient is taken there, and the step is made from what the weights were before. It
    flattens the loss around the weights, and robust overfitting sets in later. Matrices and kernels move,
    vectors (biases, and the scales of normalization) do not, and terms have no part in the direction.

    The direction is that of the batch, so the loss of a sample depends on others; with several processes or
    parts of a batch, each goes in the direction of its own.

    Args:
        objective: What is to be minimised.
        gamma: How far each layer moves, as a share of the length of its weights.
    """

    objective: Objective
    gamma: float = 0.01

    name = "awp"

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            kind = type(self.objective).__name__
            raise InputError(f"objective is {kind}, not an objective, as in PGD(Linf(8/255))")
        real("gamma", self.gamma)

    @property
    def threats(self) -> tuple[Threat, ...]:
        return self.objective.threats

    @property
    def replays(self) -> int:
        return self.objective.replays

    @property
    def follows(self) -> bool:
        return self.objective.follows

    def within(self, inputs: InputSpec) -> Self:
        return dataclasses.replace(self, objective=self.objective.within(inputs))

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        return self.objective.craft(model, batch)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return self.objective.losses(ask, batch, z)

    def absorb(self, batch: Batch, gradient: Tensor) -> None:
        self.objective.absorb(batch, gradient)

    def check(self, model: Classifier) -> None:
        self.objective.check(model)

    @contextlib.contextmanager
    def perturbed(self, model: Classifier, batch: Batch, z: Tensor) -> Iterator[None]:
        with self.objective.perturbed(model, batch, z):
            weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
            moves = self._moves(model, weights, batch, z.detach())
            # Kept, since adding and subtracting would leave a rounding behind.
            before = [weight.detach().clone() for weight in weights]
            try:
                _add(weights, moves)
                yield
            finally:
                _put_back(weights, before)

    def _moves(self, model: Classifier, weights: list[nn.Parameter], batch: Batch, z: Tensor) -> list[Tensor]:
        """What is added to each of the weights: gamma times their length, up the mean of the losses."""
        if not weights:
            return []
        # A pass that is not learned from leaves no trace in running statistics.
        buffers = list(model.buffers())
        before = [buffer.clone() for buffer in buffers]
        loss = self.objective.losses(Answers(model), batch, z).mean()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        _put_back(buffers, before)
        return [
            torch.zeros_like(weight)
            if gradient is None
            else self.gamma * weight.detach().norm() * _direction(gradient)
            for weight, gradient in zip(weights, gradients, strict=True)
        ]


def _direction(gradient: Tensor) -> Tensor:
    """At length 1; zeros stay."""
    peak = gradient.abs().amax()
    gradient = gradient / torch.where(peak > 0, peak, 1)
    return gradient / torch.where(peak > 0, gradient.norm(), 1)


@torch.no_grad()
def _add(tensors: list[nn.Parameter], moves: list[Tensor]) -> None:
    for tensor, move in zip(tensors, moves, strict=True):
        tensor.add_(move)


@torch.no_grad()
def _put_back(tensors: list[nn.Parameter] | list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
