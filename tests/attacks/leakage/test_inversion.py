"""Model inversion: the ascent is the paper's, and only a model that has memorized members is said to leak."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustml.attacks.leakage import inversion_test, invert, scrambled
from robustml.attacks.leakage.nearness import Nearness, nearness, permuted
from robustml.classifier import BlackBox, Classifier
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.targets import load_target

RNG = np.random.default_rng(3)


class Prototypes(nn.Module):
    """A classifier that keeps one sample of each class, and is surest where it meets that."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = nn.Parameter(kept)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = -20 * (x[:, None] - self.kept).square().sum(2)
        return torch.cat([logits, torch.full_like(logits[:, :1], -4.0)], dim=1)


def _clouds(classes: int = 5, each: int = 30) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Members and non-members of classes that overlap, drawn alike."""
    centers = 0.3 + 0.4 * RNG.random((classes, 12))
    halves = []
    for _ in range(2):
        y = np.repeat(np.arange(classes), each)
        x = np.clip(centers[y] + 0.15 * RNG.standard_normal((len(y), 12)), 0, 1)
        halves.append((x.astype(np.float32), y))
    return tuple(halves)


def _keeper(x: np.ndarray, y: np.ndarray, classes: int) -> Classifier:
    kept = torch.from_numpy(np.stack([x[y == k][0] for k in range(classes)]))
    return Classifier(Prototypes(kept), inputs=InputSpec(shape=(12,)), classes=classes + 1)


def test_a_model_that_keeps_members_is_found_out() -> None:
    members, others = _clouds(classes=8)
    found = inversion_test(_keeper(*members, 8), members, others)
    assert found.nearest.value > 0.9
    assert found.nearest_chance == 0.5
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert "(by chance 50.0 %), p = 0.0" in str(found)


def test_a_model_that_keeps_other_samples_is_not() -> None:
    members, others = _clouds(classes=8)
    strangers, _ = _clouds(classes=8)
    found = inversion_test(_keeper(*strangers, 8), members, others)
    assert found.p_value is not None
    assert found.p_value > 0.05


def test_the_share_of_false_alarms_is_at_most_the_level() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for trial in range(200):
        groups = [
            nearness(rng.normal(size=(4, 3)), rng.normal(size=(9, 3)), rng.normal(size=(6, 3)), seed=k)
            for k in range(3)
        ]
        alarms += permuted(groups, 99, seed=trial)[2] <= 0.05
    # Binomial with 200 trials of 5 %: 20 or more happens once in 400 times.
    assert alarms < 20


@given(members=st.integers(1, 9), others=st.integers(1, 9), seed=st.integers(0, 50))
def test_nearer_is_what_counting_pairs_gives(members: int, others: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point, inside, outside = (rng.integers(0, 3, size=(n, 2)).astype(float) for n in (1, members, others))
    found = nearness(point, inside, outside, seed=seed)
    mine, theirs = (np.linalg.norm(group - point, axis=1) for group in (inside, outside))
    pairs = (mine[:, None] < theirs).mean() + 0.5 * (mine[:, None] == theirs).mean()
    assert found.nearer == pytest.approx(pairs)
    assert found.chance == members / (members + others)


def test_a_tie_for_the_nearest_is_drawn() -> None:
    point, same = np.zeros((1, 2)), np.ones((1, 2))
    wins = sum(nearness(point, same, same, seed=seed).nearest for seed in range(200))
    assert 60 < wins < 140


def test_the_p_value_of_three_samples_is_what_enumeration_gives() -> None:
    # Of the three ways to choose the member, one has scores as high as these: 1/3, doubled.
    found = Nearness(ranks=np.array([1.0, 2.0, 3.0]), first=np.array([0]), members=1)
    assert found.nearer == 1.0
    _, nearest, p_value = permuted([found], 3999, seed=0)
    assert nearest == 1
    assert p_value == pytest.approx(2 / 3, abs=0.06)


def _linear(seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return Classifier(net.eval(), inputs=InputSpec(shape=(6,)), classes=4)


def _toolbox(model: Classifier, steps: int, threshold: float, start: np.ndarray) -> np.ndarray:
    from art.attacks.inference.model_inversion.mi_face import MIFace
    from art.estimators.classification import PyTorchClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = PyTorchClassifier(
            nn.Sequential(model.module, nn.Softmax(1)),
            loss=nn.CrossEntropyLoss(),
            input_shape=model.inputs.shape,
            nb_classes=model.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = MIFace(estimator, max_iter=steps, threshold=threshold, learning_rate=0.1, verbose=False)
        return attack.infer(start, np.arange(model.classes))


def test_the_ascent_of_the_probability_is_that_of_the_toolbox() -> None:
    for seed in range(3):
        model = _linear(seed)
        start = np.full((4, 6), 0.5, dtype=np.float32)
        theirs = _toolbox(model, 50, 1.0, start)
        ours = invert(model, starts=1, steps=50, rate=0.1, objective="probability", device="cpu")
        np.testing.assert_allclose(ours.x[:, 0].numpy(), theirs, atol=1e-5)
        assert ours.queries == 4 * 51


def test_the_stop_of_the_toolbox_leaves_unlikely_classes_where_they_were() -> None:
    # Its test for going on is the paper's test for stopping: with less than 1 % it stops at once. That is
    # why the ascent here is our own.
    model = load_target("digits").model
    start = np.full((10, 1, 8, 8), 0.5, dtype=np.float32)
    with torch.no_grad():
        sure = model(torch.from_numpy(start)).softmax(1).diagonal()
    unlikely = (sure < 0.01).numpy()
    assert unlikely.any()
    theirs = _toolbox(model, 200, 0.99, start)
    moved = np.abs(theirs - start).reshape(10, -1).max(1)
    assert moved[unlikely].max() < 0.01
    ours = invert(model, starts=1, device="cpu")
    assert ours.confidence.min() > 0.99


def test_digits_show_their_classes_and_not_their_members() -> None:
    target = load_target("digits")
    found = inversion_test(target.model, target.train, target.data, steps=100)
    assert found.correlation is not None
    assert found.control is not None
    assert found.public is not None
    assert found.correlation > 0.25 > 0.15 > abs(found.control)
    assert found.public > 0.9
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert found.control_is == "scrambled weights"
    assert [entry.label for entry in found.classes] == list(range(10))
    assert sum(entry.members for entry in found.classes) == len(target.train)


def test_a_black_box_of_scores_is_inverted_too() -> None:
    model = _linear(1)
    black = BlackBox(
        lambda x: model(torch.from_numpy(x)).softmax(1).detach().numpy(),
        inputs=model.inputs,
        classes=4,
    )
    white = invert(model, starts=2, steps=60, device="cpu")
    ours = invert(black, starts=2, steps=60, device="cpu")
    assert (ours.confidence > white.confidence - 0.05).all()
    assert ours.queries == 8 * 61 * 65
    assert ((ours.x >= 0) & (ours.x <= 1)).all()


@settings(max_examples=10)
@given(seed=st.integers(0, 5), precision=st.sampled_from(["float32", "float64"]))
def test_reconstructions_are_valid_inputs_with_the_confidence_that_is_said(seed: int, precision: str) -> None:
    spec = InputSpec(shape=(2, 3), bounds=((-1, 0, 0, 2, -5, 0), (1, 1, 3, 4, 5, 100)), dtype=precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).to(spec.torch_dtype)
    model = Classifier(net, inputs=spec, classes=3)
    found = invert(model, [2, 0], starts=3, steps=20, seed=seed, device="cpu")
    x = found.x.flatten(0, 1).flatten(1)
    low, high = (torch.tensor(side, dtype=x.dtype) for side in spec.bounds)
    assert ((x >= low - 1e-5) & (x <= high + 1e-5)).all()
    with torch.no_grad():
        sure = model(found.x.flatten(0, 1)).softmax(1)
    said = torch.stack([sure[:3, 2], sure[3:, 0]])
    np.testing.assert_allclose(said.numpy(), found.confidence.numpy(), atol=1e-4)
    alone = invert(model, [0], starts=3, steps=20, seed=seed, device="cpu")
    assert torch.allclose(alone.x[0], found.x[1], atol=1e-5)


def test_nothing_is_left_changed() -> None:
    members, others = _clouds(classes=3, each=8)
    model = _keeper(*members, 3).train()
    before = model.fingerprint()
    state = torch.get_rng_state()
    first = inversion_test(model, members, others, steps=10, device="cpu")
    assert first == inversion_test(model, members, others, steps=10, device="cpu")
    assert model.fingerprint() == before
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert scrambled(model).fingerprint() != before


def test_too_little_is_said_to_be_too_little() -> None:
    x = np.random.default_rng(0).random((4, 12)).astype(np.float32)
    y = np.array([0, 1, 0, 1])
    found = inversion_test(_keeper(x, y, 2), (x[:2], y[:2]), (x[2:], y[2:]), steps=5)
    assert found.nearer is None
    assert found.p_value is None
    assert found.nearest.total == 0
    assert found.reason.startswith("not resolvable with 4 samples")
    assert "not resolvable" in str(found)


def test_mistakes_are_named() -> None:
    members, others = _clouds(classes=3, each=8)
    model = _keeper(*members, 3)
    labels = BlackBox(
        lambda x: np.zeros(len(x), dtype=np.int64), inputs=model.inputs, classes=3, outputs="labels"
    )
    with pytest.raises(InputError, match="labels only"):
        invert(labels)
    with pytest.raises(InputError, match=r"non_members\[0\] is members\[2\]"):
        inversion_test(model, members, (members[0][2:4], members[1][2:4]))
    with pytest.raises(InputError, match="no class in common"):
        inversion_test(model, (members[0][:8], members[1][:8]), (others[0][8:], others[1][8:]))
    with pytest.raises(InputError, match="control is int"):
        inversion_test(model, members, others, control=3)
    with pytest.raises(InputError, match="control has inputs"):
        inversion_test(model, members, others, control=_linear(0))
    with pytest.raises(InputError, match="outside"):
        invert(model, [9])
    with pytest.raises(InputError, match="starts=0"):
        invert(model, starts=0)
    with pytest.raises(InputError, match="objective='logit'"):
        invert(model, objective="logit")
    with pytest.raises(InputError, match="give a Classifier or a BlackBox"):
        invert(nn.Linear(2, 2))
