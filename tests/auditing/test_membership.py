"""The whole job on one model: what is found on a leaky one and on one without memory, and what is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.auditing import References, audit_membership, train_references
from robustml.errors import InputError

QUICK = {"epochs": 40, "batch_size": 20, "learning_rate": 0.02}
ALL = ["gap", "kept-labels", "loss", "quantile", "calibrated-loss"]
ALL += ["rmia-offline", "rmia-online", "lira-offline", "lira-online"]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 3))


@pytest.fixture(name="world", scope="module")
def _world():
    """A network that has learned noise by heart, and references that did the same."""
    rng = np.random.default_rng(0)
    x = rng.random((400, 20)).astype(np.float32)
    y = np.where(rng.random(400) < 0.5, (3 * x[:, 0]).astype(int), rng.integers(0, 3, 400))
    members, others = (x[:200], y[:200]), (x[200:], y[200:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build()
    target = rml.harden(net, members, validation=None, seed=77, **QUICK).model
    return target, members, others, train_references(build, members, others, count=8, **QUICK)


def test_a_model_that_knows_its_data_by_heart_is_found_out(world) -> None:
    target, members, others, references = world
    found = audit_membership(target, members, others, references=references, attacks=ALL)
    assert (found.tier, found.references, found.members, found.non_members) == ("few", 8, 200, 200)
    assert [r.attack for r in found.results] == ALL
    assert found.member_accuracy.value > 0.9 > 0.75 > found.non_member_accuracy.value
    assert found["gap"].auc.value == pytest.approx(
        0.5 + (found.member_accuracy.value - found.non_member_accuracy.value) / 2
    )
    assert all(r.auc.low > 0.5 for r in found.results if r.attack not in {"quantile"})
    assert found["lira-online"].auc.value > found["loss"].auc.value > 0.65
    assert found["kept-labels"].queries == 33 and found["kept-labels"].auc.low > 0.6
    assert found.strongest.advantage.low > 0.1
    assert found.score == pytest.approx(100 * (1 - max(r.advantage.high for r in found.results)))
    # Models that saw neither side do not tell them apart.
    assert found.control.low < 0.5 < found.control.high
    assert found["loss"].tier == "quick" and found["rmia-offline"].tier == "few"
    assert found["quantile"].non_members == 100
    assert "share one variance" in found["lira-online"].note and found["loss"].note is None
    rate = found["loss"].tpr
    assert rate[0].tpr.total == 200 and rate[0].achieved.total == 100
    assert rate[1].tpr is None and "999 are needed" in rate[1].reason


def test_the_control_asks_models_that_never_saw_a_sample(world) -> None:
    target, members, others, references = world
    x, y = (torch.from_numpy(np.concatenate([a, b])) for a, b in zip(members, others, strict=True))
    with torch.no_grad():
        logits = [model(x).double() for model in references.models]
    p = torch.stack([torch.softmax(z, 1).gather(1, y[:, None])[:, 0] for z in logits]).numpy()
    odds = np.log(p / (1 - p))
    unseen = np.array([odds[~references.inside[:, i], i].mean() for i in range(400)])
    expected = (unseen[:200, None] > unseen[None, 200:]).mean()
    found = audit_membership(target, members, others, references=references, attacks=["loss"])
    assert found.control.value == pytest.approx(expected, abs=1e-3)


def test_a_fresh_network_gives_nothing_away(world) -> None:
    _, members, others, references = world
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = audit_membership(build(), members, others, references=references, attacks=ALL)
    for result in found.results:
        assert result.auc.low <= 0.5 <= result.auc.high
        assert result.advantage.low == 0
        for part in (*result.per_class, result.most_exposed):
            assert part.auc.low <= 0.5 <= part.auc.high
    assert found.strongest.advantage.low == 0
    assert found.score < 90


def test_without_references_the_rest_is_left_out_with_the_reason(world) -> None:
    target, members, others, _ = world
    found = audit_membership(target, members, others)
    assert found.tier == "quick" and found.control is None
    assert [r.attack for r in found.results] == ["gap", "loss", "quantile"]
    left_out = dict(found.left_out)
    assert left_out["lira-offline"] == "needs for each sample 1 reference model that never saw it"
    assert "saw it and 2" in left_out["lira-online"]
    assert "33 questions" in left_out["kept-labels"]
    assert found.results[0].most_exposed is None
    with pytest.raises(InputError, match="'lira-online', which is not possible: needs"):
        audit_membership(target, members, others, attacks=["lira-online"])


def test_a_model_that_answers_with_labels_is_asked_for_labels(world) -> None:
    target, members, others, references = world

    def predict(x):
        with torch.no_grad():
            return target(torch.from_numpy(x)).argmax(1).numpy()

    box = rml.BlackBox(predict, inputs=target.inputs, classes=3, outputs="labels")
    found = audit_membership(box, members, others, references=references, queries=9)
    assert [(r.attack, r.queries) for r in found.results] == [("gap", 1), ("kept-labels", 9)]
    assert dict(found.left_out)["loss"] == "the model answers with labels alone"
    white = audit_membership(target, members, others, queries=9, attacks=["gap", "kept-labels"])
    assert [r.auc for r in white.results] == [r.auc for r in found.results]


def test_what_is_on_both_sides_is_left_out(world) -> None:
    target, members, others, _ = world
    x, y = np.concatenate([others[0], members[0][:50]]), np.concatenate([others[1], members[1][:50]])
    found = audit_membership(target, members, (x, y))
    assert (found.duplicates, found.members, found.non_members) == (50, 150, 200)
    rest = members[0][50:], members[1][50:]
    assert found["loss"].auc == audit_membership(target, rest, others)["loss"].auc
    with pytest.raises(InputError, match="non_members has 0 samples that are no members"):
        audit_membership(target, members, members)


def test_sets_that_differ_in_themselves_are_noticed(world) -> None:
    target, members, others, _ = world
    strange = others[0] * 0.2 + 0.8, np.zeros(200, dtype=int)
    references = train_references(build, members, strange, count=4, **QUICK)
    # They are easy for every model, whether it was trained on them or on others like them.
    found = audit_membership(target, members, strange, references=references)
    assert found.control.high < 0.5


def test_the_same_seed_gives_the_same_verdict(world) -> None:
    target, members, others, references = world
    target.train()
    first, again, other = (
        audit_membership(target, members, others, references=references, seed=seed, fprs=(0.1, 0.01))
        for seed in (4, 4, 5)
    )
    assert all(module.training for module in target.modules())
    target.eval()
    assert first == again
    assert other["loss"].auc == first["loss"].auc
    assert other["loss"].tpr != first["loss"].tpr


def test_references_apart_allow_the_offline_attacks(world) -> None:
    target, members, others, _ = world
    rng = np.random.default_rng(1)
    x = rng.random((200, 20)).astype(np.float32)
    y = np.where(rng.random(200) < 0.5, (3 * x[:, 0]).astype(int), rng.integers(0, 3, 200))
    references = train_references(build, members, others, count=3, apart=(x, y), **QUICK)
    found = audit_membership(target, members, others, references=references)
    names = [r.attack for r in found.results]
    assert "rmia-offline" in names and "lira-offline" in names
    assert "rmia-online" not in names and "lira-online" not in names
    assert found["rmia-offline"].auc.low > 0.5
    assert found["rmia-offline"].most_exposed.members > 5


def test_what_cannot_be_used(world) -> None:
    target, members, others, references = world
    for wrong, message in (
        ({"attacks": ["lyra-online"]}, "did you mean 'lira-online'"),
        ({"attacks": []}, "attacks is empty"),
        ({"fprs": (0.0,)}, "fprs holds 0.0"),
        ({"confidence": 95}, "confidence=95"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"attacks": ["kept-labels"], "queries": 0}, "queries=0"),
    ):
        with pytest.raises(InputError, match=message):
            audit_membership(target, members, others, **wrong)
    short = (others[0][:100], others[1][:100])
    with pytest.raises(InputError, match="references are about 400 samples"):
        audit_membership(target, members, short, references=references)
    broken = nn.Sequential(build(), nn.Threshold(1e9, float("nan")))
    with pytest.raises(InputError, match="has no odds"):
        audit_membership(rml.Classifier(broken, inputs=target.inputs, classes=3), members, others)
    assert isinstance(references, References)
