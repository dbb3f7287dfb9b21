"""One hostile client, every abuse of the protocol that we know, every aggregator: nothing happens."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from robustml.defenses.federated.aggregation import AGGREGATORS, aggregation
from robustml.defenses.federated.dp import ClientPrivacy
from robustml.defenses.federated.grid import InProcessGrid, identified
from robustml.defenses.federated.guarding import Guarded
from robustml.errors import InputError
from tests.defenses.federated.scene import HONEST, drift, honest, received, reply, run, weights

ROUNDS = 2
PRIVACY = ClientPrivacy(clip=0.5, clients=HONEST + 1, noise_multiplier=0.5, seed=1)


def made(name):
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if name.startswith("private "):
        return aggregation(name.removeprefix("private "), privacy=PRIVACY)
    if name == "flwr dp":
        # Flower's own wants to hear from all of those that it has asked, so that it waits for good ones only.
        return DifferentialPrivacyServerSideFixedClipping(
            FedAvg(fraction_evaluate=0.0), noise_multiplier=0.0, clipping_norm=1.0, num_sampled_clients=HONEST
        )
    return aggregation(name)


NAMES = [*AGGREGATORS, "private mean", "private trimmed-mean", "private median", "flwr dp"]


def spoil(change):
    def app(message, context):
        state = drift(received(message), 99, message.content["config"]["server-round"])
        metrics = {"num-examples": 10, "loss": 0.5}
        found = change(state, metrics, received(message))
        return reply(message, *(found or (state, metrics)))

    return app


def away(state, before):
    """The opposite of what the others learn."""
    return {key: 2 * before[key] - value for key, value in state.items()}


def fill(value):
    return lambda state, metrics, before: state["a.bias"].fill(value)


def claim(value):
    return lambda state, metrics, before: (away(state, before), {**metrics, "num-examples": value})


def raw(data, dtype="float32", shape=(4,)):
    def app(message, context):
        record = ArrayRecord({k: Array(v) for k, v in received(message).items()})
        record["a.bias"] = Array(dtype, shape, "numpy.ndarray", data)
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    return app


def archive():
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(4))
    return buffer.getvalue()


def claims_to_be_huge():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    return buffer.getvalue()


def raises(message, context):
    raise RuntimeError("a client\nthat \x1b[31mraises")


def records(message, context):
    answer = honest(message, context)
    answer.content["more"] = ArrayRecord({"a": Array(np.zeros(2))})
    return answer


def empty(message, context):
    return Message(RecordDict(), reply_to=message)


ABUSES = {
    "NaN": (spoil(fill(np.nan)), "not finite"),
    "infinity": (spoil(fill(np.inf)), "not finite"),
    "minus infinity": (spoil(fill(-np.inf)), "not finite"),
    "huge numbers": (spoil(fill(1e30)), "long"),
    "a billion examples": (spoil(claim(10**9)), "claims"),
    "negative examples": (spoil(claim(-90)), "above 0"),
    "no examples": (spoil(claim(0)), "above 0"),
    "NaN examples": (spoil(claim(float("nan"))), "above 0"),
    "infinite examples": (spoil(claim(float("inf"))), "above 0"),
    "a list of examples": (spoil(claim([1, 2])), "not a number"),
    "no claim": (spoil(lambda s, m, b: (s, {"loss": 0.5})), "missing"),
    "zero update": (spoil(lambda s, m, b: (b, m)), "zero"),
    "renamed keys": (spoil(lambda s, m, b: ({f"x.{k}": v for k, v in s.items()}, m)), "names"),
    "a key less": (spoil(lambda s, m, b: ({"a.bias": s["a.bias"]}, m)), "names"),
    "a key more": (spoil(lambda s, m, b: ({**s, "c": s["a.bias"]}, m)), "names"),
    "wrong shape": (spoil(lambda s, m, b: ({**s, "a.bias": np.zeros(5, np.float32)}, m)), "a.bias is"),
    "a shape that broadcasts": (
        spoil(lambda s, m, b: ({**s, "a.bias": np.ones((1, 4), np.float32)}, m)),
        "a.bias is",
    ),
    "wrong type": (spoil(lambda s, m, b: ({**s, "a.bias": np.ones(4)}, m)), "a.bias is"),
    "NaN metric": (spoil(lambda s, m, b: (s, {**m, "loss": float("nan")})), "metric"),
    "too many bytes": (raw(b"x" * 10**6), "bytes"),
    "no array": (raw(b"nonsense"), "cannot be read"),
    "an archive": (raw(archive()), "archive"),
    "a header that claims terabytes": (raw(claims_to_be_huge()), "cannot be read"),
    "two records": (records, "records of arrays"),
    "nothing": (empty, "records"),
    "an exception": (raises, "RuntimeError"),
    "silence": (lambda message, context: None, "no reply"),
}
# Where whole clients are promised privacy, a reply is judged by itself alone: these are honest there, clipped
# and weighted like any other.
ALONE = {"huge numbers", "a billion examples"}


@pytest.fixture(scope="module")
def without():
    """What comes out where the hostile client is not there at all, by aggregator."""
    return {name: run(Guarded(made(name)), [honest] * HONEST, rounds=ROUNDS)[0] for name in NAMES}


# What stops these does not depend on the aggregator, so that a few aggregators do.
RARE = {
    *("minus infinity", "no examples", "NaN examples", "infinite examples", "a list of examples", "no claim"),
    *("a key less", "a key more", "a shape that broadcasts", "wrong type", "NaN metric", "too many bytes"),
    *("no array", "an archive", "a header that claims terabytes", "two records", "nothing"),
}
FEW = ("mean", "krum", "fedmedian", "private mean")
PAIRS = [(name, abuse) for name in NAMES for abuse in ABUSES if abuse not in RARE or name in FEW]


@pytest.mark.parametrize(("name", "abuse"), PAIRS)
def test_abuse_by_one_client_neither_ends_the_run_nor_moves_the_model(name, abuse, without):
    app, reason = ABUSES[abuse]
    guard = Guarded(made(name))
    found, _ = run(guard, [*[honest] * HONEST, app], rounds=ROUNDS)
    if name.startswith("private") and abuse in ALONE:
        # It is a client like another: no further than the clipping norm, and no heavier.
        distance = np.sqrt(sum(np.square(found[k] - without[name][k]).sum() for k in found))
        assert distance <= ROUNDS * PRIVACY.clip * guard.strategy.rule.sensitivity(PRIVACY.clients) * (
            1 + 1e-6
        )
        assert not guard.quarantine
        return
    for key, value in without[name].items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == weights()[key].dtype
    assert [entry["node"] for entry in guard.quarantine] == [HONEST + 2] * ROUNDS
    assert all(reason in entry["reason"] and entry["reason"].isprintable() for entry in guard.quarantine)
    assert all(entry.applied and len(entry.accepted) == HONEST for entry in guard.rounds)
    start = weights()
    assert all(np.abs(found[key] - start[key]).max() > 1e-3 for key in found)


STOCK = ("fedavg", "fedmedian", "fedtrimmedavg", "flower-krum", "flower-multi-krum", "flower-bulyan")
FALLS = [
    *[(name, "NaN") for name in ("fedavg", "fedmedian", "flwr dp")],
    *[(name, "infinity") for name in ("fedavg", "flwr dp")],
    *[("fedavg", abuse) for abuse in ("a billion examples", "negative examples")],
    ("flwr dp", "zero update"),
    *[(name, abuse) for name in STOCK for abuse in ("renamed keys", "wrong shape")],
    ("flower-bulyan", "an exception"),
    ("flwr dp", "an exception"),
]


@pytest.mark.parametrize(("name", "abuse"), FALLS)
def test_without_the_guard_the_same_abuse_does_harm(name, abuse, without):
    """What the guard is good for: these are the cells of stock Flower that are not well."""
    strategy = made(name)
    if name == "flwr dp":
        strategy.num_sampled_clients = HONEST + 1
    # Flower's Bulyan wants seven replies, so that it is told apart from the others by one fewer.
    count = HONEST - 1 if name == "flower-bulyan" and abuse == "an exception" else HONEST
    try:
        found, _ = run(strategy, [*[honest] * count, ABUSES[abuse][0]], rounds=ROUNDS)
    except Exception:
        return
    if not found:
        return
    finite = all(np.isfinite(value).all() for value in found.values())
    step = weights()["a.bias"] - without["fedavg"]["a.bias"]
    assert not finite or np.abs(found["a.bias"] - without["fedavg"]["a.bias"]).max() > np.abs(step).max()


def test_a_stranger_and_a_client_that_replies_twice_are_not_heard():
    class Forged(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if not replies:
                return replies
            replies[-1].metadata.__dict__["_src_node_id"] = 77
            replies[-2].metadata.__dict__["_src_node_id"] = replies[-3].metadata.src_node_id
            return replies

    guard = Guarded(made("mean"))
    start = ArrayRecord({k: Array(v) for k, v in weights().items()})
    with identified():
        guard.start(Forged([honest] * HONEST), start, num_rounds=1)
    reasons = {entry["node"]: entry["reason"] for entry in guard.quarantine}
    assert reasons == {
        6: "it replied 2 times",
        7: "no reply in time",
        8: "no reply in time",
        77: "it was not asked",
    }
    assert guard.rounds[0].accepted == (2, 3, 4, 5)


@pytest.mark.parametrize("quorum", [5, 0.6])
def test_below_the_quorum_the_model_stays_and_the_round_says_so(quorum):
    guard = Guarded(made("mean"), quorum=quorum)
    found, _ = run(guard, [*[honest] * 4, *[raises] * 4])
    for key, value in weights().items():
        np.testing.assert_array_equal(found[key], value)
    assert all(not entry.applied for entry in guard.rounds)
    assert guard.note == "4 good replies of 8 are fewer than the quorum of 5"
    assert len(guard.quarantine) == 12


def test_too_few_nodes_leave_a_round_out_and_do_not_wait_for_ever():
    guard = Guarded(made("mean"), nodes=3)
    found, _ = run(guard, [honest] * 2, rounds=1)
    assert guard.rounds[0].note.startswith("fewer than 3 nodes")
    np.testing.assert_array_equal(found["a.bias"], weights()["a.bias"])


def test_too_few_replies_for_a_rule_bear_fewer_hostile_ones_or_none():
    guard = Guarded(aggregation("bulyan", hostile=1))
    run(guard, [*[honest] * 6, raises], rounds=1)
    assert guard.rounds[0].applied
    assert guard.note == "of 6 updates bulyan bears 0 hostile ones, not 1"
    guard = Guarded(aggregation("krum", hostile=1), quorum=1)
    run(guard, [*[honest] * 2, *[raises] * 5], rounds=1)
    assert not guard.rounds[0].applied
    assert guard.note == "2 updates are too few for krum"


class Broken(FedAvg):
    """Breaks in its second round, when it has changed its mind already."""

    memory = 0

    def aggregate_train(self, server_round, replies):
        self.memory += 1
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2:
            raise ZeroDivisionError("of its own")
        if server_round == 3:
            arrays["a.bias"] = Array(np.full(4, np.nan, np.float32))
        return arrays, metrics


def test_a_strategy_that_fails_or_makes_no_model_leaves_the_model_and_its_memory():
    guard = Guarded(Broken(fraction_evaluate=0.0))
    found, _ = run(guard, [honest] * HONEST, rounds=4)
    assert [entry.applied for entry in guard.rounds] == [True, False, False, True]
    assert guard.rounds[1].note == "Broken failed: ZeroDivisionError: 'of its own'"
    assert "not finite" in guard.rounds[2].note
    assert guard.strategy.memory == 2
    assert np.isfinite(found["a.bias"]).all()


def test_arrays_keep_their_types():
    """Flower averages whole numbers to floating-point ones."""
    start = {**weights(), "n.num_batches_tracked": np.array(5), "n.running_var": np.ones(3, np.float32)}

    def app(message, context):
        state = received(message)
        partition = context.node_config["partition-id"]
        trained = {k: drift({k: state[k]}, partition, 1)[k] for k in ("a.weight", "a.bias", "n.running_var")}
        trained["n.num_batches_tracked"] = state["n.num_batches_tracked"] + 3
        return reply(message, trained, {"num-examples": 10})

    def shrunk(message, context):
        answer = app(message, context)
        answer.content["arrays"]["n.running_var"] = Array(-np.ones(3, np.float32))
        return answer

    for name in ("fedavg", "mean", "median", "krum"):
        guard = Guarded(made(name))
        found, _ = run(guard, [*[app] * HONEST, shrunk], start=start, rounds=2)
        assert {key: value.dtype for key, value in found.items()} == {k: v.dtype for k, v in start.items()}
        assert found["n.num_batches_tracked"] == 11
        assert {entry["reason"] for entry in guard.quarantine} == {"n.running_var is a negative variance"}


def test_clients_of_unequal_size_are_not_taken_for_hostile():
    def large(message, context):
        answer = honest(message, context)
        answer.content["metrics"]["num-examples"] = 300
        return answer

    guard = Guarded(made("mean"))
    run(guard, [*[honest] * HONEST, large], rounds=1)
    assert not guard.quarantine
    strict = Guarded(made("mean"), examples=200)
    run(strict, [*[honest] * HONEST, large], rounds=1)
    assert [entry["reason"] for entry in strict.quarantine] == ["num-examples=300 is above the limit of 200"]


def test_metrics_of_one_client_do_not_decide_what_is_reported():
    def quiet_one(message, context):
        answer = honest(message, context)
        del answer.content["metrics"]["loss"]
        answer.content["metrics"]["mine"] = 1.0
        return answer

    guard = Guarded(made("mean"))
    _, result = run(guard, [*[honest] * HONEST, quiet_one])
    assert set(result.train_metrics_clientapp[1]) == {"loss"}
    assert {entry["node"] for entry in guard.quarantine} == {HONEST + 2}


def test_the_same_nodes_are_asked_again_with_the_same_seed():
    asked = []
    for seed in (1, 1, 2):
        guard = Guarded(made("mean"), fraction=0.5, seed=seed)
        run(guard, [honest] * 8, rounds=4)
        asked.append([entry.asked for entry in guard.rounds])
    assert asked[0] == asked[1] != asked[2]
    assert all(len(nodes) == 4 for nodes in asked[0]) and len(set(asked[0])) > 1


@pytest.mark.parametrize("name", ["mean", "centered-clipping", "fedadam", "fedavgm", "private mean"])
def test_what_it_remembers_can_be_carried_to_another(name):
    from robustml.defenses.federated.state import packed_strategy, unpack_strategy

    whole = run(Guarded(made(name)), [*[honest] * HONEST, raises], rounds=4)[0]
    first = Guarded(made(name))
    half = run(first, [*[honest] * HONEST, raises], rounds=2)[0]
    tensors = {}
    stored = packed_strategy(first, tensors)
    second = Guarded(made(name))
    unpack_strategy(second, stored, tensors)
    assert second.rounds == first.rounds and len(second.quarantine) == 2

    # The second server goes on with the third round.
    start = ArrayRecord({k: Array(v) for k, v in half.items()})
    with identified():
        grid = InProcessGrid([*[honest] * HONEST, raises])
        for number in (3, 4):
            from flwr.app import ConfigRecord

            messages = second.configure_train(number, start, ConfigRecord(), grid)
            start, _ = second.aggregate_train(number, grid.send_and_receive(messages))
    for key, value in whole.items():
        np.testing.assert_array_equal(start[key].numpy(), value)


def test_evaluation_by_clients_is_guarded_too():
    def app(message, context):
        if message.metadata.message_type == "train":
            return honest(message, context)
        value = float("nan") if context.node_config["partition-id"] == 0 else 0.5
        return Message(RecordDict({"m": MetricRecord({"num-examples": 3, "acc": value})}), reply_to=message)

    guard = Guarded(aggregation("mean", fraction_evaluate=1.0))
    _, result = run(guard, [*[app] * HONEST, raises], rounds=1)
    assert result.evaluate_metrics_clientapp[1]["acc"] == pytest.approx(0.5)


def test_options_that_make_no_sense_are_refused():
    for options in (
        {"quorum": 0},
        {"quorum": 1.5},
        {"fraction": 2.0},
        {"wait": -1},
        {"norm": 3},
        {"examples": 0},
    ):
        with pytest.raises(InputError):
            Guarded(made("mean"), **options)
    with pytest.raises(InputError, match="not a Flower strategy"):
        Guarded("mean")
