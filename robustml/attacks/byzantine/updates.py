"""Hostile updates: what colluding clients send to move the model, or to keep it from moving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from ...checks import real
from ...errors import InputError, brief
from ...sampling import Streams
from .base import Array, Byzantine, Scene

__all__ = ["Alie", "Gaussian", "InnerProduct", "MinMax", "MinSum", "SignFlip"]

Direction = Literal["std", "unit", "sign"]


@dataclass(frozen=True)
class SignFlip(Byzantine):
    """Each sends the opposite of what it has learned, enlarged.

    Attributes:
        scale: How many times as long.
    """

    name: ClassVar[str] = "sign-flip"
    reference: ClassVar[str] = "Li et al. 2019 (RSA)"
    scale: float = 4.0

    def __post_init__(self) -> None:
        real("scale", self.scale)

    def updates(self, scene: Scene) -> Array:
        return -self.scale * scene.own


@dataclass(frozen=True)
class InnerProduct(Byzantine):
    """All send the opposite of the honest mean: the sum may point backwards while each looks small.

    Attributes:
        scale: Times the honest mean; a small one slips past distances, a large one turns the mean around.
    """

    name: ClassVar[str] = "inner-product"
    reference: ClassVar[str] = "Xie, Koyejo and Gupta 2019 (Fall of Empires)"
    scale: float = 0.5

    def __post_init__(self) -> None:
        real("scale", self.scale)

    def updates(self, scene: Scene) -> Array:
        return np.repeat(-self.scale * scene.honest.mean(axis=0)[None], len(scene.own), axis=0)


@dataclass(frozen=True)
class Gaussian(Byzantine):
    """Each sends noise.

    Attributes:
        scale: Its standard deviation, in units of the honest updates' root mean square.
    """

    name: ClassVar[str] = "gaussian"
    reference: ClassVar[str] = "Blanchard et al. 2017"
    scale: float = 10.0

    def __post_init__(self) -> None:
        real("scale", self.scale)

    def updates(self, scene: Scene) -> Array:
        ids = torch.arange(len(scene.own))
        streams = Streams.derive(scene.seed, f"byzantine/gaussian/{scene.round}", ids)
        noise = streams.normal(scene.own.shape[1], dtype=torch.float64).numpy()
        return np.asarray(self.scale * np.sqrt(np.square(scene.honest).mean()) * noise)


@dataclass(frozen=True)
class Alie(Byzantine):
    """A little is enough: the honest mean, moved by as many deviations as hide among the honest.

    Attributes:
        deviations: How many; None for the largest number that leaves enough honest clients farther out.
    """

    name: ClassVar[str] = "alie"
    reference: ClassVar[str] = "Baruch, Baruch and Goldberg 2019"
    deviations: float | None = None

    def __post_init__(self) -> None:
        if self.deviations is not None:
            real("deviations", self.deviations)

    def updates(self, scene: Scene) -> Array:
        mean, std = scene.honest.mean(axis=0), scene.honest.std(axis=0)
        moved = mean - self._count(scene) * std
        return np.repeat(moved[None], len(scene.own), axis=0)

    def _count(self, scene: Scene) -> float:
        if self.deviations is not None:
            return self.deviations
        from scipy.special import ndtri

        # As many honest ones have to side with the hostile as make a majority with them.
        n, f = scene.clients, len(scene.own)
        supporters = n // 2 + 1 - f
        share = (n - f - supporters) / (n - f)
        # With few clients the formula leaves nothing to go by; it is kept to a sensible range.
        return float(ndtri(min(max(share, 0.5), 0.99)))


@dataclass(frozen=True)
class MinMax(Byzantine):
    """As far from the honest mean as no honest update's distance from the others gives away.

    Attributes:
        direction: Away from the honest mean along the honest deviations ("std"), the mean itself ("unit"), or
            its signs ("sign").
    """

    name: ClassVar[str] = "min-max"
    reference: ClassVar[str] = "Shejwalkar and Houmansadr 2021, min-max"
    direction: Direction = "std"

    def __post_init__(self) -> None:
        if self.direction not in {"std", "unit", "sign"}:
            raise InputError(f"direction={brief(self.direction)} is not one of std, unit, sign")

    def updates(self, scene: Scene) -> Array:
        mean = scene.honest.mean(axis=0)
        away = _away(scene.honest, self.direction)
        moved = mean + self._reach(scene.honest, mean, away) * away
        return np.repeat(moved[None], len(scene.own), axis=0)

    def _reach(self, honest: Array, mean: Array, away: Array) -> float:
        """The largest multiple with which no honest update is farther than two honest ones may be."""
        limit = max(float(np.square(honest - one).sum(axis=1).max()) for one in honest)
        square = float(away @ away)
        roots = [
            _root(square, 2 * float((mean - one) @ away), float(np.square(mean - one).sum()) - limit)
            for one in honest
        ]
        return min(roots)


@dataclass(frozen=True)
class MinSum(MinMax):
    """As far from the honest mean as the sum of squared distances from the honest does not give away."""

    name: ClassVar[str] = "min-sum"
    reference: ClassVar[str] = "Shejwalkar and Houmansadr 2021, min-sum"

    def _reach(self, honest: Array, mean: Array, away: Array) -> float:
        limit = max(float(np.square(honest - one).sum()) for one in honest)
        spread = float(np.square(honest - mean).sum())
        return _root(
            len(honest) * float(away @ away), 2 * float((mean - honest).sum(axis=0) @ away), spread - limit
        )


def _away(honest: Array, direction: Direction) -> Array:
    mean = honest.mean(axis=0)
    if direction == "std":
        return np.asarray(-honest.std(axis=0))
    if direction == "sign":
        return np.asarray(-np.sign(mean))
    length = float(np.linalg.norm(mean))
    return np.asarray(-mean / length if length else -mean)


def _root(square: float, linear: float, constant: float) -> float:
    """The larger root of a quadratic whose constant is not above 0; 0 if there is nothing to go along."""
    if square == 0:
        return 0.0
    return float((-linear + np.sqrt(max(linear**2 - 4 * square * constant, 0.0))) / (2 * square))
