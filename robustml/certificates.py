"""Certificates: how far an input may move without a change of the answer, proven by a guard of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .classifier import Model, mode_dependent_layers
from .errors import InputError
from .guarded import Guarded
from .guards import Answer, Guard, through
from .sampling import Streams

__all__ = ["ABSTAINED", "Certificate", "Certifier", "Source", "behind_first", "certificate", "uncertified"]

ABSTAINED = -1
"""The label that stands for no answer; it equals no true label, so that it counts as an error."""

Source = torch.Generator | Streams | None
"""Where random numbers come from; None for torch's global generator."""


@dataclass(frozen=True)
class Certificate:
    """What is proven of the answer for each input.

    Attributes:
        label: The class, `ABSTAINED` (-1) where nothing can be said: int64 (n,).
        radius: No perturbation shorter than that changes it, in the L2 norm and in the unit of `eps` (the
            input's, or that of `InputSpec.scale`): float64 (n,), 0 where abstained.
        abstained: Where nothing can be said: bool (n,).
    """

    label: Tensor
    radius: Tensor
    abstained: Tensor

    def accuracy(self, y: Tensor, radius: float = 0.0) -> float:
        """The share of inputs whose label is proven to be right beyond a radius; abstentions are errors."""
        if not len(self.label):
            return float("nan")
        right = (self.label == y.to(self.label.device)) & (self.radius > radius)
        return float(right.double().mean())


@runtime_checkable
class Certifier(Protocol):
    """A guard that certifies what follows it."""

    def certify(
        self,
        answer: Answer,
        x: Tensor,
        *,
        classes: int,
        select: int,
        draws: int,
        confidence: float,
        source: Source,
    ) -> Certificate:
        """Certify inputs (n, *shape) for a deterministic function that returns logits (n, classes)."""


def uncertified(model: Model) -> str | None:
    """Why there is no certificate for a model, in a few words; None if there is one."""
    guards = [each for each in model.guards if isinstance(each, Guard)] if isinstance(model, Guarded) else []
    if not any(each.certifies for each in guards):
        return "no guard of the model certifies anything"
    first, *rest = guards
    if not (first.certifies and isinstance(first, Certifier)):
        return f"guard {first.name} comes before the one that certifies, which has to be the first"
    for each in rest:
        if each.rejects:
            return f"guard {each.name} rejects inputs, and nothing is certified of a rejection"
        if each.random:
            return f"guard {each.name} draws random numbers behind the one that certifies"
    if isinstance(model, Guarded) and (layers := mode_dependent_layers(model)):
        return f"the model is in training mode, which matters for {layers[0]}; call model.eval() on it first"
    return None


def behind_first(model: Guarded) -> Answer:
    """What follows the first guard: the other guards and the model."""
    rest = [each for each in model.guards if isinstance(each, Guard)][1:]

    def answer(x: Tensor) -> Tensor:
        for each in rest:
            x = through(each, x)
        return model.model(x)

    return answer


def certificate(
    model: Model, x: Tensor, *, select: int, draws: int, confidence: float, source: Source
) -> Certificate:
    """Let the first guard of a model certify inputs (n, *shape).

    Args:
        model: A guarded model.
        x: The inputs.
        select: Draws that choose the class.
        draws: Draws that bound its probability.
        confidence: How often each certificate on its own has to hold.
        source: Where random numbers come from.

    Raises:
        InputError: if there is no certificate for such a model.
    """
    if reason := uncertified(model):
        raise InputError(f"no certificate: {reason}")
    assert isinstance(model, Guarded)
    first = model.guards[0]
    assert isinstance(first, Certifier)
    return first.certify(
        behind_first(model),
        x,
        classes=model.classes,
        select=select,
        draws=draws,
        confidence=confidence,
        source=source,
    )
