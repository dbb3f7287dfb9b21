"""Where batches come from: arrays in an order of our own, or a loader in the order that it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...classifier import Classifier
from ...data import Dataset, as_dataset, choose
from ...errors import InputError
from ...sampling import Streams

__all__ = ["Arrays", "Loader", "Source", "source_of"]

Rows = tuple[Tensor, Tensor, Tensor]


class Source(Protocol):
    """A set of labelled inputs, in batches."""

    def __len__(self) -> int:
        """How many batches an epoch has."""

    @property
    def samples(self) -> int:
        """How many samples an epoch has."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of the data, None where it cannot be seen."""

    def batches(self, epoch: int) -> Iterator[Rows]:
        """Inputs, labels and ids of each batch of an epoch."""


class Arrays:
    """Data in memory; each epoch has an order of its own, which the seed and the ids decide.

    Args:
        data: The data.
        rows: Which of them.
        batch_size: Samples per batch.
        seed: Of the run.
        least: The fewest samples that a batch may have: 2 where a layer normalises over the batch.
    """

    def __init__(self, data: Dataset, rows: Tensor, batch_size: int, seed: int, least: int) -> None:
        self.x, self.y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        self.rows = rows
        self.digest: str | None = data.sha256
        self._seed = seed
        self._cuts = _cuts(len(rows), batch_size, least)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    @property
    def samples(self) -> int:
        return len(self.rows)

    def batches(self, epoch: int) -> Iterator[Rows]:
        keys = Streams.derive(self._seed, f"order/{epoch}", self.rows).bits(1)[:, 0]
        order = self.rows[keys.argsort(stable=True)]
        for start, end in zip(self._cuts, self._cuts[1:], strict=False):
            ids = order[start:end]
            # Many times as fast as x[ids].
            yield self.x.index_select(0, ids), self.y[ids], ids


def _cuts(n: int, size: int, least: int) -> list[int]:
    """Where batches begin and end; a remainder that is too small goes to the batch before it."""
    cuts = [*range(0, n, size), n]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < least:
        del cuts[-2]
    return cuts


class Loader:
    """A torch `DataLoader`, or any other iterable of batches (x, y) that can be gone through again and again.

    Its order and its changes to the data are its own; what it draws from torch's global generator is decided
    by the seed of the run. Ids are the places of samples in an epoch.

    Args:
        batches: The loader.
        model: What it must suit.
    """

    digest: str | None = None

    def __init__(self, batches: Any, model: Classifier) -> None:
        self._batches = batches
        self._model = model
        self._known: tuple[int, int] | None = None

    def _measured(self) -> tuple[int, int]:
        if self._known is None:
            sizes = [len(batch[1]) for batch in self._batches]
            self._known = len(sizes), sum(sizes)
            if not self._known[1]:
                raise InputError("train is a loader without batches; give at least one sample")
        return self._known

    def __len__(self) -> int:
        return self._measured()[0]

    @property
    def samples(self) -> int:
        return self._measured()[1]

    def batches(self, epoch: int) -> Iterator[Rows]:
        begin = 0
        for number, batch in enumerate(self._batches):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InputError(f"train: batch {number} is {type(batch).__name__}; (x, y) is wanted")
            data = as_dataset(tuple(batch), self._model.inputs, self._model.classes, f"train: batch {number}")
            ids = torch.arange(begin, begin + len(data))
            begin += len(data)
            yield torch.from_numpy(data.x), torch.from_numpy(data.y), ids
        if not begin:
            raise InputError("train is a loader without batches; give at least one sample")


def source_of(data: Any, model: Classifier, *, rows: Tensor | None, batch_size: int, seed: int) -> Source:
    """The batches of what a user gave as training data.

    Args:
        data: A `Dataset`, arrays, or a loader.
        model: What is trained.
        rows: Of a `Dataset`: which of them; None for all.
        batch_size: Of arrays; a loader has its own.
        seed: Of the run.

    Raises:
        InputError: if there are too few samples for a batch of this model.
    """
    if not isinstance(data, Dataset):
        return Loader(data, model)
    rows = torch.arange(len(data)) if rows is None else rows
    least = 2 if _normalises(model) else 1
    if len(rows) < least:
        raise InputError(
            f"train has {len(rows)} sample for a model that normalises over the batch; give at least {least}"
        )
    if batch_size < least:
        raise InputError(
            f"batch_size={batch_size} is too small for a model that normalises over the batch; take {least}"
        )
    return Arrays(data, rows, batch_size, seed, least)


def _normalises(model: Classifier) -> bool:
    return any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def split(data: Dataset, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training rows and validation rows, every class in proportion; the seed decides which.

    Raises:
        InputError: if nothing would be left for one of them.
    """
    count = round(share * len(data))
    if not 0 < count < len(data):
        raise InputError(f"validation={share} of {len(data)} samples leaves none for one of both parts")
    held = choose(data.y, count, "stratified", seed)
    rest = np.setdiff1d(np.arange(len(data)), held)
    return torch.from_numpy(rest), torch.from_numpy(held)
