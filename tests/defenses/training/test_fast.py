"""Fast adversarial training: the step, the alignment of gradients, and the collapse that it prevents."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training import Answers, Fast
from robustml.errors import InputError
from tests.defenses.training.tiny import assert_derivative, batch, losses, smooth

THREAT = rml.Linf(0.1)


def slope(model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The input gradient of the network of `smooth`, by the chain rule on paper."""
    first, second = model.module[1], model.module[3]
    hidden = torch.tanh(x @ first.weight.T + first.bias)
    p = torch.softmax(hidden @ second.weight.T + second.bias, 1)
    error = p - torch.nn.functional.one_hot(y, 3)
    return ((error @ second.weight) * (1 - hidden**2)) @ first.weight


def test_the_view_is_one_step_from_a_random_point() -> None:
    model, made = smooth(1), batch()
    ball = THREAT.within(model.inputs).around(made.x)
    start = ball.random(batch().streams)
    wanted = start + 0.125 * slope(model, start, made.y).sign()
    wanted = wanted.clamp(made.x - 0.1, made.x + 0.1).clamp(0, 1)
    found = Fast(THREAT).within(model.inputs).craft(model, made)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_alignment_is_that_of_equation_3() -> None:
    model, made = smooth(1), batch()
    with_it, without = (Fast(THREAT, align=weight).within(model.inputs) for weight in (0.7, 0.0))
    turned = (losses(model, with_it, batch()) - losses(model, without, batch())) / 0.7
    point = THREAT.within(model.inputs).around(made.x).random(batch().streams.restart(1))
    here, there = slope(model, made.x, made.y), slope(model, point, made.y)
    wanted = 1 - torch.cosine_similarity(here, there, 1)
    assert torch.allclose(turned, wanted, atol=1e-10)
    assert (wanted > 1e-5).all()


def test_the_gradient_is_differentiated_again() -> None:
    model, made = smooth(2), batch()
    objective = Fast(THREAT, align=2.0).within(model.inputs)
    z = objective.craft(model, made)
    assert_derivative(model, lambda: objective.losses(Answers(model), made, z).sum())


def test_what_cannot_change_is_not_compared_and_units_are_those_of_the_budget() -> None:
    scale = (1.0, 2.0, 1.0, 0.5, 1.0)
    model, made = smooth(1, immutable=[0], scale=scale), batch()
    objective = Fast(THREAT, align=1.0).within(model.inputs)
    z = objective.craft(model.eval(), batch())
    found = objective.losses(Answers(model), made, z)
    found = found - torch.nn.functional.cross_entropy(model(z), made.y, reduction="none")
    point = objective.ball(made).random(batch().streams.restart(1))
    unit = torch.tensor([0.0, *scale[1:]], dtype=torch.float64)
    here, there = (slope(model, x, made.y) * unit for x in (made.x, point))
    assert torch.allclose(found, 1 - torch.cosine_similarity(here, there, 1), atol=1e-10)


def test_a_linear_model_has_nothing_to_align() -> None:
    net = nn.Linear(5, 2).double()
    model = rml.Classifier(net, inputs=rml.InputSpec(shape=(5,), dtype="float64"), classes=2)
    made = [batch(), batch()]
    for each in made:
        each.y = each.y % 2
    objectives = [Fast(THREAT, align=weight).within(model.inputs) for weight in (5.0, 0.0)]
    found = [losses(model, objective, each) for objective, each in zip(objectives, made, strict=True)]
    assert torch.allclose(*found, atol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 0.0])
def test_a_sample_with_little_gradient_or_none_counts_right(size: float) -> None:
    model, made = smooth(1), batch()
    with torch.no_grad():
        model.module[3].weight.mul_(size)
    objective = Fast(THREAT, align=1.0).within(model.inputs)
    z = objective.craft(model.eval(), batch())
    found = objective.losses(Answers(model.train()), made, z)
    turned = found - torch.nn.functional.cross_entropy(model(z), made.y, reduction="none")
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    point = objective.ball(made).random(batch().streams.restart(1))
    here, there = (slope(model, x, made.y) * 1e30 for x in (made.x, point))
    wanted = 1 - torch.cosine_similarity(here, there, 1) if size else torch.zeros(7, dtype=torch.float64)
    assert torch.allclose(turned, wanted, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0}, "alpha=0 is not a finite number above 0"),
        ({"align": -0.1}, "align=-0.1 is not a finite number of at least 0"),
        ({"align": float("nan")}, "align=nan is not a finite number of at least 0"),
    ],
)
def test_mistakes_are_named(options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Fast(THREAT, **options)
