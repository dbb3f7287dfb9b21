"""What a hostile client may try beside its update: to be another, to end the run, and to look cheaper."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict

import robustml as rml
from robustml.defenses.federated.guarding import Guarded
from robustml.defenses.federated.rounds import reported
from robustml.defenses.privacy import DifferentialPrivacy, Ledger
from tests.defenses.federated import small
from tests.defenses.federated.scene import HONEST, drift, honest, received, reply, run, weights
from tests.defenses.federated.test_guarding import made

NOISY = DifferentialPrivacy(noise_multiplier=1.0, seed=1, mode="functional")


def forges(message, context):
    """It signs as the node after it."""
    message.metadata.__dict__["_dst_node_id"] += 1
    return honest(message, context)


def exits(message, context):
    raise SystemExit(3)


def half_a_message(message, context):
    return object.__new__(Message)


def is_another(message, context):
    context.node_config["partition-id"] = 0
    raise OSError("gone")


@pytest.mark.parametrize(
    ("app", "reason"),
    [(exits, "SystemExit"), (half_a_message, "KeyError"), (is_another, "gone")],
)
def test_it_neither_ends_the_run_nor_moves_the_model(app, reason) -> None:
    expected = run(Guarded(made("mean")), [honest] * HONEST, rounds=2)[0]
    guard = Guarded(made("mean"))
    found, _ = run(guard, [*[honest] * HONEST, app], rounds=2)
    assert [entry["node"] for entry in guard.quarantine] == [HONEST + 2] * 2
    assert all(reason in entry["reason"] for entry in guard.quarantine)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_it_cannot_sign_for_its_neighbor_who_would_be_put_out() -> None:
    guard = Guarded(made("mean"))
    run(guard, [forges, *[honest] * HONEST], rounds=2)
    assert guard.quarantine == ()
    assert all(len(entry.accepted) == HONEST + 1 for entry in guard.rounds)


def test_it_stays_itself_from_round_to_round() -> None:
    seen: list[int] = []

    def app(message, context):
        seen.append(context.node_config["partition-id"])
        context.node_config["partition-id"] = 0
        context.state = 3
        return honest(message, context)

    run(Guarded(made("mean")), [*[honest] * HONEST, app], rounds=2)
    assert seen == [HONEST, HONEST]


@pytest.mark.parametrize(
    ("key", "value"),
    [("n.running_var", 1e30), ("n.running_mean", -1e30), ("n.num_batches_tracked", 2**62)],
)
@pytest.mark.parametrize("name", ["mean", "fedavg"])
def test_running_statistics_and_counters_are_bounded_as_updates_are(name, key, value) -> None:
    """The mean has no defense of its own: one number of 1e30 would be the model's variance."""
    start = {
        **weights(),
        "n.running_mean": np.zeros(3, np.float32),
        "n.running_var": np.ones(3, np.float32),
        "n.num_batches_tracked": np.array(5),
    }

    def app(message, context):
        state = received(message)
        learned = {k: state[k] for k in ("a.weight", "a.bias", "n.running_mean", "n.running_var")}
        partition = context.node_config["partition-id"]
        trained = drift(learned, partition, message.content["config"]["server-round"])
        trained["n.num_batches_tracked"] = state["n.num_batches_tracked"] + 2 + partition
        return reply(message, trained, {"num-examples": 10})

    def far(message, context):
        answer = app(message, context)
        before = received(message)[key]
        answer.content["arrays"][key] = Array(np.full_like(before, value))
        return answer

    expected = run(Guarded(made(name)), [app] * HONEST, start=start, rounds=2)[0]
    guard = Guarded(made(name))
    found, _ = run(guard, [*[app] * HONEST, far], start=start, rounds=2)
    for each in expected:
        np.testing.assert_array_equal(found[each], expected[each])
    assert {entry["reason"] for entry in guard.quarantine} == {
        "its running statistics or counters are far from those of the others"
    }


def telling(**figures):
    def wrap(honest):
        def app(message, context):
            answer = honest(message, context)
            for name, value in figures.items():
                answer.content["metrics"][name] = value
            return answer

        return app

    return wrap


def test_a_figure_too_large_for_a_float_does_not_end_the_run() -> None:
    done = small.run(rounds=1, hostile={1: telling(loss=10**400)})
    assert done.history[1].moved
    assert [entry["client"] for entry in done.quarantine] == [1]
    assert "loss" not in done.history[1].clients[1]


def test_what_it_says_went_wrong_is_fit_for_a_terminal() -> None:
    def failing(honest):
        def app(message, context):
            raise OSError("\x1b[2Jall is well\u202e\x07")

        return app

    with pytest.raises(rml.RunError) as caught:
        small.run(rounds=1, hostile=dict.fromkeys(range(4), failing))
    assert str(caught.value).isprintable()
    assert "OSError: ?[2Jall is well??" in str(caught.value)


def test_who_takes_anothers_number_is_called_by_its_node() -> None:
    """On Ray and in a deployment, clients say themselves which they are."""

    def claims(node, number):
        content = RecordDict(
            {"m": MetricRecord({"loss": 0.5}), "client": ConfigRecord({"partition": number})}
        )
        message = object.__new__(Message)
        from types import SimpleNamespace

        message.__dict__.update(_metadata=SimpleNamespace(src_node_id=node), _content=content, _error=None)
        return message

    names: dict[int, int] = {}
    first = reported([70, 71, 72], [claims(70, 0), claims(71, 1), claims(72, 1)], names)
    assert [entry["client"] for entry in first] == [0, 71, 72]
    # Nor later, when it has been away at first.
    reported([70, 71, 72, 73], [claims(70, 0), claims(73, 0)], names)
    assert names == {70: 0, 71: 71, 72: 72, 73: 73}


@pytest.mark.parametrize("text", ["{", "[]", '{"history": [[-1, 2, 3]]}'])
def test_a_ledger_that_it_has_spoiled_is_no_small_number_and_ends_nothing(text) -> None:
    def spoiling(honest):
        def app(message, context):
            answer = honest(message, context)
            context.state["ledger"] = ConfigRecord({"json": text, "mode": ""})
            return answer

        return app

    done = small.run(rounds=1, privacy=NOISY, hostile={2: spoiling})
    spent = done.privacy["samples"]
    assert spent["client"] == 2
    assert spent["epsilon"] is None is spent["by_client"]["2"]
    assert spent["by_client"]["0"] > 0


def test_what_was_spent_does_not_shrink_because_somebody_says_so() -> None:
    from types import SimpleNamespace

    from robustml.defenses.federated.outcome import _spent

    def told(*pairs):
        return SimpleNamespace(clients=[{"client": name, "epsilon": epsilon} for name, epsilon in pairs])

    server = SimpleNamespace(
        ledgers={}, contexts={}, history=[told((0, 2.0), (1, 1.0)), told((0, 0.1), (1, 1.5))]
    )
    found = _spent(server, {"delta": 1e-5})
    assert (found["epsilon"], found["client"], found["by_client"]) == (2.0, 0, {"0": 2.0, "1": 1.5})


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_on_ray_the_ledger_of_a_client_that_keeps_silent_is_read_all_the_same() -> None:
    def silent(honest):
        def app(message, context):
            honest(message, context)

        return app

    def cheap(honest):
        return telling(epsilon=1e-9)(honest)

    options = {"rounds": 2, "privacy": NOISY, "hostile": {0: silent, 1: cheap}}
    begun = time.monotonic()
    there, here = small.run(runtime="ray", **options), small.run(**options)
    assert time.monotonic() - begun < 200
    assert there.privacy == here.privacy
    assert there.privacy["samples"]["by_client"]["0"] == Ledger([(1.0, 32 / 54, 4)]).spent(1e-5).epsilon
