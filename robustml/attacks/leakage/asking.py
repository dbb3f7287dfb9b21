"""What every leakage attack shares: a model whose answers are counted, members and non-members, figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...classifier import Model
from ...data import Dataset, as_dataset
from ...errors import InputError
from ...estimates import Proportion, proportion
from ...registry import Access
from ...sampling import seeded
from ...wrapping import pick_device

__all__ = ["Array", "Asked", "agreement", "asked", "both", "shared"]

Array = np.ndarray[Any, Any]

_BATCH = 512


class Asked:
    """A model as somebody outside asks it, with every row counted.

    Args:
        model: Ready on `device`.
        device: Where it is.

    Attributes:
        queries: The rows it has answered so far; one row is one query.
        width: The number of its answers: its classes, and one more if it rejects inputs.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.width = model.classes + model.rejects
        self.queries = 0

    @property
    def labels_only(self) -> bool:
        """Whether it gives no scores."""
        return self.model.access is Access.DECISION

    def logits(self, x: Tensor) -> Tensor:
        """Logits float64 (n, width) on the CPU, without gradients."""
        self.queries += len(x)
        with torch.no_grad():
            parts = [self.model(part.to(self.device)).cpu().double() for part in torch.split(x, _BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, self.width, dtype=torch.float64)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probabilities float64 (n, width); of a model that gives labels only, 1 for the label.

        A rejection is an answer without scores, and the scores of what is not rejected know of none.
        """
        logits = self.logits(x)
        said = torch.nn.functional.one_hot(logits.argmax(1), self.width).double()
        if self.labels_only:
            return said
        if not self.model.rejects:
            return logits.softmax(1)
        scores = torch.nn.functional.pad(logits[:, :-1].softmax(1), (0, 1))
        return torch.where(said[:, -1:] > 0, said, scores)

    def labels(self, x: Tensor) -> Tensor:
        """What it answers, int64 (n,); a rejection is the number of classes."""
        return self.logits(x).argmax(1)


@contextlib.contextmanager
def asked(model: Model, device: str, *key: object) -> Iterator[Asked]:
    """A model to be asked; what it draws at random meanwhile follows from the key.

    Raises:
        InputError: for something that is no model, or a device that is not there.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
    place = pick_device(device)
    with model.ready(place), seeded(place, *key):
        yield Asked(model, place)


def both(model: Model, members: Any, non_members: Any) -> tuple[Dataset, Dataset]:
    """The data that a model was trained on and data of the same kind that it was not, checked.

    Raises:
        InputError: as `as_dataset`, and for a sample that is in both.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
    inside = as_dataset(members, model.inputs, model.classes, "members")
    outside = as_dataset(non_members, model.inputs, model.classes, "non_members")
    if (found := shared(inside.x, outside.x)) is not None:
        raise InputError(f"non_members[{found[1]}] is members[{found[0]}]; no sample can be in both")
    return inside, outside


def shared(first: Array, second: Array) -> tuple[int, int] | None:
    """The rows of a sample that is in both sets, or None.

    Where samples repeat within the first set, as records of a few whole numbers do, one in both may be
    another of the kind; then only a second set that lies in the first one altogether counts.
    """
    known = {row.tobytes(): place for place, row in enumerate(first)}
    places = [known.get(row.tobytes()) for row in second]
    met = [(mine, theirs) for theirs, mine in enumerate(places) if mine is not None]
    if not met or (len(known) < len(first) and len(met) < len(second)):
        return None
    return met[0]


def agreement(hits: Any, confidence: float = 0.95) -> Proportion:
    """The share of hits, with its exact interval."""
    found = np.asarray(hits, dtype=bool)
    return proportion(int(found.sum()), len(found), confidence)
