"""The ablation ladder of private training: the same recipe plain, clipped only, and clipped and noised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..classifier import Classifier
from ..data import Dataset, as_dataset
from ..defenses.privacy import DifferentialPrivacy
from ..defenses.training import Hardened, harden
from ..errors import InputError
from ..estimates import PairedDifference, Proportion, paired_difference, proportion
from ..inputs import InputSpec
from ..sampling import seeded
from ..wrapping import collected, pick_device, wrapped

__all__ = ["Ladder", "Rung", "ladder"]

_OWN = {"out", "resume", "ledger", "validation", "privacy"}
_BATCH = 512


@dataclass(frozen=True)
class Rung:
    """One of the three models.

    Attributes:
        name: "plain", "clipped", or "private" (clipped and noised).
        accuracy: On the test data, with its exact interval.
        clipping_norm: None for the plain one.
        noise_multiplier: None for the plain one, 0 for the clipped one.
        epsilon: What the accountant says; None where there is no bound.
    """

    name: str
    accuracy: Proportion
    clipping_norm: float | None
    noise_multiplier: float | None
    epsilon: float | None


@dataclass(frozen=True)
class Ladder:
    """What privacy costs in accuracy, and which part of it.

    All three were trained from the same weights with the same settings, and are compared on the same test
    samples. The intervals are of the test samples: another seed of training moves all of the figures, so that
    a small difference may be one of luck. The figures of the plain and the clipped model come from the
    training data without any protection: to publish them is not covered by epsilon.

    Attributes:
        plain, clipped, private: The rungs.
        clipping: From plain to clipped; the way batches are drawn (shuffled or Poisson) is in it.
        noise: From clipped to private.
        total: From plain to private.
        delta: Of the bound.
        seed: Of training.
        randomness: Where the noise came from.
    """

    plain: Rung
    clipped: Rung
    private: Rung
    clipping: PairedDifference
    noise: PairedDifference
    total: PairedDifference
    delta: float
    seed: int
    randomness: str

    @property
    def verdict(self) -> str:
        """What costs accuracy, as far as the test samples can tell, and what helps against it."""
        clips, noises = self.clipping.high < 0, self.noise.high < 0
        if clips and noises:
            return "clipping and noise both cost accuracy"
        if clips:
            return "clipping costs accuracy: raise the learning rate or the clipping norm"
        if noises:
            return "noise costs accuracy: larger batches, more data, a smaller model, or a larger epsilon"
        if self.total.high < 0:
            return "privacy costs accuracy; whether by clipping or by noise, these samples do not tell"
        return f"no cost is resolvable with {self.total.total} test samples"

    def __str__(self) -> str:
        bound = "no bound" if self.private.epsilon is None else f"epsilon {self.private.epsilon:.3g}"
        return (
            f"accuracy {self.plain.accuracy} plain, {self.clipped.accuracy} clipped, "
            f"{self.private.accuracy} clipped and noised ({bound}); "
            f"clipping {_points(self.clipping)}, noise {_points(self.noise)}: {self.verdict}"
        )


def ladder(
    build: Callable[[], nn.Module],
    train: Any,
    test: Any,
    *,
    privacy: DifferentialPrivacy,
    inputs: InputSpec | None = None,
    seed: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
    **training: Any,
) -> Ladder:
    """Train three models with `harden`, and compare what clipping and what noise cost.

    Nothing is held out of the training data for any of them, so that all learn from the same samples; the
    weights of the last epoch are kept.

    Args:
        build: Makes a network with fresh weights, or a `Classifier`; its random numbers come from torch. For
            layers that cannot be trained privately, make it with `prepare`: all three are that network.
        train: A pair (x, y) of arrays or tensors.
        test: Labelled data that was not trained on.
        privacy: Of the private model. Give it a seed to have the clipped model see the same batches.
        inputs: The input space, where `build` returns a bare module.
        seed: Decides weights and the order of training.
        device: As in `harden`.
        confidence: Of the intervals.
        training: Whatever else `harden` takes: objective, terms, epochs, batch_size, learning_rate, ...

    Raises:
        InputError: for something that cannot be used, before anything is trained if it is about privacy.
        RunError: if training fails.
    """
    if not isinstance(privacy, DifferentialPrivacy):
        raise InputError(f"privacy is {type(privacy).__name__}; give a DifferentialPrivacy")
    if privacy.max_epsilon is not None:
        raise InputError(
            "max_epsilon may end the private training early, and the others with it not; give epsilon instead"
        )
    for name in sorted(_OWN & set(training)):
        raise InputError(f"{name} cannot be given to a ladder; it is the same for all three models")
    if "keep" in training and training["keep"] != "last":
        raise InputError(f"keep={training['keep']!r} needs validation data, and the ladder holds none out")
    x = train.x if isinstance(train, Dataset) else collected(train, np.dtype("float32"))[0]
    bare = dataclasses.replace(privacy, epsilon=None, noise_multiplier=0.0, observer=None)
    models: dict[str, Hardened] = {}
    # The private one comes first: what cannot be trained privately is refused before time is spent.
    for name, asked in (("private", privacy), ("clipped", bare), ("plain", None)):
        fresh = _fresh(build, x, inputs, seed)
        if any(fresh.module is other.model.module for other in models.values()):
            raise InputError("build returned the same module twice; it must make a new one at each call")
        models[name] = harden(
            fresh, train, privacy=asked, validation=None, seed=seed, device=device, **training
        )
    spec = models["plain"].model
    data = as_dataset(test, spec.inputs, spec.classes, "test")
    right = {name: _right(each.model, data, device) for name, each in models.items()}
    rungs = {name: _rung(name, each, right[name], confidence) for name, each in models.items()}
    guarantee = models["private"].privacy
    assert guarantee is not None
    return Ladder(
        rungs["plain"],
        rungs["clipped"],
        rungs["private"],
        clipping=_difference(right["plain"], right["clipped"], confidence),
        noise=_difference(right["clipped"], right["private"], confidence),
        total=_difference(right["plain"], right["private"], confidence),
        delta=guarantee.delta,
        seed=seed,
        randomness=guarantee.randomness,
    )


def _fresh(build: Callable[[], nn.Module], x: Any, inputs: InputSpec | None, seed: int) -> Classifier:
    with seeded(torch.device("cpu"), seed, "ladder"):
        module = build()
    return module if isinstance(module, Classifier) else wrapped(module, x, inputs)


def _right(model: Classifier, data: Dataset, device: str) -> np.ndarray[Any, Any]:
    """Which test samples a model has right, bool (n,)."""
    place = pick_device(device)
    with model.ready(place), seeded(place, "ladder/test"), torch.no_grad():
        said = [
            model(part.to(place)).argmax(1).cpu() for part in torch.split(torch.from_numpy(data.x), _BATCH)
        ]
    found: np.ndarray[Any, Any] = torch.cat(said).numpy() == data.y
    return found


def _rung(name: str, model: Hardened, right: np.ndarray[Any, Any], confidence: float) -> Rung:
    accuracy = proportion(int(right.sum()), len(right), confidence)
    found = model.privacy
    if found is None:
        return Rung(name, accuracy, None, None, None)
    return Rung(name, accuracy, found.clipping_norm, found.noise_multiplier, found.epsilon)


def _difference(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], confidence: float
) -> PairedDifference:
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return paired_difference(gained, lost, len(before), confidence)


def _points(change: PairedDifference) -> str:
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}] points"
