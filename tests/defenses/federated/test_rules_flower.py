"""Rules as Flower strategies: equal to Flower's own where those are right, and right where they are not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from robustml.defenses.federated.aggregation import AGGREGATORS, aggregation, rule_of
from robustml.defenses.federated.grid import InProcessGrid, identified
from robustml.defenses.federated.rules import Krum, Median, NearestNeighborMixing, TrimmedMean
from robustml.errors import InputError
from tests.defenses.federated.scene import HONEST, honest, run, weights


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("mean", {}), ("fedavg", {})),
        (("median", {}), ("fedmedian", {})),
        (("trimmed-mean", {"hostile": 1}), ("fedtrimmedavg", {"beta": 1 / HONEST + 1e-9})),
        (("mean", {"proximal": 0.2}), ("fedprox", {"proximal_mu": 0.2})),
    ],
)
def test_ours_are_flowers_where_flowers_are_right(ours, theirs):
    name, options = ours
    first, _ = run(aggregation(name, **options), [honest] * HONEST)
    name, options = theirs
    second, _ = run(aggregation(name, **options), [honest] * HONEST)
    for key, value in first.items():
        np.testing.assert_allclose(value, second[key], rtol=3e-6, atol=3e-7)


def test_both_krums_select_the_same_of_small_models():
    # The parameters are no larger than the updates here, so that nothing cancels.
    start = {key: np.zeros_like(value) for key, value in weights().items()}
    first, _ = run(aggregation("krum", hostile=1), [honest] * HONEST, rounds=1, start=start)
    second, _ = run(aggregation("flower-krum"), [honest] * HONEST, rounds=1, start=start)
    for key, value in first.items():
        np.testing.assert_allclose(value, second[key], rtol=1e-6, atol=1e-7)


def outlier(message, context):
    """Six clients agree to a thousandth, and the first is twenty times as far away."""
    rng = np.random.default_rng([context.node_config["partition-id"]])
    size = 2e-2 if context.node_config["partition-id"] == 0 else 1e-3
    arrays = {
        key: (array.numpy() + size * rng.normal(size=array.shape)).astype(np.float32)
        for key, array in message.content["arrays"].items()
    }
    record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def test_flowers_krum_loses_small_updates_of_a_large_model_and_ours_does_not():
    """Squared norms of 1e8 in single precision are 8 apart, and squared distances here 1e-5 to 1e-2."""
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(0, 200, size=2500).astype(np.float32)}
    chosen = {}
    for name in ("krum", "flower-krum"):
        found, _ = run(aggregation(name), [outlier] * HONEST, rounds=1, start=start)
        chosen[name] = float(np.linalg.norm(found["w"].astype(np.float64) - start["w"]))
    from flwr.serverapp.strategy.multikrum import compute_distances

    with identified():
        grid = InProcessGrid([outlier] * HONEST)
        content = RecordDict({"arrays": ArrayRecord({"w": Array(start["w"])}), "config": ConfigRecord()})
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        records = [m.content["arrays"] for m in grid.send_and_receive(messages)]
    theirs = compute_distances(records)
    rows = np.stack([record["w"].numpy() for record in records]).astype(np.float64)
    true = np.square(rows[:, None] - rows[None]).sum(-1)
    # What it computes says nothing about the distance: it is off by more than the largest of them.
    assert np.abs(theirs - true).max() > true.max()
    assert (theirs < 0).any()
    # Ours takes one of those that agree (lengths of about 0.05; the outlier's is 1).
    assert chosen["krum"] < 0.2


def test_bulyan_of_flower_makes_nothing_of_too_few_replies_and_does_not_say_so():
    start = weights()
    found, result = run(aggregation("flower-bulyan"), [honest] * 6, rounds=1)
    assert found == {} and not result.train_metrics_clientapp
    moved, _ = run(aggregation("bulyan", hostile=1), [honest] * 6, rounds=1)
    assert np.abs(moved["a.bias"] - start["a.bias"]).max() > 0.05


@pytest.mark.parametrize("name", ["mean", "trimmed-mean", "krum", "geometric-median"])
def test_running_statistics_and_counters_do_not_enter_distances(name):
    """A client's variance of a million is no direction: it changes neither who is selected nor the norm."""
    start = {
        **weights(),
        "n.running_mean": np.zeros(2, np.float32),
        "n.running_var": np.ones(2, np.float32),
        "n.num_batches_tracked": np.array(7),
    }

    def app(message, context):
        answer = honest(message, context)
        arrays, partition = answer.content["arrays"], context.node_config["partition-id"]
        extra = 1e6 if partition == 6 else partition
        arrays["n.running_mean"] = Array(np.full(2, partition, np.float32))
        arrays["n.running_var"] = Array(np.full(2, extra, np.float32))
        arrays["n.num_batches_tracked"] = Array(np.array(7 + partition))
        return answer

    def plain(message, context):
        for key in ("n.running_mean", "n.running_var", "n.num_batches_tracked"):
            message.content["arrays"].pop(key, None)
        return honest(message, context)

    found, _ = run(aggregation(name), [app] * HONEST, rounds=1, start=start)
    bare, _ = run(aggregation(name), [plain] * HONEST, rounds=1)
    for key, value in bare.items():
        np.testing.assert_array_equal(found[key], value)
    shares = np.arange(10, 17) / np.arange(10, 17).sum()  # the examples that they claim
    expected = float(shares @ np.arange(7)) if name == "mean" else 3.0
    np.testing.assert_allclose(found["n.running_mean"], expected, rtol=1e-6)
    assert (found["n.running_var"] > 1e5).all() == (name == "mean")
    assert found["n.num_batches_tracked"] == 10


def test_names_and_options():
    for name in AGGREGATORS:
        assert aggregation(name) is not None
    assert aggregation("trimmed-mean", hostile=3).rule == TrimmedMean(hostile=3)
    mixed = aggregation("nearest-neighbor-mixing", hostile=2, then="median", fraction_train=0.5)
    assert mixed.rule == NearestNeighborMixing(hostile=2, then=Median()) and mixed.fraction_train == 0.5
    assert aggregation(Krum(hostile=4)).rule == Krum(hostile=4)
    assert rule_of("krum", hostile=2) == Krum(hostile=2)
    assert aggregation("fedadam", eta=0.01).eta == 0.01
    for name, options, said in (
        ("trimed-mean", {}, "did you mean 'trimmed-mean'"),
        ("krum", {"hostle": 1}, "did you mean 'hostile'"),
        ("fedadam", {"etta": 1}, "did you mean 'eta'"),
        ("fedtrimmedavg", {"beta": 0.7}, "beta"),
    ):
        with pytest.raises(InputError, match=said):
            aggregation(name, **options)
    with pytest.raises(InputError, match="not a rule"):
        rule_of("fedadam")
