"""The ablation ladder: each rung costs what it does cost, and nothing else differs between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robustml.auditing.ladder import Ladder, ladder
from robustml.defenses.privacy import DifferentialPrivacy
from robustml.defenses.training import harden
from robustml.errors import InputError
from robustml.estimates import clopper_pearson

pytest.importorskip("opacus")

DIGITS = load_digits()
X, Y = (DIGITS.images / 16).astype(np.float32)[:, None], DIGITS.target.astype(np.int64)
TRAIN, TEST = (X[:1200], Y[:1200]), (X[1200:], Y[1200:])
RECIPE = {"epochs": 5, "optimizer": "sgd", "learning_rate": 0.5, "batch_size": 100, "device": "cpu"}


def _net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def _climbed(privacy: DifferentialPrivacy, **more: object) -> Ladder:
    return ladder(_net, TRAIN, TEST, privacy=privacy, **{**RECIPE, **more})


def _noised(multiplier: float, clipping_norm: float = 1.0) -> DifferentialPrivacy:
    return DifferentialPrivacy(noise_multiplier=multiplier, clipping_norm=clipping_norm, delta=1e-4, seed=3)


def test_much_noise_is_what_costs() -> None:
    found = _climbed(_noised(6.0, clipping_norm=10.0))
    assert found.noise.high < 0
    assert found.noise.high < found.clipping.low
    assert found.total.high < 0
    assert "noise costs accuracy" in found.verdict
    assert found.private.noise_multiplier == 6.0
    assert found.clipped.noise_multiplier == 0.0
    assert found.clipped.epsilon is None is found.plain.epsilon
    assert found.private.epsilon is not None
    assert found.randomness == "seed 3"


def test_a_tiny_clipping_norm_is_what_costs() -> None:
    found = _climbed(_noised(0.3, clipping_norm=0.001))
    assert found.clipping.high < -0.3
    assert found.noise.low < 0 < found.noise.high
    assert found.verdict.startswith("clipping costs accuracy")
    assert "clipping costs accuracy" in str(found)


def test_what_changes_nothing_costs_nothing() -> None:
    found = _climbed(_noised(0.0, clipping_norm=100.0))
    # Nothing is clipped and nothing noised: the two private rungs are one model, and the plain one differs by
    # how batches are drawn.
    assert found.private.accuracy == found.clipped.accuracy
    assert (found.noise.gained, found.noise.lost) == (0, 0)
    assert found.clipping.low < 0.01
    assert found.clipping.high > -0.01
    assert found.private.epsilon is None
    assert found.verdict == f"no cost is resolvable with {len(TEST[1])} test samples"
    assert "no bound" in str(found)


def test_figures_are_of_the_models_that_harden_trains() -> None:
    asked = DifferentialPrivacy(epsilon=3, delta=1e-4, seed=3)
    found = _climbed(asked, seed=5)
    assert found.private.epsilon == pytest.approx(3, abs=0.05)
    assert found.private.epsilon <= 3
    for change, before, after in (
        (found.clipping, found.plain, found.clipped),
        (found.noise, found.clipped, found.private),
        (found.total, found.plain, found.private),
    ):
        assert change.total == after.accuracy.total == len(TEST[1])
        assert change.gained - change.lost == after.accuracy.count - before.accuracy.count
    for rung in (found.plain, found.clipped, found.private):
        count = rung.accuracy.count
        assert (rung.accuracy.low, rung.accuracy.high) == clopper_pearson(count, len(TEST[1]))
    assert _climbed(asked, seed=5) == found


def test_all_three_start_from_the_same_weights() -> None:
    starts: list[dict[str, torch.Tensor]] = []

    def build() -> nn.Module:
        module = _net()
        starts.append({name: value.clone() for name, value in module.state_dict().items()})
        return module

    found = ladder(build, TRAIN, TEST, privacy=_noised(1.0), seed=5, **RECIPE)
    assert len(starts) == 3
    for other in starts[1:]:
        assert all(torch.equal(other[name], value) for name, value in starts[0].items())
    plain = _net()
    plain.load_state_dict(starts[0])
    trained = harden(plain, TRAIN, validation=None, seed=5, **RECIPE).model
    with torch.no_grad():
        right = int((trained(torch.from_numpy(TEST[0])).argmax(1).numpy() == TEST[1]).sum())
    assert right == found.plain.accuracy.count


def test_nothing_is_drawn_from_global_numbers() -> None:
    state = torch.get_rng_state()
    _climbed(_noised(1.0), epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"privacy": None}, "privacy is NoneType"),
        ({"privacy": dataclasses.replace(_noised(1.0), max_epsilon=2.0)}, "max_epsilon may end"),
        ({"validation": 0.1}, "validation cannot be given to a ladder"),
        ({"keep": "clean"}, "needs validation data"),
        ({"precision": "bfloat16"}, "rounds gradients before they are clipped"),
        ({"epoch": 3}, "epoch is not a setting of harden"),
    ],
)
def test_mistakes_are_named(arguments: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ladder(_net, TRAIN, TEST, **{"privacy": _noised(1.0), **RECIPE, **arguments})


def test_one_module_for_all_is_refused() -> None:
    module = _net()
    with pytest.raises(InputError, match="same module twice"):
        ladder(lambda: module, TRAIN, TEST, privacy=_noised(1.0), **{**RECIPE, "epochs": 1})
