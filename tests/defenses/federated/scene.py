"""A federation without a model worth the name: clients whose updates are random numbers, each its own."""

from __future__ import annotations

import contextlib

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from robustml.defenses.federated.environment import quiet
from robustml.defenses.federated.grid import InProcessGrid, identified

HONEST = 7


def weights(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {"a.weight": rng.normal(size=(4, 3)).astype(dtype), "a.bias": rng.normal(size=4).astype(dtype)}


def drift(arrays, partition, number, size=0.1):
    """What a client makes of the weights: the same direction for all, and noise of its own."""
    rng = np.random.default_rng([partition, number])
    return {
        key: (value + size * (np.ones_like(value) + 0.3 * rng.normal(size=value.shape))).astype(value.dtype)
        for key, value in arrays.items()
    }


def reply(message, arrays, metrics):
    record = ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)


def received(message):
    return {key: value.numpy() for key, value in message.content["arrays"].items()}


def honest(message, context):
    partition, number = context.node_config["partition-id"], message.content["config"]["server-round"]
    trained = drift(received(message), partition, number)
    return reply(message, trained, {"num-examples": 10 + partition, "loss": 1.0 / (1 + number)})


def run(strategy, apps, rounds=3, start=None):
    """The weights after some rounds, and the strategy's own result."""
    with identified(), quiet():
        grid = InProcessGrid(apps)
        initial = ArrayRecord({k: Array(v) for k, v in (start or weights()).items()})
        with contextlib.suppress(AttributeError):
            strategy.wait = 0.05
        result = strategy.start(grid, initial, num_rounds=rounds, timeout=3600)
    return {key: value.numpy() for key, value in result.arrays.items()}, result
