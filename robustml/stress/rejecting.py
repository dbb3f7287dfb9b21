"""Models that may reject an input: to an attacker a rejection is as useless as the right answer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import Logits
from ..surrogates import exact

__all__ = ["Accepting", "accepted"]


def accepted(logits: Tensor, y: Tensor) -> Tensor:
    """Logits (n, classes) that are wrong exactly where an input is accepted and misclassified.

    The label stands for itself and for the rejection, so that every loss of an attack goes down with either:
    the margin is the lesser of the lead over the label and of the distance to being rejected.

    Args:
        logits: With the rejection as the last column (n, classes + 1).
        y: Labels int64 (n,).
    """
    classes, label = logits[:, :-1], y[:, None]
    rejection = logits[:, -1:]
    # At the threshold itself an input is accepted: of equal logits the first is the answer, never the last.
    low = torch.full((), -torch.inf, dtype=logits.dtype, device=logits.device)
    gap = (rejection - torch.nextafter(rejection, low)).detach()
    tied = (rejection == classes.amax(1, keepdim=True)).to(logits.dtype)
    safe = torch.maximum(classes.gather(1, label), rejection - gap * tied)
    return classes.scatter(1, label, safe)


class Accepting:
    """A rejecting model as attacks meet it: with as many logits as classes.

    Args:
        model: Returns logits (n, classes + 1).
        y: Labels int64 of the whole batch (n,).
    """

    def __init__(self, model: Logits, y: Tensor) -> None:
        self._model = model
        self._y = self._focused = y

    def focus(self, rows: Tensor) -> None:
        """Announce which rows of the batch the next calls hold."""
        self._focused = self._y[rows]

    def __call__(self, x: Tensor, /) -> Tensor:
        logits = self._model(x)
        with exact():
            if len(logits) == len(self._focused):
                return accepted(logits, self._focused)
            # Whose rows these are cannot be told. They are not believed anyway, so a rejection may as well
            # say nothing at all.
            heard = logits.argmax(1, keepdim=True) < logits.shape[1] - 1
            return logits[:, :-1] * heard.to(logits.dtype)
