"""Guarded aggregation: no reply, whatever it is, ends a run or reaches a strategy that it could break.

This file needs Flower.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ...checks import real
from ...errors import InputError, RobustmlError, brief
from ...sampling import Streams
from .layout import Layout
from .quarantine import GuardedRound, Quarantined
from .replies import Limits, Rejected, Reply, compared, read, read_metrics, settled

__all__ = ["Guarded", "GuardedRound", "Quarantined"]

_POLL = 0.2  # seconds between looks at who is there


class Guarded(Strategy):
    """Any Flower strategy, behind a guard.

    Before the strategy sees a reply, it is checked: that it is one, from a node that was asked, in time;
    names, shapes and types of the arrays; finite numbers; a number of examples that is positive and not far
    above what the others claim; an update that is neither zero nor a hundred times as long as is usual. What
    fails is quarantined with its reason, and the round goes on with the rest. With fewer good replies than
    the quorum, or if the strategy raises, or makes something that is no model, the model stays as it is.

    Where whole clients are promised privacy, replies are not compared with each other, since that would let
    one client decide about another's part.

    Args:
        strategy: What aggregates the good replies.
        quorum: How many good replies a round needs: a number, or a share of the nodes asked.
        fraction: The share of the nodes that are asked each round; which ones follows from the seed.
        nodes: How many nodes have to be there before a round begins.
        wait: For how many seconds to wait for them; then the round is left out.
        seed: Decides which nodes are asked.
        limits: Those of `Limits`: examples, examples_ratio, norm_ratio.

    Raises:
        InputError: for something that is none of these.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        quorum: int | float = 0.5,
        fraction: float = 1.0,
        nodes: int = 1,
        wait: float = 60.0,
        seed: int = 0,
        **limits: Any,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise InputError(f"strategy is {type(strategy).__name__}, not a Flower strategy")
        for name, value in (("quorum", quorum), ("fraction", fraction), ("nodes", nodes), ("wait", wait)):
            real(name, value)
        if fraction > 1 or (isinstance(quorum, float) and quorum > 1):
            raise InputError(f"fraction={fraction:g} and a quorum that is a share ({quorum:g}) are 1 at most")
        self.strategy = strategy
        self.quorum = quorum
        self.fraction = fraction
        self.nodes = nodes
        self.wait = wait
        self.seed = seed
        self.limits = _limits(limits)
        self.rounds: list[GuardedRound] = []
        self._sent: dict[str, Any] = {}
        self._asked: tuple[int, ...] = ()

    @property
    def quarantine(self) -> tuple[dict[str, Any], ...]:
        """Every reply that was not used, as plain data: round, node and reason."""
        return tuple(entry.to_dict() for round_ in self.rounds for entry in round_.quarantined)

    @property
    def note(self) -> str:
        """What is to be said about the last round; empty if nothing is."""
        return self.rounds[-1].note if self.rounds else ""

    @property
    def private(self) -> bool:
        """Whether whole clients are promised privacy."""
        return bool(getattr(self.strategy, "private", False))

    def summary(self) -> None:
        """See `Strategy.summary`."""
        self.strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **more: Any) -> Result:
        """Go through the rounds; if none moves the model, it is as it was."""
        result = super().start(grid, initial_arrays, *args, **more)
        if not result.arrays:
            result.arrays = initial_arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask as many nodes as are wanted; none if too few are there."""
        self._sent = {key: value.numpy() for key, value in arrays.items()}
        chosen = self._chosen(server_round, grid)
        messages: list[Message] = []
        if chosen:
            view: Any = _View(grid, chosen)
            messages = list(self.strategy.configure_train(server_round, arrays, config, view))
        self._asked = tuple(sorted(message.metadata.dst_node_id for message in messages))
        return sorted(messages, key=lambda message: int(message.metadata.dst_node_id))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model, moved by the good replies; None if it stays."""
        layout = Layout.of(self._sent)
        key = getattr(self.strategy, "weighted_by_key", "num-examples")
        good, bad = self._sorted(
            server_round, replies, lambda message: read(message, self._sent, layout, key, self.limits)
        )
        common: list[str] = []
        if not self.private:
            good, reasons, common = compared(good, self.limits)
            bad += [Quarantined(server_round, node, reason) for node, reason in reasons.items()]
        needed = self._needed()
        moved, metrics = None, None
        if not self._asked:
            note = f"fewer than {self.nodes} nodes were there after {self.wait:g} s"
        elif len(good) < needed:
            note = f"{len(good)} good replies of {len(self._asked)} are fewer than the quorum of {needed}"
        else:
            moved, metrics, note = self._aggregated(server_round, self._rewritten(good, key, common), layout)
        accepted = tuple(reply.node for reply in good)
        bad.sort(key=lambda entry: entry.node)
        self.rounds.append(
            GuardedRound(server_round, self._asked, accepted, tuple(bad), moved is not None, note)
        )
        return moved, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `Strategy.configure_evaluate`."""
        nodes = sorted(grid.get_node_ids())
        if len(nodes) < getattr(self.strategy, "min_available_nodes", 1):
            return []
        view: Any = _View(grid, nodes)
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, view))
        self._asked = tuple(sorted(message.metadata.dst_node_id for message in messages))
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of the replies that are right; None if there are none."""
        key = getattr(self.strategy, "weighted_by_key", "num-examples")

        def checked(message: Message) -> Reply:
            weight, metrics = read_metrics(message, key, self.limits)
            return Reply(message, weight, 0.0, metrics)

        good, _ = self._sorted(server_round, replies, checked)
        good, _, common = compared(good, self.limits)
        try:
            found = self.strategy.aggregate_evaluate(server_round, self._rewritten(good, key, common))
        except RobustmlError:
            raise
        except Exception:  # metrics are no reason to stop
            return None
        return found

    def state_dict(self) -> dict[str, Any]:
        """What it and the strategy remember from round to round."""
        own = getattr(self.strategy, "state_dict", None)
        inner = own() if own else {k: v for k, v in vars(self.strategy).items() if _remembered(v)}
        return {"rounds": [entry.to_dict() for entry in self.rounds], "strategy": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give it back what another one remembered."""
        self.rounds = [GuardedRound.from_dict(entry) for entry in state["rounds"]]
        own = getattr(self.strategy, "load_state_dict", None)
        if own:
            own(state["strategy"])
        else:
            vars(self.strategy).update(state["strategy"])

    def _chosen(self, number: int, grid: Grid) -> list[int]:
        least = max(getattr(self.strategy, name, 1) for name in ("min_available_nodes", "min_train_nodes"))
        least = max(least, self.nodes, self.quorum if isinstance(self.quorum, int) else 1)
        end = time.monotonic() + self.wait
        while len(there := sorted(grid.get_node_ids())) < least and time.monotonic() < end:
            time.sleep(min(_POLL, self.wait))
        if len(there) < least:
            return []
        count = min(len(there), max(least, round(self.fraction * len(there))))
        streams = Streams.derive(self.seed, f"federated/nodes/{number}", _keys(there))
        order = streams.bits(1)[:, 0].argsort(stable=True)[:count]
        return sorted(there[place] for place in order.tolist())

    def _needed(self) -> int:
        share = self.quorum * len(self._asked) if isinstance(self.quorum, float) else self.quorum
        return max(1, math.ceil(share))

    def _sorted(
        self, number: int, replies: Iterable[Message], check: Any
    ) -> tuple[list[Reply], list[Quarantined]]:
        """The replies that are right by themselves, in the order in which they came, and the others."""
        by_node: dict[int, list[Message]] = {}
        for message in replies:
            by_node.setdefault(int(message.metadata.src_node_id), []).append(message)
        good, bad = [], []
        for node, messages in by_node.items():
            try:
                if node not in self._asked:
                    raise Rejected("it was not asked")
                if len(messages) > 1:
                    raise Rejected(f"it replied {len(messages)} times")
                good.append(check(messages[0]))
            except Rejected as reason:
                bad.append(Quarantined(number, node, str(reason)))
            except Exception as error:  # whatever a stranger has found to break
                bad.append(Quarantined(number, node, f"it cannot be read: {type(error).__name__}"))
        bad += [Quarantined(number, n, "no reply in time") for n in self._asked if n not in by_node]
        return good, bad

    def _rewritten(self, good: Sequence[Reply], key: str, common: Sequence[str]) -> list[Message]:
        names = (getattr(self.strategy, "arrayrecord_key", "arrays"), "metrics", key)
        return [reply.rewritten(names, common) for reply in good]

    def _aggregated(
        self, number: int, replies: list[Message], layout: Layout
    ) -> tuple[ArrayRecord | None, MetricRecord | None, str]:
        # A strategy that fails halfway has already changed what it remembers.
        before = copy.deepcopy(vars(self.strategy))
        try:
            arrays, metrics = self.strategy.aggregate_train(number, replies)
            note = str(getattr(self.strategy, "note", ""))
            if arrays is None:
                return None, metrics, note or f"{type(self.strategy).__name__} made nothing of the replies"
            moved, fault = settled(arrays, layout)
        except RobustmlError:
            raise
        except Exception as error:  # a strategy may choke on what was let through
            note = f"{type(self.strategy).__name__} failed: {type(error).__name__}: {brief(str(error), 160)}"
            moved, metrics, fault = None, None, note
        if moved is None:
            vars(self.strategy).clear()
            vars(self.strategy).update(before)
            return None, None, fault
        return moved, metrics, note


class _View:
    """A grid on which only some nodes can be seen.

    Args:
        grid: The grid.
        nodes: Those nodes.
    """

    def __init__(self, grid: Any, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)


def _limits(given: Mapping[str, Any]) -> Limits:
    known = {field.name for field in dataclasses.fields(Limits)}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{name} is not an option of Guarded; known: {', '.join(sorted(known))}")
        if not (name == "examples" and value is None):
            real(name, value)
    return Limits(**given)


def _remembered(value: Any) -> bool:
    """Whether an attribute of a strategy is something that it learns from round to round."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, np.ndarray | np.generic) for item in value)
    return isinstance(value, (ArrayRecord, np.ndarray))


def _keys(nodes: Sequence[int]) -> torch.Tensor:
    # Flower's ids are unsigned words of 64 bits.
    return torch.tensor([node - 2**64 if node >= 2**63 else node for node in nodes], dtype=torch.int64)
