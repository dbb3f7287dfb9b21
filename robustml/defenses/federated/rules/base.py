"""What an aggregation rule is: a function of the updates of a round, and what is known of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ....checks import whole

__all__ = ["Array", "Rule", "Tolerant", "clipped", "distances", "lengths"]

Array = np.ndarray[Any, Any]
Self = TypeVar("Self", bound="Rule")


@dataclass(frozen=True)
class Rule:
    """Makes one update of those of all clients, in float64.

    Attributes:
        name: What it is called.
        unbounded: Why no sensitivity is known that would be worth using; empty where one is.
    """

    name: ClassVar[str]
    unbounded: ClassVar[str] = ""

    def combine(self, updates: Array, weights: Array, center: Array) -> Array:
        """The update of the round.

        Args:
            updates: Float64 (clients, parameters): what each client's training changed.
            weights: Float64 (clients,), positive. Rules that a weight could be used against ignore them.
            center: Float64 (parameters,): the update of the round before, zeros in the first.

        Returns:
            Float64 (parameters,).
        """
        raise TypeError(f"{type(self).__name__} does not combine updates")

    def at(self: Self, clients: int) -> Self | None:
        """The rule for so many clients; None if there are too few for it."""
        return self if clients >= 1 else None

    def sensitivity(self, clients: int) -> float | None:
        """By how much one client can move the outcome, in units of the clipping norm; None if not known.

        Args:
            clients: The number of rows, all of length 1 at most. Neighbors differ in one row, which is zero
                in one of them: that client took part, or did not.
        """
        del clients
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"name": self.name, **{k: _plain(v) for k, v in vars(self).items()}}


@dataclass(frozen=True)
class Tolerant(Rule):
    """A rule that is made for a number of hostile clients.

    Attributes:
        hostile: How many there may be.
    """

    hostile: int = 1

    def __post_init__(self) -> None:
        whole("hostile", self.hostile, 0)

    @staticmethod
    def bearable(clients: int) -> int:
        """How many of so many clients may be hostile; negative if there are too few clients."""
        return (clients - 1) // 2

    def at(self: Self, clients: int) -> Self | None:
        """The rule for so many clients: one for fewer hostile ones where it cannot bear as many."""
        assert isinstance(self, Tolerant)
        most = self.bearable(clients)
        if most < 0 or clients < 1:
            return None
        return self if most >= self.hostile else dataclasses.replace(self, hostile=most)


def lengths(rows: Array) -> Array:
    """The Euclidean length of each row: float64 (n,); also of rows whose squares are not finite."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return np.asarray(scale * np.sqrt(np.square(rows / scale[:, None]).sum(axis=1)))


def distances(rows: Array) -> Array:
    """Squared distances of all pairs of rows: float64 (n, n), symmetric to the last bit.

    From differences, since what is left of two long vectors' products says nothing about their distance.
    """
    found = np.zeros((len(rows), len(rows)))
    with np.errstate(over="ignore"):
        for i in range(len(rows) - 1):
            found[i, i + 1 :] = found[i + 1 :, i] = np.square(rows[i + 1 :] - rows[i]).sum(axis=1)
    return found


def clipped(rows: Array, bound: float) -> Array:
    """Rows scaled down to a length of at most `bound`."""
    found = lengths(rows)
    scale = np.minimum(1.0, bound / np.where(found > 0, found, 1.0))
    return np.asarray(rows * scale[:, None])


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Rule) else value
