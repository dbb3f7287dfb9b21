"""Every objective with every term and every threat model: one step, its loss, its gradient, its views."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

import robustml as rml
from robustml.defenses import training
from robustml.defenses.training import (
    AWP,
    MART,
    PGD,
    TRADES,
    AdversarialDistillation,
    Answers,
    Batch,
    Distillation,
    Fast,
    Free,
    Noisy,
    Objective,
    Several,
    Standard,
    Tempered,
    Term,
    harden,
)
from robustml.defenses.training.adversarial import Against
from robustml.defenses.training.objective import total
from robustml.errors import InputError
from robustml.threats import Threat
from tests.defenses.training.tiny import batch, smooth

THREATS = {"linf": rml.Linf(0.2), "l2": rml.L2(0.4), "l1": rml.L1(0.8)}
TABULAR = {"immutable": [0], "integer": [1], "one_hot": [[2, 3]], "bounds": (0.0, 1.0)}


def teacher() -> rml.Classifier:
    return smooth(5)


AGAINST: dict[str, Callable[[Threat], Objective]] = {
    "pgd": lambda threat: PGD(threat, steps=2, clean=0.3),
    "trades": lambda threat: TRADES(threat, steps=2),
    "mart": lambda threat: MART(threat, steps=2),
    "fast": Fast,
    "free": lambda threat: Free(threat, replays=2),
    "adversarial-distillation": lambda threat: AdversarialDistillation(threat, steps=2, teacher=teacher()),
    "awp": lambda threat: AWP(TRADES(threat, steps=2)),
    "awp of free": lambda threat: AWP(Free(threat, replays=2)),
    "awp of several": lambda threat: AWP(Several((PGD(threat, steps=2), TRADES(rml.Linf(0.1), steps=2)))),
    "several": lambda threat: Several((PGD(threat, steps=2), PGD(rml.Linf(0.1), steps=2))),
    "several, average": lambda threat: Several((MART(threat, steps=2), Fast(rml.Linf(0.1))), mode="average"),
}
ALONE: dict[str, Callable[[], Objective]] = {
    "standard": Standard,
    "tempered": lambda: Tempered(3.0),
    "distillation": lambda: Distillation(teacher(), 3.0),
    "noisy": lambda: Noisy(0.2),
}
OBJECTIVES: dict[str, Objective] = {name: make() for name, make in ALONE.items()} | {
    f"{name} {norm}": make(threat) for name, make in AGAINST.items() for norm, threat in THREATS.items()
}


def exported(base: type) -> dict[str, type]:
    found = (getattr(training, name) for name in training.__all__)
    return {
        kind.name: kind
        for kind in found
        if isinstance(kind, type) and issubclass(kind, base) and hasattr(kind, "name")
    }


TERMS: dict[str, tuple[Term, ...]] = {"no term": ()} | {
    name: (kind(weight=0.3),) for name, kind in exported(Term).items()
}
TERMS["all terms"] = tuple(term for terms in TERMS.values() for term in terms)


def test_no_objective_is_missing() -> None:
    assert {objective.name for objective in OBJECTIVES.values()} == set(exported(Objective))


def fresh(made: Batch) -> Batch:
    """The same samples with streams at their beginning, so that random numbers are the same again."""
    return Batch(made.x, made.y, made.ids, batch(len(made)).streams, made.progress, made.memory)


def slope_and_difference(model: rml.Classifier, value: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """The derivative of a value along a random direction in the weights: by gradient, and by difference."""
    weights = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
    gradients = torch.autograd.grad(value(), weights, materialize_grads=True)
    slope = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
    step, found = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, way in zip(weights, ways, strict=True):
                weight.add_(way, alpha=sign * step)
        found.append(value().item())
    return slope, (found[0] - found[1]) / (2 * step)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_loss(name: str, term: str) -> None:
    model, made, terms = smooth(2), batch(), TERMS[term]
    objective = OBJECTIVES[name].within(model.inputs)
    z = objective.craft(model.eval(), made)
    model.train()

    def value() -> torch.Tensor:
        again = fresh(made)
        found = total(objective, terms, Answers(model), again, z)
        assert found.shape == (len(made),)
        penalties = [(each.weight, each.penalty(model.module)) for each in terms]
        return found.sum() + sum(weight * part for weight, part in penalties if part is not None)

    with objective.perturbed(model, made, z):
        slope, difference = slope_and_difference(model, value)
    assert np.isfinite(slope)
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_made(name: str, term: str) -> None:
    model = smooth(2, **TABULAR)
    before = [p.detach().clone() for p in model.parameters()]
    hardened = harden(
        model,
        (tabular(6), np.arange(6) % 3),
        objective=OBJECTIVES[name],
        terms=TERMS[term],
        validation=(tabular(4), np.arange(4) % 3),
        epochs=1,
        batch_size=6,
    )
    (epoch,) = hardened.history
    assert np.isfinite(epoch.loss)
    assert 0 <= epoch.accuracy <= 1
    assert (epoch.robust is None) == (name in ALONE)
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", AGAINST)
def test_a_step_is_made_in_mixed_precision(name: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    model = rml.Classifier(net, inputs=rml.InputSpec(shape=(5,)), classes=3)
    data = (batch(24).x.float().numpy(), np.arange(24) % 3)
    objective = AGAINST[name](rml.Linf(0.2))
    if isinstance(objective, AdversarialDistillation):
        objective = dataclasses.replace(objective, teacher=copy.deepcopy(model))
    hardened = harden(model, data, objective=objective, epochs=2, precision="bfloat16")
    assert all(np.isfinite(epoch.loss) for epoch in hardened.history)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())


def tabular(n: int) -> np.ndarray:
    """A number that stays, a whole number, a group of two, a number."""
    rng = np.random.default_rng(0)
    hot = np.eye(2)[rng.integers(2, size=n)]
    return np.column_stack([rng.random(n), rng.integers(2, size=n), hot, rng.random(n)])


def assert_valid(z: torch.Tensor, x: torch.Tensor) -> None:
    assert torch.equal(z[:, 0], x[:, 0])
    assert torch.equal(z[:, 1:4], z[:, 1:4].round())
    assert torch.equal(z[:, 2:4].sum(1), torch.ones(len(z), dtype=torch.float64))
    assert ((z >= 0) & (z <= 1)).all()


@pytest.mark.parametrize("threat", [rml.Linf(1.0), rml.L2(1.5), rml.L1(2.2)], ids=lambda t: t.norm)
@pytest.mark.parametrize("name", AGAINST)
def test_views_are_valid_rows_of_a_table_within_the_budget(name: str, threat: Threat) -> None:
    model, x = smooth(2, **TABULAR), torch.from_numpy(tabular(40))
    objective = AGAINST[name](threat).within(model.inputs)
    made = batch(40, x=x)
    ball = threat.within(model.inputs).around(x)
    moved = torch.zeros(5, dtype=torch.bool)
    for _ in range(objective.replays):
        z = objective.craft(model.eval(), fresh(made))
        for view in z.split(40):
            assert_valid(view, x)
            assert ball.contains(view).all()
            moved |= (view != x).any(0)
        if objective.follows:
            point = z.clone().requires_grad_()
            losses = objective.losses(Answers(model), made, point)
            (gradient,) = torch.autograd.grad(losses.sum(), point)
            objective.absorb(made, gradient)
    if objective.follows:
        z = objective.craft(model.eval(), fresh(made))
        assert_valid(z, x)
    assert moved.any()
    # Whole numbers and groups can be changed within these budgets, and some are.
    if name not in {"free", "awp of free"}:
        assert moved[1:4].any()


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize(
    "name", sorted(set(AGAINST) - {"adversarial-distillation"})
)  # its teacher takes rows
def test_views_are_within_the_budget_on_images(name: str, norm: str) -> None:
    model, threat = smooth(2, (1, 3, 3)), THREATS[norm]
    objective = AGAINST[name](threat).within(model.inputs)
    made = batch(6, (1, 3, 3))
    z = objective.craft(model.eval(), made)
    balls = [each.within(model.inputs).around(made.x) for each in objective.threats]
    for view in z.split(6):
        assert torch.stack([ball.contains(view) for ball in balls]).any(0).all()
    assert not z.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", AGAINST)
def test_there_is_no_training_against_l0(name: str) -> None:
    with pytest.raises(InputError, match="threat is L0, which has no gradient steps to train with"):
        AGAINST[name](rml.L0(3))


@pytest.mark.parametrize("name", AGAINST)
def test_a_budget_may_grow_where_values_have_levels(name: str) -> None:
    model = smooth(2, levels=256)
    threat = rml.Linf(8 / 255)
    x = (batch(12).x * 255).round() / 255
    objective = AGAINST[name](threat)
    if isinstance(objective, Against):
        objective = dataclasses.replace(objective, ramp=1.0)
    hardened = harden(model, (x.numpy(), np.arange(12) % 3), objective=objective, validation=None, epochs=3)
    assert all(np.isfinite(epoch.loss) for epoch in hardened.history)


@pytest.mark.parametrize("name", ["pgd linf", "trades l2", "awp l1", "several linf", "free linf"])
def test_a_killed_run_with_an_objective_that_remembers_resumes_to_the_last_bit(tmp_path, name: str) -> None:
    x, y = batch(60).x.numpy(), np.arange(60) % 3
    settings = {"objective": OBJECTIVES[name], "epochs": 3, "batch_size": 16, "accumulate": 2}
    whole = harden(smooth(1), (x, y), out=tmp_path / "whole", **settings)

    class Killed(BaseException):
        """Stands for the signal."""

    model = smooth(1)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += (tmp_path / "part" / "checkpoint.safetensors").exists()
        if calls == 9:
            raise Killed

    hook = model.module.register_forward_hook(count)
    with pytest.raises(Killed):
        harden(model, (x, y), out=tmp_path / "part", **settings)
    hook.remove()
    again = harden(smooth(1), (x, y), out=tmp_path / "part", resume=True, **settings)
    assert again.model.fingerprint() == whole.model.fingerprint()
