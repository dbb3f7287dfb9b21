"""A federation some of whose clients are hostile: replies are rewritten on their way into the guard.

This file needs Flower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import (  # noqa: TID253 - imported when a federation is
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import Strategy  # noqa: TID253

from ..attacks.byzantine import Answer, Byzantine, Failure, Scene
from ..defenses.federated.guarding import Guarded
from ..defenses.federated.layout import Layout

__all__ = ["Besieged"]

_FIRST = 2  # the node of client 0 where clients say nothing about themselves
_RAISED = 2  # Flower's code for a client that raised


class Besieged(Guarded):
    """A guarded strategy, and hostile clients who know the honest updates of the round.

    No client needs to be changed: what the hostile ones have honestly computed is replaced by what they send.
    It works in every runtime.

    Args:
        strategy: What aggregates.
        attack: What the hostile clients do. Its `data` is to be given to them beforehand.
        hostile: Their numbers.
        options: Those of `Guarded`.
    """

    def __init__(self, strategy: Strategy, attack: Byzantine, hostile: Iterable[int], **options: Any) -> None:
        super().__init__(strategy, **options)
        self.attack = attack
        self.hostile = frozenset(hostile)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `Guarded.aggregate_train`."""
        return super().aggregate_train(server_round, self._rewritten_by(list(replies), server_round))

    def _rewritten_by(self, replies: list[Message], number: int) -> list[Message]:
        layout = Layout.of(self._sent)
        start = layout.flat(self._sent)
        whole = [reply for reply in replies if not reply.has_error()]
        theirs = [reply for reply in whole if _number(reply) in self.hostile]
        honest = [reply for reply in whole if _number(reply) not in self.hostile]
        if not theirs or not honest:
            return replies
        states = {id(reply): _state(reply) for reply in whole}
        moved = {key: layout.flat(state) - start for key, state in states.items()}
        scene = Scene(
            np.stack([moved[id(reply)] for reply in honest]),
            np.stack([moved[id(reply)] for reply in theirs]),
            number,
            self.seed,
        )
        rows = dict(zip(map(id, theirs), self.attack.updates(scene), strict=True))
        found = []
        for reply in replies:
            if id(reply) not in rows:
                found.append(reply)
                continue
            arrays = {**states[id(reply)], **layout.shaped(start + rows[id(reply)])}
            metrics = dict(next(iter(reply.content.metric_records.values())))
            answer = self.attack.reply(Answer(arrays, metrics), self._sent, number)
            if answer is not None:
                found.append(_message(answer, reply))
        return found


def _number(reply: Message) -> int:
    """The number that a client of ours gives itself."""
    about = reply.content.get("client")
    claim = about.get("partition") if isinstance(about, ConfigRecord) else None
    return claim if isinstance(claim, int) else int(reply.metadata.src_node_id) - _FIRST


def _state(reply: Message) -> dict[str, Any]:
    return {key: value.numpy() for key, value in next(iter(reply.content.array_records.values())).items()}


def _message(answer: Answer | Failure, reply: Message) -> Message:
    made: Any = Message
    if isinstance(answer, Failure):
        return made(error=Error(_RAISED, answer.reason), metadata=reply.metadata)  # type: ignore[no-any-return]
    arrays = ArrayRecord({key: Array(np.asarray(value)) for key, value in answer.arrays.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(answer.metrics)})
    return made(content, metadata=reply.metadata)  # type: ignore[no-any-return]
