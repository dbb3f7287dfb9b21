"""Hostile training data: flipped labels, and backdoors with model replacement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ...checks import real
from ...errors import InputError, brief
from ...sampling import Streams
from ..poisoning import Patch, Trigger
from .base import Array, Byzantine, Scene

__all__ = ["Backdoor", "LabelFlip"]


@dataclass(frozen=True)
class LabelFlip(Byzantine):
    """Each trains on wrong labels: class k is called classes - 1 - k, or one class is called another.

    Attributes:
        source, target: The class that is called another, and what it is called; None for all of them.
    """

    name: ClassVar[str] = "label-flip"
    reference: ClassVar[str] = "Tolpegin et al. 2020"
    source: int | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None) or (
            self.source is not None and self.source == self.target
        ):
            raise InputError("source and target are two classes, or both None")

    def data(self, x: Array, y: Array, classes: int, seed: int) -> tuple[Array, Array]:
        del seed
        if self.source is None or self.target is None:
            return x, np.asarray(classes - 1 - y)
        for name, value in (("source", self.source), ("target", self.target)):
            if not 0 <= value < classes:
                raise InputError(f"{name}={brief(value)} is not one of {classes} classes")
        return x, np.where(y == self.source, self.target, y)


@dataclass(frozen=True)
class Backdoor(Byzantine):
    """Each trains a trigger into the model, and enlarges its update until it replaces the model.

    Attributes:
        target: The class that the trigger is to be answered with.
        share: Of its data, gets the trigger and the target's label.
        scale: Of the update: 1 for none; None for clients / hostile, with which the mean becomes the hostile
            model once training is nearly done.
        trigger: What is put on inputs.
    """

    name: ClassVar[str] = "backdoor"
    reference: ClassVar[str] = "Bagdasaryan et al. 2020, equation 3"
    target: int = 0
    share: float = 0.5
    scale: float | None = None
    trigger: Trigger = field(default_factory=lambda: Patch(3))

    def __post_init__(self) -> None:
        real("share", self.share, high=1.0, top=True)
        if self.scale is not None:
            real("scale", self.scale)
        if isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 0:
            raise InputError(f"target={brief(self.target)} is not a class")

    def data(self, x: Array, y: Array, classes: int, seed: int) -> tuple[Array, Array]:
        if self.target >= classes:
            raise InputError(f"target={self.target} is not one of {classes} classes")
        order = (
            Streams.derive(seed, "byzantine/backdoor", torch.arange(len(x)))
            .bits(1)[:, 0]
            .argsort(stable=True)
        )
        rows = order[: round(self.share * len(x))].sort().values.numpy()
        x, y = x.copy(), y.copy()
        x[rows] = self.trigger(torch.from_numpy(x[rows])).numpy()
        y[rows] = self.target
        return x, y

    def updates(self, scene: Scene) -> Array:
        scale = scene.clients / len(scene.own) if self.scale is None else self.scale
        return np.asarray(scale * scene.own)
