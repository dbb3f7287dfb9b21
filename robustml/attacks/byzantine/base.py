"""A hostile client of a federation: its data, its update and its reply, each of which it may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["Answer", "Array", "Byzantine", "Failure", "Scene"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Scene:
    """What colluding hostile clients know of a round: everything.

    Attributes:
        honest: The updates of the honest clients, float64 (honest, parameters).
        own: The updates that the hostile ones' own training gave, float64 (hostile, parameters).
        round: From 1.
        seed: Of the run.
    """

    honest: Array
    own: Array
    round: int = 1
    seed: int = 0

    @property
    def clients(self) -> int:
        """Of the round, honest and hostile ones."""
        return len(self.honest) + len(self.own)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a client replies with.

    Attributes:
        arrays: The state of its model, by name.
        metrics: What it says about it, such as "num-examples".
    """

    arrays: dict[str, Array]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A reply that says that the client has failed.

    Attributes:
        reason: What it says.
    """

    reason: str


@dataclass(frozen=True)
class Byzantine:
    """A hostile client, which is honest in whatever it does not override.

    Attributes:
        name: What the attack is called.
        reference: Where it is described.
        abuse: Whether it breaks the protocol, so that a guard alone has to stop it.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    abuse: ClassVar[bool] = False

    def data(self, x: Array, y: Array, classes: int, seed: int) -> tuple[Array, Array]:
        """The data that it trains on.

        Args:
            x, y: What it has, inputs (n, *shape) and labels int64 (n,).
            classes: How many there are.
            seed: Decides what is drawn.
        """
        del classes, seed
        return x, y

    def updates(self, scene: Scene) -> Array:
        """The updates of all hostile clients: float64 (hostile, parameters)."""
        return scene.own

    def reply(self, answer: Answer, before: dict[str, Array], round_: int) -> Answer | Failure | None:
        """What is sent in the end; None for silence.

        Args:
            answer: With the update that `updates` gave.
            before: The state that the server sent, by name.
            round_: From 1.
        """
        del before, round_
        return answer
