"""What the server does: it sends weights, aggregates what comes back, judges it, and remembers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ...classifier import Classifier
from ...errors import InputError, RunError, brief
from ...files import write_atomic, writing
from ...threats import Threat
from ...wrapping import pick_device
from ..privacy.ledger import Ledger
from ..training import checkpoint
from ..training.checkpoint import Checkpoint
from ..training.validation import accuracies
from . import state as memory
from .outcome import Unmoved, write_model
from .rounds import Patient, Round, drawn, in_order, reported, settled, shown

__all__ = ["CHECKPOINT", "LOG", "MODEL", "Server"]

CHECKPOINT, LOG, MODEL = "federation.safetensors", "log.jsonl", "model.safetensors"


@dataclass
class Server:
    """A server, from its first round or from a checkpoint to its last.

    The round is Flower's: the strategy says whom to send what, the grid sends it, the strategy aggregates.
    It is gone through here and not in `Strategy.start`, which cannot begin with any but the first round.

    Attributes:
        model: What is trained, in place.
        strategy: How clients are chosen and their replies aggregated.
        rounds: How many.
        held: Held-out inputs (n, *shape) and labels int64 (n,), or None.
        threats: Bound to the inputs; the held-out data are attacked within them.
        keep: Which round's weights to end with: the "last", or the one with the best "clean" or "robust"
            accuracy on the held-out data.
        seed: Decides what the strategy draws and how the held-out data are attacked.
        device: Where the held-out data are classified.
        deadline: Seconds that a round waits for replies.
        config: What clients are sent beside the weights.
        out: The folder for the checkpoint of each round, the log and, in the end, the model; None for none.
        resume: Go on from the checkpoint in `out`.
        plan: What decides the outcome, as plain data; a checkpoint goes on only under the same.
        contexts: Of clients that live in this process, by node: what they keep is in the checkpoint too.
        ledgers: Of clients that live in other processes of this machine, by number, where each has written
            what its privacy has cost; empty if that is not known.
        show: Whether to say on stderr how each round went.
        history: One entry per round, and one before the first.
        chosen: The round whose weights the model has in the end.
        best: Those weights.
        names: The numbers of the clients, by node.
    """

    model: Classifier
    strategy: Strategy
    rounds: int
    held: tuple[Tensor, Tensor] | None = None
    threats: tuple[Threat, ...] = ()
    keep: str = "last"
    seed: int = 0
    device: str = "cpu"
    deadline: float = 3600.0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    out: Path | None = None
    resume: bool = False
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    contexts: Mapping[int, Context] = dataclasses.field(default_factory=dict)
    ledgers: Mapping[int, Ledger] = dataclasses.field(default_factory=dict)
    show: bool = False
    history: list[Round] = dataclasses.field(default_factory=list)
    chosen: int = 0
    best: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    names: dict[int, int] = dataclasses.field(default_factory=dict)

    def run(self, grid: Any) -> None:
        """Go through the rounds.

        Raises:
            RunError: if too few clients come, the budget of privacy is spent, no round changes the model, or
                another server is at work in the folder.
        """
        with _alone(self.out):
            self._run(grid)

    def _run(self, grid: Any) -> None:
        self.names |= {
            node: int(str(context.node_config["partition-id"])) for node, context in self.contexts.items()
        }
        self._state = {name: value.cpu() for name, value in self.model.module.state_dict().items()}
        self._restore()
        self._rewind()
        for number in range(len(self.history), self.rounds + 1):
            entry = (
                self._round(grid, number) if number else self._judged(0, (), False, "", time.perf_counter())
            )
            self.history.append(entry)
            self._choose(entry)
            self._save()
            self._tell(entry)
        self.model.module.load_state_dict(self.best)
        if not any(entry.moved for entry in self.history):
            raise Unmoved(f"no round changed the model: {self._why()}")
        if self.out is not None:
            facts = {**self.plan, "rounds": self.rounds, "chosen": self.chosen}
            write_model(self.model, facts, self.out / MODEL)

    def _why(self) -> str:
        """The first things that went wrong."""
        notes = [entry.note for entry in self.history if entry.note]
        told = [client for entry in self.history for client in entry.clients if "error" in client]
        said = [f"client {client['client']} says {client['error']}" for client in told]
        return "; ".join([*notes[:1], *said[:1]]) or "no round was run"

    def _round(self, grid: Any, number: int) -> Round:
        begun = time.perf_counter()
        with drawn(self.seed, "configure", number):
            messages = list(
                self.strategy.configure_train(
                    number,
                    ArrayRecord(self._state),
                    ConfigRecord({**self.config, "server-round": number}),
                    Patient(grid, self.deadline),  # type: ignore[arg-type]
                )
            )
        replies = in_order(grid.send_and_receive(messages, timeout=self.deadline))
        clients = reported((message.metadata.dst_node_id for message in messages), replies, self.names)
        state, note = self._aggregated(number, replies)
        if state is not None:
            self._state = state
        return self._judged(number, tuple(clients), state is not None, note, begun)

    def _aggregated(self, number: int, replies: list[Message]) -> tuple[dict[str, Tensor] | None, str]:
        try:
            with drawn(self.seed, "aggregate", number):
                arrays, _ = self.strategy.aggregate_train(number, replies)
        except PrivacyBudgetExhausted as error:
            raise RunError(f"round {number}: {error}") from None
        except Exception as error:  # a strategy may choke on what a client sent
            return (
                None,
                f"{type(self.strategy).__name__} failed: {type(error).__name__}: {brief(str(error), 200)}",
            )
        state, note = settled(arrays, self._state)
        # A guard knows more about it.
        return state, str(getattr(self.strategy, "note", "")) or note

    def _judged(
        self, number: int, clients: tuple[dict[str, Any], ...], moved: bool, note: str, begun: float
    ) -> Round:
        clean = robust = None
        self.model.module.load_state_dict(self._state)
        if self.held is not None:
            device = pick_device(self.device)
            self.model.to(device).eval()
            clean, robust = accuracies(self.model, *self.held, self.threats, self.seed, device)
        losses = [client["loss"] for client in clients if "loss" in client]
        right = [client["accuracy"] for client in clients if "accuracy" in client]
        return Round(
            number=number,
            clean=clean,
            robust=robust,
            loss=statistics.median(losses) if losses else None,
            accuracy=statistics.median(right) if right else None,
            clients=clients,
            moved=moved,
            note=note,
            seconds=round(time.perf_counter() - begun, 6),
        )

    def _choose(self, entry: Round) -> None:
        figures = [self._figure(other) for other in self.history]
        kept = figures[self.chosen]
        now = figures[entry.number]
        if self.keep == "last" or now is None or kept is None or not self.best or now > kept:
            self.chosen = entry.number
            self.best = {name: value.clone() for name, value in self._state.items()}

    def _figure(self, entry: Round) -> float | None:
        return entry.clean if self.keep == "clean" or entry.robust is None else entry.robust

    def _save(self) -> None:
        if self.out is None:
            return
        tensors = {f"model.{name}": value for name, value in self._state.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        facts = {
            "history": [entry.to_dict() for entry in self.history],
            "chosen": self.chosen,
            "strategy": memory.packed_strategy(self.strategy, tensors),
            "clients": memory.packed_contexts(self.contexts, tensors),
        }
        checkpoint.save(self.out / CHECKPOINT, Checkpoint(self.plan, facts, tensors))

    def _restore(self) -> None:
        if not self.resume or self.out is None or not (self.out / CHECKPOINT).is_file():
            return
        path = self.out / CHECKPOINT
        stored = checkpoint.load(path)
        checkpoint.same_plan(stored.plan, self.plan, path)
        self.history = [Round.from_dict(facts) for facts in stored.facts["history"]]
        if len(self.history) > self.rounds + 1:
            done = len(self.history) - 1
            raise InputError(f"{str(path)!r} has {done} rounds already; rounds={self.rounds} is less")
        self.chosen = stored.facts["chosen"]
        for name, value in stored.tensors.items():
            head, _, key = name.partition(".")
            if head in {"model", "best"}:
                (self._state if head == "model" else self.best)[key] = value
        memory.unpack_strategy(self.strategy, stored.facts["strategy"], stored.tensors)
        memory.unpack_contexts(self.contexts, stored.facts["clients"], stored.tensors)

    def _rewind(self) -> None:
        """A round may have been logged and not saved, or saved and not logged."""
        if self.out is not None:
            write_atomic(self.out / LOG, "".join(_line(entry) for entry in self.history))

    def _tell(self, entry: Round) -> None:
        if self.out is not None:
            with writing(self.out / LOG), (self.out / LOG).open("a", encoding="utf-8") as file:
                file.write(_line(entry))
        if self.show:
            sys.stderr.write(shown(entry) + "\n")
            sys.stderr.flush()


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """While this lasts, no other server works in a folder: one that lost its SuperLink may still live.

    The lock ends with the process, however that ends. Where folders cannot be locked, there is none.

    Raises:
        RunError: if another one does.
    """
    if folder is None or os.name != "posix":
        yield
        return
    import fcntl

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another server is at work in {str(folder)!r}; end it, then resume") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _line(entry: Round) -> str:
    return json.dumps(entry.to_dict()) + "\n"
