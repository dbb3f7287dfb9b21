"""Recipes: each that is shipped can be followed, and what they are worth on the digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training.recipe import follow, load_recipe, recipe_names
from robustml.targets import load_target

SPEC = rml.InputSpec(shape=(6,))
X = np.random.default_rng(0).random((90, 6)).astype(np.float32)
Y = np.arange(90) % 3


def small(seed: int = 0) -> rml.Classifier:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return rml.Classifier(net, inputs=SPEC, classes=3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_followed_and_resumed(tmp_path, name) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    given = {"threat": rml.Linf(0.1), "epochs": 2, "seed": 1}
    whole = follow(recipe, small(), (X, Y), out=tmp_path / "run", **given)
    assert len(whole.history) == 2
    assert all(np.isfinite(epoch.loss) for epoch in whole.history)
    assert whole.provenance["objective"]["name"] == recipe.objective["use"]
    # What is finished is taken as it is.
    again = follow(recipe, small(5), (X, Y), out=tmp_path / "run", resume=True, **given)
    for one, other in zip(whole.model.module.parameters(), again.model.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_threat_of_the_recipe_comes_before_that_of_the_target(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = 1\nname = "mine"\ndescription = "Mine."\n[settings]\nepochs = 1\n'
        '[objective]\nuse = "several"\nobjectives = [{ use = "pgd", threat = "l2:0.3" }, { use = "pgd" }]\n'
    )
    hardened = follow(load_recipe(str(path)), small(), (X, Y), threat=rml.Linf(0.1))
    inside = hardened.provenance["objective"]["objectives"]
    assert [entry["threat"] for entry in inside] == ["l2:0.3", "linf:0.1"]


@pytest.mark.slow
def test_undefended_is_worth_less_than_regularized_and_that_less_than_adversarially_trained() -> None:
    target = load_target("digits")
    intervals = {}
    for name in ("standard", "regularized", "free"):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        model = rml.Classifier(net, inputs=target.model.inputs, classes=10)
        hardened = follow(load_recipe(name), model, target.train, threat=target.threats[0])
        report = rml.stress_test(hardened.model, target.data, threats=["linf:0.1"], suite="standard")
        assert report.trusted, report.distrust
        intervals[name] = report.threats[0].robust_accuracy.upper
    assert intervals["standard"].high < intervals["regularized"].low
    assert intervals["regularized"].high < intervals["free"].low
