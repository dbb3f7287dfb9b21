"""Abuse of the protocol: replies that are none, and clients that drop out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...checks import real
from ...errors import InputError, brief, suggest
from ...sampling import Streams
from .base import Answer, Array, Byzantine, Failure

__all__ = ["ABUSES", "DropOut", "ProtocolAbuse"]

_State = dict[str, Array]


def _filled(value: float) -> Callable[[Answer, _State], Answer]:
    def change(answer: Answer, before: _State) -> Answer:
        del before
        key = next(key for key, array in answer.arrays.items() if np.issubdtype(array.dtype, np.floating))
        return Answer({**answer.arrays, key: np.full_like(answer.arrays[key], value)}, answer.metrics)

    return change


def _claimed(value: float) -> Callable[[Answer, _State], Answer]:
    """A claim of so many examples, for the opposite of what was learned."""

    def change(answer: Answer, before: _State) -> Answer:
        arrays = {
            key: (2 * before[key] - array).astype(array.dtype)
            if np.issubdtype(array.dtype, np.floating)
            else array
            for key, array in answer.arrays.items()
        }
        return Answer(arrays, {**answer.metrics, "num-examples": value})

    return change


def _unchanged(answer: Answer, before: _State) -> Answer:
    return Answer(dict(before), answer.metrics)


def _renamed(answer: Answer, before: _State) -> Answer:
    del before
    return Answer({f"other.{key}": array for key, array in answer.arrays.items()}, answer.metrics)


def _reshaped(answer: Answer, before: _State) -> Answer:
    del before
    return Answer({key: array[None] for key, array in answer.arrays.items()}, answer.metrics)


def _raised(answer: Answer, before: _State) -> Failure:
    del answer, before
    return Failure("RuntimeError: the client has raised")


ABUSES: dict[str, Callable[[Answer, _State], Answer | Failure | None]] = {
    "nan": _filled(float("nan")),
    "infinity": _filled(float("inf")),
    "huge": _filled(1e30),
    "huge-weight": _claimed(1e9),
    "negative-weight": _claimed(-10.0),
    "zero-update": _unchanged,
    "renamed-keys": _renamed,
    "wrong-shapes": _reshaped,
    "exception": _raised,
    "silence": lambda answer, before: None,
}
"""What a reply may be made into, by name."""


@dataclass(frozen=True)
class ProtocolAbuse(Byzantine):
    """A reply that no honest client sends, such as NaN, a huge weight, other names, or none.

    Attributes:
        kind: One of `ABUSES`.
    """

    name: ClassVar[str] = "protocol"
    reference: ClassVar[str] = "none: what software does when it breaks, or is made to"
    abuse: ClassVar[bool] = True
    kind: str = "nan"

    def __post_init__(self) -> None:
        if self.kind not in ABUSES:
            raise InputError(f"kind={brief(self.kind)} is not known{suggest(str(self.kind), ABUSES)}")

    def reply(self, answer: Answer, before: dict[str, Array], round_: int) -> Answer | Failure | None:
        del round_
        return ABUSES[self.kind](answer, before)


@dataclass(frozen=True)
class DropOut(Byzantine):
    """A client that is honest, and often does not answer.

    Attributes:
        probability: That it does not, each round.
        seed: Decides in which.
    """

    name: ClassVar[str] = "drop-out"
    reference: ClassVar[str] = "McMahan et al. 2017, section 1"
    abuse: ClassVar[bool] = True
    probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        real("probability", self.probability, high=1.0, top=True)

    def reply(self, answer: Answer, before: dict[str, Array], round_: int) -> Answer | Failure | None:
        del before
        drawn: Any = Streams.derive(self.seed, "byzantine/drop-out", torch.tensor([round_])).uniform(1)
        return None if float(drawn[0, 0]) < self.probability else answer
