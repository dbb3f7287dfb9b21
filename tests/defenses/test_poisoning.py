"""Suspicious training samples: the scores against their formula, and what is found of a real backdoor."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.attacks.poisoning import Blend, Patch, backdoor
from robustml.defenses.poisoning import (
    Suspects,
    activation_clusters,
    detection,
    features,
    spectral_signatures,
)
from robustml.defenses.training import harden
from robustml.errors import InputError
from robustml.estimates import clopper_pearson
from robustml.targets.builtin import build

RNG = np.random.default_rng(0)


def planted(apart: float = 6.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three classes of 60, with 8 samples of class 1 that lie elsewhere."""
    y = np.repeat([0, 1, 2], 60)
    learned = np.random.default_rng(1).normal(0, 1, (180, 12)) + 5 * y[:, None]
    rows = np.arange(70, 78)
    learned[rows, :3] += apart
    return learned, y, rows


def test_spectral_scores_are_squared_projections_on_the_widest_direction() -> None:
    learned, y, _ = planted()
    found = spectral_signatures(learned, y, expected=8)
    for k in range(3):
        part = learned[y == k]
        values, vectors = np.linalg.eigh(np.cov(part.T, bias=True))
        wanted = ((part - part.mean(0)) @ vectors[:, -1]) ** 2
        assert np.allclose(found.scores[y == k], wanted)
        assert found.scores[y == k].mean() == pytest.approx(values[-1])
    assert len(found.rows) == 3 * 12  # 1.5 times the poison expected, of each class


def test_spectral_scores_do_not_depend_on_where_the_class_lies() -> None:
    learned, y, _ = planted()
    near, far = (spectral_signatures(learned + shift, y, expected=8) for shift in (0.0, 1000.0))
    assert np.allclose(near.scores, far.scores, rtol=1e-6)


def test_spectral_scores_are_those_of_the_toolbox_where_that_is_right() -> None:
    from art.defences.detector.poison import SpectralSignatureDefense

    learned, y, _ = planted()
    part = learned[y == 1]
    theirs = SpectralSignatureDefense.spectral_signature_scores
    found = spectral_signatures(learned, y, expected=8).scores[y == 1]
    assert np.allclose(found, theirs(part - part.mean(0))[:, 0] ** 2)
    # The paper centers what it projects (Algorithm 1), and the toolbox does not.
    assert not np.allclose(found, theirs(part)[:, 0] ** 2)


@pytest.mark.parametrize("classes", [None, [1]])
def test_what_is_planted_is_found(classes) -> None:
    learned, y, rows = planted()
    spectral = detection(spectral_signatures(learned, y, expected=8, classes=classes), rows)
    clusters = detection(activation_clusters(learned, y, classes=classes), rows)
    assert spectral.recall.value == clusters.recall.value == 1
    assert clusters.precision.value == 1
    assert spectral.precision.count == 8
    assert spectral.precision.total == (36 if classes is None else 12)


def test_classes_of_one_piece_are_not_suspicious() -> None:
    learned, y, _ = planted(apart=0.0)
    found = activation_clusters(learned, y)
    assert len(found.rows) == 0
    none = detection(found, [1, 2])
    assert (none.precision.total, none.precision.low, none.precision.high) == (0, 0, 1)
    assert str(none).startswith("precision none of none, recall 0.0 %")


def test_clusters_are_those_of_the_seed() -> None:
    learned, y, _ = planted(apart=3.0)
    before = np.random.get_state()[1].copy()
    one, again = (activation_clusters(learned, y, seed=4, silhouette=-1, share=0.5) for _ in range(2))
    assert (one.rows == again.rows).all()
    assert (np.random.get_state()[1] == before).all()


def test_small_or_constant_classes_are_passed_over() -> None:
    learned, y = np.zeros((30, 4)), np.repeat([0, 1, 2], [25, 4, 1])
    assert len(activation_clusters(learned, y).rows) == 0
    assert len(spectral_signatures(learned, y, expected=2).rows) == 3 + 3 + 1


def test_figures_are_exact() -> None:
    found = detection(Suspects(np.zeros(100), np.array([1, 2, 3, 50])), [1, 2, 70])
    assert (found.precision.count, found.precision.total) == (2, 4)
    assert (found.recall.count, found.recall.total) == (2, 3)
    assert (found.false_positives.count, found.false_positives.total) == (2, 97)
    assert (found.precision.low, found.precision.high) == clopper_pearson(2, 4)


def small(dtype: str = "float32") -> rml.Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return rml.Classifier(
        net.double() if dtype == "float64" else net, inputs=rml.InputSpec(shape=(4,), dtype=dtype), classes=3
    )


def test_features_are_what_the_last_layer_gets() -> None:
    model = small().train()
    x = RNG.random((600, 4)).astype(np.float32)
    found = features(model, x)
    wanted = model.module[1](model.module[0](torch.from_numpy(x)))
    assert np.allclose(found, wanted.detach().numpy(), atol=1e-6)
    assert np.allclose(features(model, x, layer="0"), x)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not model.module[2]._forward_pre_hooks


def twice() -> rml.Classifier:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            again: torch.Tensor = self.layer(self.layer(x))
            return again

    return rml.Classifier(Net(), inputs=rml.InputSpec(shape=(4,)), classes=4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: features(small(), np.zeros((2, 4)), layer="9"), "layer='9' is not a layer"),
        (lambda: features(twice(), np.zeros((2, 4))), "is not called once per batch"),
        (lambda: spectral_signatures(np.zeros((3, 2)), [0, 1], expected=1), "do not go with labels"),
        (
            lambda: spectral_signatures(np.zeros((2, 2)), [0, 1], expected=0),
            "expected=0 is not a whole number",
        ),
        (lambda: activation_clusters(np.full((2, 2), np.nan), [0, 1]), "features hold NaN"),
        (lambda: activation_clusters(np.zeros((2, 2)), [0, 1], classes=[7]), "classes names 7"),
        (lambda: activation_clusters(np.zeros((2, 2)), [0, 1], dimensions=0), "dimensions=0"),
    ],
)
def test_mistakes_are_named(make, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("trigger", [Patch(2), Blend.noise((1, 8, 8), share=0.3)], ids=["patch", "blend"])
def test_a_backdoor_in_the_digits_is_found(trigger) -> None:
    parts = build("digits")
    assert parts.train is not None
    poisoned = backdoor((parts.train.x, parts.train.y), trigger, target=0, share=0.05)
    net = copy.deepcopy(parts.model)  # the backdoor is learned from where the clean model stands
    data = (poisoned.x, poisoned.y)
    model = harden(net, data, epochs=12, batch_size=64, learning_rate=0.005, validation=None).model
    learned = features(model, poisoned.x)
    spectral = spectral_signatures(learned, poisoned.y, expected=len(poisoned.rows), classes=[0])
    clusters = activation_clusters(learned, poisoned.y)
    assert detection(spectral, poisoned.rows).recall.low > 0.7
    assert detection(clusters, poisoned.rows).recall.low > 0.7
    assert int(np.argmax([clusters.scores[poisoned.y == k].max() for k in range(10)])) == 0
