"""Attribute inference: a gain where the model gives one, an excess where members are memorized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from robustml.attacks.leakage import attribute_test
from robustml.attacks.leakage.attribute import _excess
from robustml.attacks.leakage.attributes import attribute_of
from robustml.classifier import BlackBox, Classifier
from robustml.errors import InputError
from robustml.estimates import clopper_pearson, paired_difference
from robustml.guarded import Guarded
from robustml.guards import Guard
from robustml.inputs import InputSpec
from robustml.targets import load_target

SPEC = InputSpec(shape=(6,), features=("a", "b", "c", "d", "e", "secret"))
METHODS = ("answers", "candidates", "art")


def _records(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A secret that nothing else tells of, and labels that nothing tells of."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 6)).astype(np.float32)
    x[:, 5] = rng.integers(0, 2, n)
    return x, rng.integers(0, 2, n)


MEMBERS, OTHERS = _records(400, 0), _records(400, 1)


def _model(function, outputs="logits") -> BlackBox:
    return BlackBox(function, inputs=SPEC, classes=2, outputs=outputs)


@pytest.mark.parametrize("method", ["answers", "art"])
@pytest.mark.parametrize("learner", ["logistic", "forest"])
def test_a_model_that_answers_the_secret_gives_it_away_for_everybody(method: str, learner: str) -> None:
    speaks = _model(lambda x: np.stack([-20 * (x[:, 5] - 0.5), 20 * (x[:, 5] - 0.5)], 1))
    found = attribute_test(speaks, MEMBERS, OTHERS, feature="secret", method=method, learner=learner)
    for side in (found.members, found.non_members):
        assert side.attack.value > 0.99
        assert side.baseline.high < 0.65
        assert side.gain.low > 0.3
    assert found.excess_low < 0 < found.excess_high
    assert found.learned_from == 200
    assert found.queries == 200 + 200 + 400


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_does_not_see_the_secret_gives_nothing_away(method: str) -> None:
    blind = _model(lambda x: np.stack([x[:, 0], x[:, 1]], 1))
    found = attribute_test(blind, MEMBERS, OTHERS, feature=5, method=method)
    for side in (found.members, found.non_members):
        assert side.gain.low < 0 < side.gain.high
        assert side.attack.low < 0.5 < side.attack.high
    if method == "candidates":
        assert found.members.attack == found.members.baseline


def test_memorized_records_leak_their_secret_and_others_do_not() -> None:
    def weighed(x: np.ndarray) -> np.ndarray:
        return np.hstack([x[:, :5], 40 * x[:, 5:]])

    # Asked about the other value of the secret, it answers with a stranger's label: wrong half of the time.
    nearest = KNeighborsClassifier(1).fit(weighed(MEMBERS[0]), MEMBERS[1])
    memorizes = _model(lambda x: nearest.predict_proba(weighed(x)), "probabilities")
    found = attribute_test(memorizes, MEMBERS, OTHERS, feature="secret", method="candidates")
    assert found.members.attack.low < 0.75 < found.members.attack.high
    assert found.members.gain.low > 0.1
    assert found.non_members.gain.low < 0 < found.non_members.gain.high
    assert found.excess_low > 0.05
    labels = _model(lambda x: nearest.predict(weighed(x)).astype(np.int64), "labels")
    alone = attribute_test(labels, MEMBERS, OTHERS, feature="secret", method="candidates")
    assert alone.excess_low > 0.05
    assert alone.queries == 2 * 600


@pytest.mark.parametrize("outputs", ["probabilities", "labels"])
def test_candidates_are_weighed_with_what_the_model_thinks_of_the_label(outputs: str) -> None:
    # The label is the secret but for one record in ten; nothing else tells of either.
    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, _ = _records(400, seed)
        flipped = np.random.default_rng(seed).random(400) < 0.1
        return x, np.where(flipped, 1 - x[:, 5], x[:, 5]).astype(np.int64)

    def predict(x: np.ndarray) -> np.ndarray:
        if outputs == "labels":
            return x[:, 5].round().astype(np.int64)
        return np.stack([0.9 - 0.8 * x[:, 5], 0.1 + 0.8 * x[:, 5]], 1)

    found = attribute_test(_model(predict, outputs), draw(5), draw(6), feature="secret", method="candidates")
    for side in (found.members, found.non_members):
        assert side.attack.low < 0.9 < side.attack.high
        assert side.gain.value == 0  # the label is known to the baseline as well


def test_a_rejected_candidate_says_nothing() -> None:
    class Shy(Guard):
        name = "shy"
        rejects = True

        def score(self, x: torch.Tensor, model: object) -> torch.Tensor:
            return x[:, 5] - 0.5  # never answers about one of the two values

    model = Guarded(_model(lambda x: np.stack([x[:, 0], x[:, 1]], 1)), [Shy()])
    found = attribute_test(model, MEMBERS, OTHERS, feature="secret", method="candidates")
    assert found.members.attack == found.members.baseline
    # That it rejects the record itself says it all.
    assert attribute_test(model, MEMBERS, OTHERS, feature="secret").members.attack.value > 0.99


def test_false_alarms_of_the_excess_are_rare() -> None:
    alarms = 0
    for seed in range(60):
        members, others = _records(120, 100 + seed), _records(160, 300 + seed)
        weights = np.random.default_rng(seed).normal(size=(6, 2))
        model = _model(lambda x, w=weights: x @ w)
        found = attribute_test(model, members, others, feature="secret", method="candidates", seed=seed)
        alarms += found.excess_low > 0
    # A one-sided level of 2.5 %: five or more out of 60 happen once in fifty times.
    assert alarms < 6


def test_figures_are_exact_and_paired() -> None:
    model = _model(lambda x: np.stack([x[:, 5], x[:, 0]], 1))
    found = attribute_test(model, MEMBERS, OTHERS, feature="secret", confidence=0.9)
    for side, total in ((found.members, 400), (found.non_members, 200)):
        assert side.attack.total == side.baseline.total == side.gain.total == total
        assert (side.attack.low, side.attack.high) == clopper_pearson(side.attack.count, total, 0.9)
        assert side.gain.gained - side.gain.lost == side.attack.count - side.baseline.count
    assert found.excess == pytest.approx(found.members.gain.value - found.non_members.gain.value)
    assert attribute_test(model, MEMBERS, OTHERS, feature="secret", confidence=0.9) == found
    assert "secret (2 values) from answers" in str(found)


def test_the_interval_of_the_excess_is_square_and_add() -> None:
    inside, outside = paired_difference(30, 10, 100), paired_difference(8, 6, 80)
    value, low, high = _excess(inside, outside)
    assert value == pytest.approx(0.2 - 0.025)
    assert (value - low) ** 2 == pytest.approx(
        (inside.value - inside.low) ** 2 + (outside.high - outside.value) ** 2
    )
    assert (high - value) ** 2 == pytest.approx(
        (inside.high - inside.value) ** 2 + (outside.value - outside.low) ** 2
    )


@pytest.mark.parametrize("method", METHODS)
def test_breast_cancer_gives_no_measurement_away(method: str) -> None:
    target = load_target("breast-cancer")
    found = attribute_test(
        target.model, target.train, target.data, feature="mean smoothness", bins=3, method=method
    )
    assert len(found.values) == 3
    assert found.members.baseline.low > found.chance.high  # the other measurements tell, with no model at all
    assert found.excess_low < 0 < found.excess_high
    assert found.queries == (3 * 5 * 469 if method == "candidates" else 569)


@given(
    values=st.lists(
        st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.9]) | st.floats(0, 1, width=32), min_size=30
    ),
    bins=st.integers(2, 6),
)
def test_every_range_has_samples_and_its_values_lie_in_it(values: list[float], bins: int) -> None:
    x = np.asarray(values, dtype=np.float32)[:, None]
    if len(np.unique(x)) < 2:
        return
    try:
        found = attribute_of(InputSpec(shape=(1,)), x, 0, bins)
    except InputError as error:
        assert "nearly constant" in str(error)
        return
    codes = found.codes(x)
    assert set(codes) == set(range(len(found.values)))
    for code, held in enumerate(found.candidates):
        for value in held:
            assert (found.codes(found.put(x, value)) == code).all()


def test_a_one_hot_group_is_one_attribute() -> None:
    spec = InputSpec(shape=(5,), one_hot=((1, 2, 3),))
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.random((n, 5)).astype(np.float32)
        kind = rng.integers(0, 3, n)
        x[:, 1:4] = np.eye(3)[kind]
        return x, kind % 2

    model = BlackBox(lambda x: 9 * x[:, 1:4], inputs=spec, classes=3, outputs="logits")
    found = attribute_test(model, draw(100), draw(200), feature=2)
    assert found.feature == "feature 1 / feature 2 / feature 3"
    assert found.members.attack.value == 1.0
    assert found.members.baseline.value < 0.9


def test_records_that_repeat_by_nature_may_meet() -> None:
    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return np.random.default_rng(seed).integers(0, 2, (n, 6)).astype(np.float32), np.arange(n) % 2

    model, members = _model(lambda x: x[:, :2]), draw(300, 0)
    assert attribute_test(model, members, draw(300, 1), feature="secret").members.attack.total == 300
    with pytest.raises(InputError, match="no sample can be in both"):
        attribute_test(model, members, (members[0][:100], members[1][:100]), feature="secret")


def test_nothing_is_left_changed() -> None:
    model = Classifier(nn.Linear(6, 2), inputs=SPEC, classes=2).train()
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    for method in METHODS:
        attribute_test(
            model, MEMBERS, OTHERS, feature="secret", method=method, learner="forest", device="cpu"
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numbers).all()
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"feature": "secrte"}, "did you mean 'secret'"),
        ({"feature": 6}, "index from 0 to 5"),
        ({"feature": True}, "index from 0 to 5"),
        ({"feature": 5, "bins": 1}, "bins=1"),
        ({"feature": 5, "method": "answer"}, "did you mean 'answers'"),
        ({"feature": 5, "learner": "tree"}, "learner='tree' is not known"),
        ({"feature": 5, "non_members": (OTHERS[0][:39], OTHERS[1][:39])}, "40 at least are wanted"),
        ({"feature": 5, "non_members": MEMBERS}, "no sample can be in both"),
        ({"feature": 4, "non_members": (OTHERS[0] * [1, 1, 1, 1, 0, 1], OTHERS[1])}, "has the same value"),
    ],
)
def test_mistakes_are_named(arguments: dict, said: str) -> None:
    model = _model(lambda x: x[:, :2])
    with pytest.raises(InputError, match=said):
        attribute_test(model, MEMBERS, **{"non_members": OTHERS, **arguments})
