"""Flower's grid within one process: the same apps, no processes, no ports, the same bits each time."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from ...errors import InputError, brief
from .alarm import bounded

__all__ = ["FIRST_NODE", "Answer", "InProcessGrid", "answered", "identified"]

Answer = Callable[[Message, Context], Any]
"""What a node does with a message: a ClientApp, or any function like one. None is silence."""

FIRST_NODE = 2  # Flower's server is node 1.
_RAISED = 2  # Flower's ErrorCode for a ClientApp that raised


@contextlib.contextmanager
def identified() -> Iterator[None]:
    """While this lasts, messages can be made in this process; a SuperLink would have said who makes them."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


class InProcessGrid(Grid):
    """A grid whose nodes answer one after the other in this process.

    Nodes work and reply in the order of their ids, whatever the order of the messages. What a node gets and
    keeps is its own: changing it reaches neither the server nor another node. A node that raises sends an
    error, as on a SuperLink; one whose answer takes longer than the time limit is not heard. Each node has
    the whole limit, as if all worked at once. Where the system allows it (see `alarm.bounded`: in the main
    thread, and not on Windows), a node that is still at work then is interrupted by an exception; elsewhere
    the grid waits until it ends. What such a node has put into its context stays there, which a SuperNode's
    app would lose if it were killed: what privacy has cost must not be forgotten.

    Args:
        apps: What each node runs: one per node, so that an attacker is another app.
        run_config: What the nodes see as `context.run_config`.
        node_configs: What each node sees as `context.node_config`, beside its number of the partition.
    """

    def __init__(
        self,
        apps: Sequence[Answer],
        run_config: Mapping[str, Any] | None = None,
        node_configs: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if not apps:
            raise InputError("apps is empty; a grid needs one node at least")
        if node_configs is not None and len(node_configs) != len(apps):
            raise InputError(f"node_configs has {len(node_configs)} entries for {len(apps)} apps")
        self._apps = {FIRST_NODE + place: app for place, app in enumerate(apps)}
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={
                    **(node_configs[node - FIRST_NODE] if node_configs else {}),
                    "partition-id": node - FIRST_NODE,
                    "num-partitions": len(apps),
                },
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node in self._apps
        }
        self._answers: dict[str, tuple[Message, float]] = {}
        self._sent = 0

    def set_run(self, run: Any) -> None:
        """There is one run, this one."""

    @property
    def run(self) -> Any:
        """None: the run is known to no SuperLink."""
        return None

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes, in order."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have the nodes answer; the ids by which the answers can be pulled, in the order of the messages."""
        return self._pushed(messages, None)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers to these messages, in the order of the nodes; silent nodes have none."""
        return self._pulled(message_ids, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answers in the order of the nodes, without those that took longer than `timeout` seconds."""
        return self._pulled(self._pushed(messages, timeout), timeout)

    def _pushed(self, messages: Iterable[Message], timeout: float | None) -> list[str]:
        given = list(messages)
        for message in given:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
        for message in sorted(given, key=lambda message: message.metadata.dst_node_id):
            begun = time.monotonic()
            answer = self._ask(message, timeout)
            if answer is not None:
                self._answers[message.metadata.message_id] = answer, time.monotonic() - begun
        return [message.metadata.message_id for message in given]

    def _pulled(self, message_ids: Iterable[str], timeout: float | None) -> list[Message]:
        found = [self._answers.pop(name) for name in message_ids if name in self._answers]
        heard = [answer for answer, seconds in found if timeout is None or seconds <= timeout]
        return sorted(heard, key=lambda answer: answer.metadata.src_node_id)

    def _ask(self, message: Message, timeout: float | None) -> Message | None:
        node = message.metadata.dst_node_id
        return answered(self._apps[node], message, self.contexts[node], timeout)


def answered(app: Answer, message: Message, context: Context, seconds: float | None = None) -> Message | None:
    """What an app answers; an error if it raises or returns something else, None if it is silent.

    The app gets a copy of the message, and the answer goes out under the name of the node that was asked: a
    SuperLink lets nobody sign for another. Of the context it may change the state, which stays one.

    Args:
        app: The app.
        message, context: What it is given.
        seconds: After which it is interrupted, where that can be done, and counts as silent.
    """
    own, config, state = copy.deepcopy(message), copy.deepcopy(context.node_config), context.state
    try:
        answer = bounded(seconds, lambda: app(own, context))
        if answer is None:
            return None
        if not isinstance(answer, Message):
            return Message(Error(_RAISED, f"the app returned {brief(answer)}, no message"), reply_to=message)
        if answer.has_error():
            return Message(answer.error, reply_to=message)
        return Message(answer.content, reply_to=message)
    except (Exception, SystemExit) as error:  # what a client does wrong is no fault of the run
        return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
    finally:
        context.node_config = config
        if not isinstance(context.state, RecordDict):
            context.state = state
