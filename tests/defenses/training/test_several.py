"""Several threat models at once: the worst view of each sample, the mean of all, validation within all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import robustml as rml
from robustml.defenses.training import (
    AWP,
    MART,
    PGD,
    TRADES,
    Answers,
    Fast,
    Free,
    LabelSmoothing,
    Several,
    Standard,
    harden,
)
from robustml.defenses.training.objective import total
from robustml.defenses.training.recipe import Recipe, follow
from robustml.defenses.training.validation import accuracies
from robustml.errors import InputError
from tests.defenses.training.tiny import assert_derivative, batch, losses, smooth

LINF, L2 = rml.Linf(0.1), rml.L2(0.2)


def crafted(objective, model, made):
    return objective.within(model.inputs).craft(model.eval(), made)


def test_the_worst_view_of_each_sample_is_learned_from() -> None:
    model, made = smooth(1), batch(40)
    alone = [PGD(LINF, steps=5), PGD(L2, steps=5)]
    z = crafted(Several(tuple(alone)), model, made)
    again = batch(40)
    views = [crafted(each, model, again) for each in alone]  # one after the other, from the same streams
    values = [torch.nn.functional.cross_entropy(model(view), made.y, reduction="none") for view in views]
    first = values[0] >= values[1]
    assert first.any()
    assert not first.all()
    assert torch.equal(z, torch.where(first[:, None], *views))
    found = Several(tuple(alone)).losses(Answers(model), made, z)
    assert torch.allclose(found, torch.maximum(*values), atol=1e-12)


def test_the_highest_loss_of_different_kinds_is_minimised() -> None:
    model, made = smooth(1), batch(20)
    kinds = (MART(LINF, steps=2), TRADES(L2, steps=2))
    z = crafted(Several(kinds), model, made)
    wanted = torch.maximum(*[kind.losses(Answers(model), made, z) for kind in kinds])
    assert torch.equal(Several(kinds).losses(Answers(model), made, z), wanted)


def test_the_average_is_that_over_all_views() -> None:
    model, made = smooth(1), batch()
    alone = (PGD(LINF, steps=3), TRADES(L2, steps=3), Standard())
    found = losses(model, Several(alone, mode="average").within(model.inputs), made)
    again = batch()
    values = [losses(model, each.within(model.inputs), again) for each in alone]
    assert torch.allclose(found, sum(values) / 3, atol=1e-12)


@pytest.mark.parametrize("mode", ["max", "average"])
def test_the_gradient_is_that_of_the_loss(mode) -> None:
    model, made = smooth(2), batch()
    objective = Several((PGD(LINF, steps=2), PGD(L2, steps=2)), mode=mode).within(model.inputs)
    z = objective.craft(model, made)
    assert_derivative(model, lambda: objective.losses(Answers(model), made, z).sum())


def test_terms_take_the_mean_over_the_views_without_asking_again() -> None:
    model, made = smooth(1), batch()
    objective = Several((PGD(LINF, steps=2), PGD(L2, steps=2)), mode="average").within(model.inputs)
    z = objective.craft(model.eval(), made)
    calls = []
    model.module.register_forward_hook(lambda *_: calls.append(1))
    ask = Answers(model)
    found = total(objective, [LabelSmoothing(0.5)], ask, made, z)
    assert len(calls) == 2
    plain = objective.losses(ask, made, z)
    views = z.split(7)
    spread = [-torch.log_softmax(model(view), 1).mean(1) for view in views]
    assert torch.allclose(found, plain + 0.5 * (spread[0] + spread[1]) / 2, atol=1e-12)
    assert int(ask.right(made.y)) == int((model(views[0]).argmax(1) == made.y).sum())


def test_validation_attacks_within_all_threat_models() -> None:
    model, made = smooth(1), batch(300)
    y = model(made.x).argmax(1)
    threats = [threat.within(model.inputs) for threat in (LINF, L2)]
    one, two, both = (
        accuracies(model, made.x, y, chosen, 0, torch.device("cpu"))[1]
        for chosen in ((threats[0],), (threats[1],), tuple(threats))
    )
    assert both <= min(one, two)
    assert both < max(one, two) or one == two
    hardened = harden(
        smooth(1),
        (made.x.numpy(), np.arange(300) % 3),
        objective=Several((PGD(LINF, steps=1), PGD(L2, steps=1))),
        validation=(made.x.numpy(), y.numpy()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        schedule="constant",
        epochs=1,
    )
    assert hardened.history[0].robust == pytest.approx(both)


def test_a_recipe_names_them_all() -> None:
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "name": "mine",
            "description": "Two threat models, flat.",
            "objective": {
                "use": "awp",
                "gamma": 0.02,
                "objective": {
                    "use": "several",
                    "mode": "average",
                    "objectives": [
                        {"use": "pgd", "threat": "linf:0.1", "steps": 1},
                        {"use": "trades", "threat": "l2:0.3", "steps": 1, "beta": 2},
                    ],
                },
            },
            "settings": {"epochs": 1},
        }
    )
    data = (batch(12).x.numpy(), np.arange(12) % 3)
    about = follow(recipe, smooth(1), data, validation=None).provenance["objective"]
    assert (about["name"], about["gamma"], about["objective"]["mode"]) == ("awp", 0.02, "average")
    assert [each["threat"] for each in about["objective"]["objectives"]] == ["linf:0.1", "l2:0.3"]
    assert about["objective"]["objectives"][1]["beta"] == 2


@pytest.mark.parametrize(
    ("objectives", "options", "said"),
    [
        ([PGD(LINF)], {}, "is not a list of two objectives or more"),
        (PGD(LINF), {}, "is not a list of two objectives or more"),
        ([PGD(LINF), L2], {}, r"objectives holds L2\(eps=0.2\), which is not an objective"),
        ([PGD(LINF), Free(L2)], {}, "objectives holds 'free', which cannot be one of several"),
        ([PGD(LINF), AWP(Fast(L2))], {}, "objectives holds 'awp', which cannot be one of several"),
        ([PGD(LINF), Several((Fast(LINF), Fast(L2)))], {}, "objectives holds 'several', which cannot be"),
        ([PGD(LINF), PGD(L2)], {"mode": "mean"}, "mode='mean' is not known; known: average, max"),
    ],
)
def test_mistakes_are_named(objectives, options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Several(objectives, **options)
