"""One round of a federation, as it is remembered, and the small things that a server needs for it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random  # noqa: TID251 - Flower samples nodes from its global state, which is saved and put back
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

from ...errors import RunError
from .client import derived_seed

__all__ = ["Patient", "Round", "drawn", "in_order", "reported", "settled", "shown"]

_FIGURES = ("num-examples", "loss", "accuracy", "epsilon", "delta")
_LONGEST = 200


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: From 1; 0 is the state before any.
        clean: Accuracy of the server's model on the held-out data, None without any.
        robust: Of that, what withstands a short attack within each threat model of the objective; None for
            an objective without any.
        loss: The median of the losses that the clients report, each on its own data while it trains.
        accuracy: The median of the accuracies that they report.
        clients: What each client that was asked has said: plain figures, or an `error`.
        moved: Whether the server's model was changed.
        note: Why it was not, or what was left out.
        seconds: Of the whole round.
    """

    number: int
    clean: float | None
    robust: float | None
    loss: float | None
    accuracy: float | None
    clients: tuple[dict[str, Any], ...]
    moved: bool
    note: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Round:
        """What `to_dict` gave."""
        return cls(**{**facts, "clients": tuple(facts["clients"])})


@contextlib.contextmanager
def drawn(seed: int, *key: object) -> Iterator[None]:
    """While this lasts, every global generator has the numbers of a key; then they are what they were.

    Flower's strategies sample nodes and draw noise from those generators.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    number = derived_seed(seed, *key)
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(number)
            np.random.seed(number % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(number)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class Patient:
    """A grid that waits for nodes only so long: a strategy would ask for them for ever.

    Args:
        grid: The grid.
        seconds: How long, from now.
    """

    def __init__(self, grid: Any, seconds: float) -> None:
        self._grid = grid
        self._seconds = seconds
        self._begun = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        """The nodes that are there, in order.

        Raises:
            RunError: when it was asked again and again for too long.
        """
        found = sorted(self._grid.get_node_ids())
        if time.monotonic() - self._begun > self._seconds:
            raise RunError(f"{len(found)} clients are there after {self._seconds:g} s, which are too few")
        return found


def in_order(replies: Iterable[Message]) -> list[Message]:
    """Replies in the order of the partitions, so that sums do not depend on who was first."""
    return sorted(replies, key=lambda reply: (_claimed(reply, math.inf), reply.metadata.src_node_id))


def _claimed(reply: Message, otherwise: Any) -> Any:
    """The number that a client gives itself: it decides about order and names, and about nothing else."""
    if reply.has_error():
        return otherwise
    about = reply.content.get("client")
    claim = about.get("partition") if isinstance(about, ConfigRecord) else None
    return claim if isinstance(claim, int) and not isinstance(claim, bool) else otherwise


def reported(sent: Iterable[int], replies: Iterable[Message], names: dict[int, int]) -> list[dict[str, Any]]:
    """What each client has said, as plain data.

    Args:
        sent: The nodes that were asked.
        replies: Their replies.
        names: The numbers of clients by node, which is added to.
    """
    answers = {reply.metadata.src_node_id: reply for reply in replies}
    claims = {node: _claimed(reply, node) for node, reply in answers.items() if node not in names}
    taken = [*names.values(), *claims.values()]
    # Who calls itself by another's number is called by its node, or the other would be blamed for it.
    names |= {node: claim if taken.count(claim) == 1 else node for node, claim in claims.items()}
    entries = [_entry(names.get(node, node), answers.get(node)) for node in sorted(sent)]
    return sorted(entries, key=lambda entry: int(entry["client"]))


def _entry(name: int, reply: Message | None) -> dict[str, Any]:
    if reply is None:
        return {"client": name, "error": "no reply in time"}
    if reply.has_error():
        reason = " ".join(str(reply.error.reason)[: 10 * _LONGEST].split())[:_LONGEST]
        # It may end up on a terminal.
        shown = "".join(sign if sign.isprintable() else "?" for sign in reason)
        return {"client": name, "error": shown or "unknown"}
    figures: dict[str, Any] = {"client": name}
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            # Names come from strangers, so only the known ones are looked for.
            figures |= {key: record[key] for key in _FIGURES if _is_figure(record.get(key))}
    return figures


def _is_figure(value: Any) -> bool:
    # Compared, since a whole number may be too large for the test of a floating-point one.
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def settled(arrays: ArrayRecord | None, before: Mapping[str, Tensor]) -> tuple[dict[str, Tensor] | None, str]:
    """The state that a strategy has come to, in the types that the model has; None and why not.

    Whatever the strategy lets through, a state with other names or shapes, or with a number that is not
    finite, is not taken. Whole numbers, such as the batches that a BatchNorm layer has counted, are rounded.
    """
    if arrays is None:
        return None, "nothing to aggregate"
    try:
        found = dict(arrays.to_torch_state_dict())
    except Exception as error:  # bytes of strangers
        return None, f"the aggregate cannot be read: {type(error).__name__}"
    if found.keys() != before.keys():
        return None, "the aggregate has other arrays than the model"
    state = {}
    for name, old in before.items():
        new = found[name]
        if new.shape != old.shape:
            return None, f"the aggregate has shape {tuple(new.shape)} for {name}, not {tuple(old.shape)}"
        if not bool(torch.isfinite(new).all()):
            return None, f"the aggregate is not finite in {name}"
        whole = not (old.is_floating_point() or old.is_complex())
        state[name] = (new.round() if whole and new.is_floating_point() else new).to(old.dtype)
        if not bool(torch.isfinite(state[name]).all()):
            return None, f"the aggregate is too large in {name}"
    return state, ""


def shown(entry: Round) -> str:
    """A round in one line."""
    figures = {"clean": entry.clean, "robust": entry.robust}
    parts = [f"{name} {100 * value:.1f} %" for name, value in figures.items() if value is not None]
    if entry.loss is not None:
        parts.insert(0, f"loss {entry.loss:.4f}")
    failed = [client for client in entry.clients if "error" in client]
    if failed:
        parts.append(f"{len(failed)} of {len(entry.clients)} clients failed")
    if entry.note:
        parts.append(entry.note)
    return f"round {entry.number}: {', '.join([*parts, f'{entry.seconds:.1f} s'])}"
