"""What the objectives buy on digits, under the quick suite; and what weights that are there already buy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training import AWP, MART, PGD, TRADES, Fast, Free, Several, harden
from robustml.sampling import Streams
from robustml.targets.builtin import build
from tests.defenses.training.test_distillation import untrained

THREAT, OTHER = rml.Linf(0.1), rml.L2(0.6)
SETTINGS = {"batch_size": 64, "learning_rate": 0.005}
OBJECTIVES = {
    "trades": TRADES(THREAT, steps=5),
    "mart": MART(THREAT, steps=5),
    "fast": Fast(THREAT),
    "free": Free(THREAT, replays=4),
    "awp": AWP(PGD(THREAT, steps=5)),
    "several": Several((PGD(THREAT, steps=5), PGD(OTHER, steps=5))),
    "average": Several((PGD(THREAT, steps=5), PGD(OTHER, steps=5)), mode="average"),
}
PASSES = {"trades": 2, "mart": 2, "fast": 3, "free": 4, "awp": 1, "several": 1, "average": 2}


@pytest.fixture(scope="module")
def digits():
    return build("digits")


def robust(model: rml.Classifier, parts, threat: rml.Threat = THREAT):
    data = (parts.data.x[:200], parts.data.y[:200])
    return rml.stress_test(model, data, threats=[threat], suite="quick").threats[0].robust_accuracy.upper


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_withstands_more_with_intervals_apart(digits, name: str) -> None:
    objective = OBJECTIVES[name]
    epochs = 5 if name == "free" else 10
    hardened = harden(
        untrained(digits),
        (digits.train.x, digits.train.y),
        objective=objective,
        epochs=epochs,
        **SETTINGS,
    )
    for threat in objective.threats:
        assert robust(hardened.model, digits, threat).low > robust(digits.model, digits, threat).high
    assert hardened.history[-1].clean > 0.9


@pytest.mark.slow
def test_what_is_aligned_turns_less_on_new_data(digits) -> None:
    """Digits turn little (1 - cosine = 0.05 without), so that the usual weight of 0.2 hardly shows there."""
    train, threat = (digits.train.x, digits.train.y), rml.Linf(0.2)
    turns = []
    for align in (0.0, 5.0):
        objective = Fast(threat, align=align)
        model = harden(untrained(digits), train, objective=objective, epochs=8, **SETTINGS).model
        x, y = torch.from_numpy(digits.data.x[:200]), torch.from_numpy(digits.data.y[:200])
        ids = torch.arange(200)
        ball = threat.within(model.inputs).around(x)
        points = (x, ball.random(Streams.derive(1, "turn", ids)))
        slopes = []
        for point in points:
            point = point.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(point), y, reduction="sum")
            slopes.append(torch.autograd.grad(loss, point)[0].flatten(1).double())
        turns.append(float((1 - torch.cosine_similarity(*slopes, 1)).mean()))
    assert turns[1] < turns[0] / 2


@pytest.mark.slow
def test_three_epochs_from_trained_weights_are_worth_more_than_three_from_none(digits) -> None:
    train, objective = (digits.train.x, digits.train.y), TRADES(THREAT, steps=5)
    settings = {"epochs": 3, "batch_size": 64, "learning_rate": 0.005}
    tuned, scratch = (
        harden(model, train, objective=objective, **settings)
        for model in (copy.deepcopy(digits.model), untrained(digits))
    )
    assert robust(tuned.model, digits).low > robust(digits.model, digits).high
    assert robust(tuned.model, digits).value > robust(scratch.model, digits).value
    assert tuned.history[-1].clean > scratch.history[-1].clean


def normalised() -> rml.Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return rml.Classifier(net, inputs=rml.InputSpec(shape=(6,)), classes=3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fine_tuning_goes_on_from_weights_and_running_statistics(name: str) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = np.clip(rng.random((3, 6))[y] + rng.normal(0, 0.05, (120, 6)), 0, 1).astype(np.float32)
    trained = harden(normalised(), (x, y), epochs=10, batch_size=30, learning_rate=0.02).model
    before = copy.deepcopy(trained.module.state_dict())
    settings = {"epochs": 1, "batch_size": 30, "learning_rate": 1e-6, "keep": "last"}
    tuned = harden(trained, (x, y), objective=OBJECTIVES[name], **settings).model
    assert tuned is trained
    after = tuned.module.state_dict()
    assert torch.allclose(after["0.weight"], before["0.weight"], atol=1e-4)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    # They count on from what they were, by the passes that are learned from: 4 steps, or 4 replays of each.
    seen = int(after["1.num_batches_tracked"] - before["1.num_batches_tracked"])
    assert seen == 4 * PASSES[name]


def test_a_part_of_a_network_may_stay_as_it_is() -> None:
    model = normalised()
    model.module[0].requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    x, y = np.random.default_rng(0).random((30, 6), dtype=np.float32), np.arange(30) % 3
    after = harden(model, (x, y), objective=AWP(TRADES(THREAT, steps=1)), epochs=1).model.module.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])
