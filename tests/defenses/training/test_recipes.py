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
    if recipe.privacy is not None:
        given["batch_size"] = 30  # what is shipped is for more samples than these
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


def test_a_private_recipe_spends_what_it_says(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    head = 'schema = 1\nname = "mine"\ndescription = "Mine."\nobjective = { use = "standard" }\n'
    path.write_text(
        head + 'settings = { epochs = 2, batch_size = 30, optimizer = "sgd" }\n'
        "privacy = { epsilon = 3, delta = 1e-4, clipping_norm = 0.5, seed = 4 }\n"
    )
    hardened = follow(load_recipe(str(path)), small(), (X, Y))
    assert hardened.privacy is not None
    assert 2.9 < hardened.privacy.epsilon <= 3
    assert (hardened.privacy.delta, hardened.privacy.clipping_norm) == (1e-4, 0.5)
    assert hardened.privacy.sampling_rate == pytest.approx(30 / 90)
    assert hardened.provenance["privacy"]["epsilon"] == hardened.privacy.epsilon
    for table, said in (
        ("privacy = { epsilonn = 3 }", "privacy.epsilonn is not known; did you mean 'epsilon'?"),
        ("privacy = { epsilon = -3 }", "epsilon=-3 is not a finite number above 0"),
        ("privacy = {}", "exactly one of epsilon and noise_multiplier"),
        ("privacy = { epsilon = 3 }\nteacher = { recipe = 'standard' }", "do not go together"),
    ):
        path.write_text(head + table)
        with pytest.raises(rml.InputError, match=said):
            follow(load_recipe(str(path)), small(), (X, Y))


def test_a_renewed_model_is_the_same_network_with_other_weights() -> None:
    from robustml.defenses.training.renewing import renewed

    model = small()
    state = torch.get_rng_state()
    one, same, other = renewed(model, 0), renewed(model, 0), renewed(model, 1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [m.module[0].weight for m in (model, one, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x[:, :3] * self.scale

    with pytest.raises(rml.InputError, match="cannot be drawn anew"):
        renewed(rml.Classifier(nn.Sequential(Odd()), inputs=SPEC, classes=3))


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


@pytest.mark.slow
def test_private_training_is_of_use_and_can_be_adversarial_as_well() -> None:
    from robustml.defenses.training.renewing import renewed

    target = load_target("digits")
    clean, robust = {}, {}
    for name in ("private", "private-pgd"):
        fresh = renewed(target.model, 0)
        hardened = follow(load_recipe(name), fresh, target.train, threat=target.threats[0])
        assert hardened.privacy is not None
        assert 7.9 < hardened.privacy.epsilon <= 8
        report = rml.stress_test(hardened.model, target.data, threats=["linf:0.1"], suite="quick")
        clean[name], robust[name] = report.clean.accuracy, report.threats[0].robust_accuracy.upper
    assert all(figure.low > 0.85 for figure in clean.values())
    assert robust["private"].high < robust["private-pgd"].low
