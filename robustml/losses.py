"""The objectives that attacks maximise: one value per sample, larger is closer to a wrong answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .errors import InputError, suggest

__all__ = [
    "LOSSES",
    "TARGETED_LOSSES",
    "Loss",
    "TargetedLoss",
    "cross_entropy",
    "dlr",
    "is_wrong",
    "loss_named",
    "margin",
    "targeted_dlr",
    "targeted_loss_named",
    "targeted_margin",
]

Loss = Callable[[Tensor, Tensor], Tensor]
Kind = TypeVar("Kind")
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Keeps the ratio of the DLR loss finite when three logits are equal; small beside any real gap.
_TINY = 1e-12


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each prediction is wrong: bool (n,).

    A prediction is right only if all of its logits are numbers and the label's is the first largest, as
    argmax decides it. An input that makes the model answer NaN therefore counts against the model.
    """
    # The largest of several numbers of which one is NaN is NaN.
    highest, prediction = logits.max(1)
    return (prediction != y) | highest.isnan()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the true label: (n,)."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the label's (Carlini & Wagner 2017, f6 with the sign turned): (n,)."""
    label = y[:, None]
    others = logits.scatter(1, label, -torch.inf)
    return others.amax(1) - logits.gather(1, label)[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, equation 6): (n,).

    The margin divided by the gap between the largest and the third largest logit, which makes it blind to
    the scale of the logits. With two classes there is no third logit and the ratio would be constant, so
    that its gradient vanishes: the plain margin is returned instead.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(_TINY)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the label's: (n,)."""
    return logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce & Hein 2020, equation 7): (n,).

    With three classes there is no fourth logit in the denominator, and with the third in its place the ratio
    of a target with the lowest logit is constant, so that its gradient vanishes: with fewer than four the
    plain difference of the logits is returned.
    """
    gap = targeted_margin(logits, y, target)
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4, dim=1).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


TARGETED_LOSSES: dict[str, TargetedLoss] = {"dlr": targeted_dlr, "margin": targeted_margin}


def loss_named(name: str) -> Loss:
    """Look up an untargeted loss.

    Raises:
        InputError: for a name that is not in `LOSSES`.
    """
    return _named(name, LOSSES)


def targeted_loss_named(name: str) -> TargetedLoss:
    """Look up a loss that aims at a class.

    Raises:
        InputError: for a name that is not in `TARGETED_LOSSES`.
    """
    return _named(name, TARGETED_LOSSES)


def _named(name: str, known: dict[str, Kind]) -> Kind:
    if name not in known:
        raise InputError(f"loss={name!r} is not known{suggest(name, known)}")
    return known[name]
