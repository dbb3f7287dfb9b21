"""Flower's grid in one process."""

from __future__ import annotations

import time

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import robustml as rml
from robustml.defenses.federated.grid import FIRST_NODE, InProcessGrid, identified
from robustml.defenses.federated.rounds import Patient, drawn, in_order, settled

from .small import net, weights


def ask(grid: InProcessGrid, nodes: list[int]) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"text": "hello"})})
    return [Message(content, node, "train") for node in nodes]


def echo(message: Message, context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"node": context.node_id})}), reply_to=message)


def test_nodes_reply_in_their_order() -> None:
    worked: list[int] = []

    def app(message, context):
        worked.append(context.node_id)
        return echo(message, context)

    grid = InProcessGrid([app] * 4)
    with identified():
        replies = grid.send_and_receive(ask(grid, [5, 3, 4, 2]))
    assert worked == [2, 3, 4, 5]
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4, 5]
    assert grid.get_node_ids() == [2, 3, 4, 5]
    assert [context.node_config["partition-id"] for context in grid.contexts.values()] == [0, 1, 2, 3]


def test_what_a_node_changes_is_its_own() -> None:
    def vandal(message, context):
        message.content["config"]["text"] = "changed"
        return echo(message, context)

    seen: list[str] = []

    def reader(message, context):
        seen.append(message.content["config"]["text"])
        return echo(message, context)

    grid = InProcessGrid([vandal, reader])
    with identified():
        messages = ask(grid, [2, 3])
        grid.send_and_receive(messages)
    assert seen == ["hello"]
    assert messages[0].content["config"]["text"] == "hello"


def test_nobody_signs_for_another() -> None:
    other: list[Message] = []

    def forger(message, context):
        reply = echo(message, context)
        reply.metadata.__dict__["_src_node_id"] = 3
        other.append(reply)
        return reply

    grid = InProcessGrid([forger, echo])
    with identified():
        replies = grid.send_and_receive(ask(grid, [2, 3]))
    assert other[0].metadata.src_node_id == 3
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3]


def test_who_is_late_is_not_heard() -> None:
    def slow(message, context):
        time.sleep(0.3)
        return echo(message, context)

    grid = InProcessGrid([slow, echo])
    with identified():
        replies = grid.send_and_receive(ask(grid, [2, 3]), timeout=0.2)
    assert [reply.metadata.src_node_id for reply in replies] == [3]


def test_who_makes_messages_is_forgotten_afterwards() -> None:
    before = TaskIdentity._node_id
    with identified():
        assert TaskIdentity.node_id == 1
    assert TaskIdentity._node_id == before


def test_a_grid_without_nodes_is_refused() -> None:
    with pytest.raises(rml.InputError, match="one node at least"):
        InProcessGrid([])
    with pytest.raises(rml.InputError, match="2 entries for 1 apps"):
        InProcessGrid([echo], node_configs=[{}, {}])
    grid = InProcessGrid([echo], node_configs=[{"shard": "a.npz"}])
    assert grid.contexts[FIRST_NODE].node_config["shard"] == "a.npz"


def test_replies_are_put_into_the_order_of_the_partitions() -> None:
    def claiming(number):
        def app(message, context):
            reply = echo(message, context)
            reply.content["client"] = ConfigRecord({"partition": number})
            return reply

        return app

    def failing(message, context):
        raise OSError("disk full")

    grid = InProcessGrid([claiming(2), failing, claiming(0), claiming("x"), claiming(1)])
    with identified():
        replies = in_order(grid.send_and_receive(ask(grid, [2, 3, 4, 5, 6])))
    assert [reply.metadata.src_node_id for reply in replies] == [4, 6, 2, 3, 5]


def test_nobody_waits_for_ever() -> None:
    grid = Patient(InProcessGrid([echo]), 0.05)
    assert grid.get_node_ids() == [2]
    time.sleep(0.06)
    with pytest.raises(rml.RunError, match=r"1 clients are there after 0\.05 s"):
        grid.get_node_ids()


def test_drawing_is_keyed() -> None:
    import random

    with drawn(0, "a"):
        one = random.random()
    with drawn(0, "a"):
        assert random.random() == one
    with drawn(0, "b"):
        assert random.random() != one


def test_an_aggregate_is_taken_only_if_it_is_a_model() -> None:
    before = weights(net(norm=True))
    for key, change, word in (
        ("0.weight", lambda value: value[:1], "shape"),
        ("0.weight", lambda value: value * float("nan"), "not finite"),
        ("0.weight", lambda value: value.double() + 1e300, "too large"),
    ):
        state, note = settled(ArrayRecord({**before, key: change(before[key])}), before)
        assert state is None
        assert word in note
    state, note = settled(ArrayRecord({k: v for k, v in before.items() if k != "0.bias"}), before)
    assert (state, note) == (None, "the aggregate has other arrays than the model")
    counters = {k: v.double() + 0.6 if k.endswith("tracked") else v.double() for k, v in before.items()}
    state, note = settled(ArrayRecord(counters), before)
    assert note == ""
    assert {key: value.dtype for key, value in state.items()} == {k: v.dtype for k, v in before.items()}
    assert int(state["1.num_batches_tracked"]) == 1
    assert settled(None, before) == (None, "nothing to aggregate")
