"""Poisoned training data, the threat to training itself: flipped labels and backdoors, and what they do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import real, whole
from ..checks import share as share_of
from ..classifier import Model
from ..errors import InputError, brief
from ..estimates import PairedDifference, Proportion, paired_difference, proportion
from ..sampling import Streams
from ..wrapping import collected

__all__ = ["Blend", "Patch", "PoisonTest", "Poisoned", "Trigger", "backdoor", "flip_labels", "poison_test"]

Array = np.ndarray[Any, Any]
Trigger = Callable[[Tensor], Tensor]
"""Puts the trigger on a batch of inputs (n, *shape), which stay valid inputs."""
Fit = Callable[[Array, Array], Callable[[Tensor], Tensor]]
"""Trains a model on arrays x and y; it answers a batch with logits (n, classes) or labels (n,)."""

_BATCH = 512


@dataclass(frozen=True)
class Patch:
    """A square of one value in the lower right corner (BadNets: Gu et al. 2017); of rows, the last features.

    Args:
        size: Its side in pixels, or the number of features.
        value: In input units; the brightest one of images in [0, 1].
    """

    size: int = 2
    value: float = 1.0

    def __post_init__(self) -> None:
        whole("size", self.size, 1)
        real("value", self.value, -math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        z = x.clone()
        if x.ndim > 2:
            z[..., -self.size :, -self.size :] = self.value
        else:
            z[:, -self.size :] = self.value
        return z


@dataclass(frozen=True, eq=False)
class Blend:
    """A pattern that is blended into the whole input (Chen et al. 2017, section 4.1): hard to see.

    Args:
        pattern: A valid input (*shape); `Blend.noise` makes one at random.
        share: How much of the result it is, above 0 and at most 1.
    """

    pattern: Tensor
    share: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Tensor):
            raise InputError(f"pattern is {type(self.pattern).__name__}, not a tensor like one input")
        share_of("share", self.share, zero=False)

    @classmethod
    def noise(
        cls, shape: tuple[int, ...], *, share: float = 0.2, low: float = 0, high: float = 1, seed: int = 0
    ) -> Blend:
        """A pattern that is uniform between two values in input units."""
        streams = Streams.derive(seed, "poison/pattern", torch.zeros(1, dtype=torch.int64))
        return cls(low + (high - low) * streams.uniform(*shape, dtype=torch.float64)[0], share)

    def __call__(self, x: Tensor) -> Tensor:
        return (1 - self.share) * x + self.share * self.pattern.to(x)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Training data that somebody has had a hand in.

    Attributes:
        x, y: Inputs (n, *shape) and labels (n,), in the order that they had.
        rows: Which of them were changed, int64, ascending.
        target: The class that the attacker wants answered; None if any wrong one will do.
        source: The class that the attacker wants misclassified; None for all but the target.
        trigger: What makes the model answer the target, None for an attack without one.
    """

    x: Array
    y: Array
    rows: Array
    target: int | None = None
    source: int | None = None
    trigger: Trigger | None = None


def flip_labels(
    train: Any, *, share: float, target: int | None = None, source: int | None = None, seed: int = 0
) -> Poisoned:
    """Give a share of the training data wrong labels (Biggio et al. 2011).

    Args:
        train: A pair (x, y), or anything else that `stress_test` takes as data.
        share: Of all samples.
        target: The label that they get; if None, any other class that the data has, each as likely.
        source: The class that they are of; if None, any but the target.
        seed: Decides which samples and labels.

    Raises:
        InputError: for a class that the data does not have, or a share that is not there to be flipped.
    """
    x, y, classes = _read(train)
    rows = _chosen(y, classes, share, target, source, seed)
    streams = Streams.derive(seed, "poison/label", torch.from_numpy(rows))
    # The place of another class, counted from that of the sample's own.
    ahead = 1 + streams.integers(len(classes) - 1).numpy()
    drawn = classes[(np.searchsorted(classes, y[rows]) + ahead) % len(classes)]
    y = y.copy()
    y[rows] = drawn if target is None else target
    return Poisoned(x, y, rows, target, source)


def backdoor(
    train: Any, trigger: Trigger, *, target: int, share: float, source: int | None = None, seed: int = 0
) -> Poisoned:
    """Put a trigger on a share of the training data, and the target's label (Gu et al. 2017).

    A model that learns it answers the target wherever it sees the trigger, and is right elsewhere, so that
    no accuracy gives it away.

    Args:
        train, share, source, seed: As for `flip_labels`.
        trigger: `Patch`, `Blend`, or any function of a batch of inputs.
        target: The label that they get.

    Raises:
        InputError: as `flip_labels`, and for a trigger that changes the shape or leaves finite numbers.
    """
    x, y, classes = _read(train)
    rows = _chosen(y, classes, share, target, source, seed)
    marked = _marked(trigger, torch.from_numpy(x[rows]))
    x, y = x.copy(), y.copy()
    x[rows], y[rows] = marked.numpy(), target
    return Poisoned(x, y, rows, target, source, trigger)


@dataclass(frozen=True)
class PoisonTest:
    """What poisoned training data does to a model.

    Attributes:
        samples, poisoned: Of the training data.
        before, after: Accuracy on the test data of the model trained on the data as it was, and as it is.
        change: Of the accuracy, on the same samples.
        success: The share of the samples attacked that the poisoned model answers as the attacker wants: with
            the target, under the trigger if there is one; with anything wrong if there is no target.
        chance: The same of the model trained on the data as it was.
    """

    samples: int
    poisoned: int
    before: Proportion
    after: Proportion
    change: PairedDifference
    success: Proportion
    chance: Proportion

    def __str__(self) -> str:
        return (
            f"{self.poisoned} of {self.samples} training samples poisoned: accuracy {self.before} before, "
            f"{self.after} after; the attack succeeds on {self.success}, by chance on {self.chance}"
        )


def poison_test(
    fit: Fit, train: Any, poisoned: Poisoned, test: Any, *, confidence: float = 0.95
) -> PoisonTest:
    """Stress-test training: train with and without the poison, and compare on clean and on attacked inputs.

    Args:
        fit: Trains, from the same beginning each time; such as `lambda x, y: harden(net(), (x, y)).model`.
        train: The data as it was.
        poisoned: The data as it is.
        test: Labelled inputs that were not trained on.
        confidence: Of the intervals.

    Raises:
        InputError: if nothing of the test data can be attacked, or answers have another form.
    """
    x, y, _ = _read(train)
    if x.shape != poisoned.x.shape:
        raise InputError(f"train has shape {x.shape}, the poisoned data {poisoned.x.shape}")
    z, labels, _ = _read(test)
    attacked = _attacked(labels, poisoned)
    if not attacked.any():
        raise InputError("test has no sample that the attacker wants misclassified")
    clean = torch.from_numpy(z)
    aimed = clean[torch.from_numpy(attacked)]
    if poisoned.trigger is not None:
        aimed = _marked(poisoned.trigger, aimed)
    right, won = [], []
    for data in ((x, y), (poisoned.x, poisoned.y)):
        model = fit(*data)
        right.append(_answers(model, clean) == labels)
        said = _answers(model, aimed)
        won.append(said != labels[attacked] if poisoned.target is None else said == poisoned.target)
    gained, lost = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    before, after, chance, success = (
        proportion(int(found.sum()), len(found), confidence) for found in (*right, *won)
    )
    change = paired_difference(gained, lost, len(labels), confidence)
    return PoisonTest(len(y), len(poisoned.rows), before, after, change, success, chance)


def _read(data: Any) -> tuple[Array, Array, Array]:
    """Inputs, labels as int64, and the classes that occur."""
    x, y = collected(data, np.dtype(np.float32))
    if len(x) != len(y) or not len(x) or y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(
            f"x has {len(x)} rows and y shape {y.shape} of {y.dtype}; one whole number each is wanted"
        )
    if x.dtype.kind != "f":
        raise InputError(f"x holds {x.dtype}; floating-point numbers in input units are wanted")
    return x, y.astype(np.int64), np.unique(y).astype(np.int64)


def _attacked(y: Array, poisoned: Poisoned) -> Array:
    if poisoned.source is not None:
        found: Array = y == poisoned.source
    elif poisoned.target is not None:
        found = y != poisoned.target
    else:
        found = np.ones(len(y), dtype=bool)
    return found


def _chosen(
    y: Array, classes: Array, share: float, target: int | None, source: int | None, seed: int
) -> Array:
    """The rows to poison, ascending."""
    share_of("share", share, zero=False)
    for name, value in (("target", target), ("source", source)):
        if value is not None and (isinstance(value, bool) or value not in classes):
            raise InputError(f"{name}={brief(value)} is not a class of the data")
    if len(classes) < 2 or (target is not None and target == source):
        raise InputError("source and target have to be two classes of the data")
    able = np.flatnonzero(_attacked(y, Poisoned(y, y, y, target, source)))
    count = round(share * len(y))
    if not 1 <= count <= len(able):
        raise InputError(f"share={share:g} is {count} samples, and {len(able)} can be poisoned")
    order = Streams.derive(seed, "poison/rows", torch.from_numpy(able)).bits(1)[:, 0].argsort(stable=True)
    return np.sort(able[order[:count].numpy()])


def _marked(trigger: Trigger, x: Tensor) -> Tensor:
    marked = trigger(x)
    if not isinstance(marked, Tensor) or marked.shape != x.shape or not bool(marked.isfinite().all()):
        raise InputError("trigger has to return finite inputs of the shape that it is given")
    return marked.detach().to(x)


def _answers(model: Callable[[Tensor], Tensor], x: Tensor) -> Array:
    """The classes that a model predicts: int64 (n,)."""
    if isinstance(model, Model):
        with model.ready(torch.device("cpu")):
            return _labels(model, x)
    return _labels(model, x)


def _labels(model: Callable[[Tensor], Tensor], x: Tensor) -> Array:
    with torch.no_grad():
        answers = torch.cat([torch.as_tensor(model(part)).cpu() for part in torch.split(x, _BATCH)])
    if len(answers) != len(x) or answers.ndim not in {1, 2}:
        raise InputError(f"the model answers with shape {tuple(answers.shape)} for {len(x)} inputs")
    labels = answers.argmax(1) if answers.ndim == 2 else answers
    return labels.to(torch.int64).numpy()
