"""Adversarial weight perturbation: where the weights go, that they come back, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import robustml as rml
from robustml.defenses.training import AWP, PGD, TRADES, Answers, Free, Several, harden
from robustml.errors import InputError
from tests.defenses.training.tiny import batch, smooth

THREAT = rml.Linf(0.1)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim > 1]


def test_each_matrix_goes_up_the_loss_by_a_share_of_its_length() -> None:
    model, made = smooth(1), batch()
    objective = AWP(PGD(THREAT, steps=2), gamma=0.03).within(model.inputs)
    z = objective.craft(model.eval(), made)
    before = copy.deepcopy(model.state_dict())
    loss = torch.nn.functional.cross_entropy(model(z), made.y)
    gradients = torch.autograd.grad(loss, matrices(model))
    wanted = [
        w + 0.03 * w.square().sum().sqrt() * g / g.square().sum().sqrt()
        for w, g in zip(matrices(model), gradients, strict=True)
    ]
    with objective.perturbed(model.train(), made, z):
        for found, moved in zip(matrices(model), wanted, strict=True):
            assert torch.allclose(found, moved, atol=1e-12)
        for name, p in model.module.named_parameters():
            assert p.ndim > 1 or torch.equal(p, before[f"module.{name}"])
        assert objective.losses(Answers(model), made, z).mean() > loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_step_is_made_from_the_weights_with_the_gradient_of_the_perturbed_ones() -> None:
    x, y = batch(6).x, torch.arange(6) % 3
    trained, by_hand = smooth(1), smooth(1)
    objective = AWP(PGD(THREAT, steps=0), gamma=0.1)
    seen: list[torch.Tensor] = []

    class Watched(AWP):
        def losses(self, ask, batch, z):
            seen.append(z.detach().clone())
            return super().losses(ask, batch, z)

    harden(
        trained,
        [(x, y)],
        objective=Watched(objective.objective, 0.1),
        epochs=1,
        validation=None,
        schedule="constant",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    )
    (z,) = seen
    before = copy.deepcopy(by_hand.state_dict())
    gradients = torch.autograd.grad(
        torch.nn.functional.cross_entropy(by_hand(z), y), list(by_hand.parameters())
    )
    with torch.no_grad():
        for p, g in zip(by_hand.parameters(), gradients, strict=True):
            if p.ndim > 1:
                p += 0.1 * p.norm() * g / g.norm()
    gradients = torch.autograd.grad(
        torch.nn.functional.cross_entropy(by_hand(z), y), list(by_hand.parameters())
    )
    by_hand.load_state_dict(before)
    for p, other, g in zip(trained.parameters(), by_hand.parameters(), gradients, strict=True):
        assert torch.allclose(p, other - 0.3 * g, atol=1e-12)


def test_running_statistics_see_the_pass_that_is_learned_from_alone() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    model = rml.Classifier(net, inputs=rml.InputSpec(shape=(5,), dtype="float64"), classes=3).train()
    made, before = batch(), copy.deepcopy(net.state_dict())
    objective = AWP(PGD(THREAT, steps=1)).within(model.inputs)
    with objective.perturbed(model, made, made.x):
        for name, value in net[1].named_buffers():
            assert torch.equal(value, before[f"1.{name}"])
        objective.losses(Answers(model), made, made.x).sum().backward()
    assert int(net[1].num_batches_tracked) == 1
    assert torch.equal(net[0].weight, before["0.weight"])


def test_weights_come_back_after_an_error() -> None:
    model, made = smooth(1), batch()
    before = copy.deepcopy(model.state_dict())
    objective = AWP(PGD(THREAT, steps=1)).within(model.inputs)
    with pytest.raises(KeyError), objective.perturbed(model, made, made.x):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_weights_stay_and_a_layer_without_a_gradient_too() -> None:
    model, made = smooth(1), batch()
    model.module.add_module("unused", nn.Identity())
    model.module.unused.spare = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    model.module[1].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with AWP(PGD(THREAT, steps=1)).within(model.inputs).perturbed(model, made, made.x):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"module.3.weight"}


def test_all_else_is_that_of_the_objective_within() -> None:
    model = smooth(1)
    free = AWP(Free(THREAT, replays=3))
    assert (free.replays, free.follows) == (3, True)
    several = AWP(Several((PGD(THREAT), TRADES(rml.L2(0.3))))).within(model.inputs)
    assert [threat.norm for threat in several.threats] == ["linf", "l2"]
    assert all(threat.inputs == model.inputs for threat in several.threats)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match=r"objective is Linf, not an objective, as in PGD\(Linf\(8/255\)\)"):
        AWP(THREAT)
    with pytest.raises(InputError, match="gamma=0 is not a finite number above 0"):
        AWP(PGD(THREAT), gamma=0)
