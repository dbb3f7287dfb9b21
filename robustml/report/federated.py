"""The section on the federation that a model comes from: what it holds, where it lies, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from ..files import read_object, write_atomic
from ..schema import Frozen, validated

__all__ = [
    "FILE",
    "Federated",
    "FederatedRound",
    "Spent",
    "federated_lines",
    "federated_of",
    "keep_federated",
]

FILE = "federated.json"


class FederatedRound(Frozen):
    """One round of a federation, or the state before the first."""

    number: int = Field(ge=0)
    clean: float | None = Field(ge=0, le=1)
    """Accuracy on the server's data; None without any."""
    robust: float | None = Field(ge=0, le=1)
    """Of that, what withstood a short attack; None where the objective has no threat model."""
    failed: int = Field(ge=0)
    """How many of the clients that were asked gave no usable answer of their own accord."""
    moved: bool
    """Whether the model was changed."""


class Spent(Frozen):
    """What privacy has cost."""

    epsilon: float | None = Field(ge=0)
    """None where it is not finite."""
    delta: float
    client: int | None
    """Who has spent most, where each client has a ledger of its own."""


class Federated(Frozen):
    """The federation that a model comes from."""

    samples: list[int]
    """Of each client."""
    partition: str
    aggregation: str
    hostile: list[int]
    """Clients that were made hostile, to test it."""
    kept: int = Field(ge=0)
    """The round whose weights the model has."""
    history: list[FederatedRound]
    quarantined: int = Field(ge=0)
    """Replies that the guard refused."""
    sample_privacy: Spent | None
    """What is promised for each sample of a client; None if nothing is."""
    client_privacy: Spent | None
    """What is promised for a client as a whole; None if nothing is."""


def federated_of(folder: Path) -> Federated | None:
    """The federation that a run folder tells of; None if it tells of none.

    Raises:
        InputError: if its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    return validated(Federated, read_object(path), where=str(path))


def keep_federated(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of a federation into a run folder.

    Raises:
        InputError: if they are not such figures.
        RunError: if they cannot be written.
    """
    found = validated(Federated, dict(figures), where="figures")
    write_atomic(folder / FILE, found.model_dump_json(indent=1) + "\n")


def federated_lines(section: Federated) -> Iterator[tuple[str, str]]:
    """The section in words: name and text of each line."""
    sizes = section.samples
    hostile = ", ".join(map(str, section.hostile))
    yield (
        "Clients",
        f"{len(sizes)} with {min(sizes)} to {max(sizes)} samples ({section.partition})"
        + (f"; hostile on purpose: {hostile}" if hostile else ""),
    )
    rounds = section.history[1:]
    still = sum(not entry.moved for entry in rounds)
    yield (
        "Rounds",
        f"{len(rounds)}, the weights are those of round {section.kept}; "
        f"{still} left the model as it was; {sum(entry.failed for entry in rounds)} failures of clients",
    )
    yield "Aggregation", f"{section.aggregation}; {section.quarantined} replies in quarantine"
    for name, spent in (("samples", section.sample_privacy), ("clients", section.client_privacy)):
        if spent is not None:
            epsilon = "no finite epsilon" if spent.epsilon is None else f"epsilon {spent.epsilon:.2f}"
            whose = "" if spent.client is None else f", spent by client {spent.client}, the others less"
            yield f"Privacy of {name}", f"{epsilon} at delta {spent.delta:g}{whose}"
