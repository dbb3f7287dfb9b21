"""The log of a guard: which replies were not used, and what became of each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GuardedRound", "Quarantined"]


@dataclass(frozen=True)
class Quarantined:
    """A reply that was not used.

    Attributes:
        round: Of training.
        node: Who sent it, or was asked and did not.
        reason: Why.
    """

    round: int
    node: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class GuardedRound:
    """What became of the replies of a round.

    Attributes:
        number: From 1.
        asked, accepted: Nodes.
        quarantined: The replies that were not used.
        applied: Whether the model was moved.
        note: Why it was not, or what the aggregator has to say.
    """

    number: int
    asked: tuple[int, ...]
    accepted: tuple[int, ...]
    quarantined: tuple[Quarantined, ...]
    applied: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GuardedRound:
        """What `to_dict` gave."""
        nodes = {name: tuple(data[name]) for name in ("asked", "accepted")}
        return cls(**{**data, **nodes, "quarantined": tuple(Quarantined(**q) for q in data["quarantined"])})
