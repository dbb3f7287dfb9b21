"""MART: the loss, what weighs the divergence, and that it stays exact where the model is sure."""

from __future__ import annotations

import pytest
import torch

import robustml as rml
from robustml.defenses.training import MART, PGD, Answers
from robustml.defenses.training.mart import boosted
from robustml.errors import InputError
from tests.defenses.training.tiny import assert_derivative, batch, losses, smooth

THREAT = rml.Linf(0.1)


def softmax(rows: torch.Tensor) -> torch.Tensor:
    powers = rows.exp()
    return powers / powers.sum(1, keepdim=True)


def test_the_loss_is_that_of_equation_11() -> None:
    model, made = smooth(1), batch()
    objective = MART(THREAT, steps=3, beta=2.5).within(model.inputs)
    z = objective.craft(model.eval(), batch())
    clean, nearby = softmax(model(made.x)), softmax(model(z))
    wanted = []
    for p, q, y in zip(clean, nearby, made.y.tolist(), strict=True):
        other = max(q[k].item() for k in range(3) if k != y)
        apart = (p * (p / q).log()).sum()
        wanted.append(-q[y].log() - torch.tensor(1 - other).log() + 2.5 * apart * (1 - p[y]))
    assert torch.allclose(losses(model, objective, made), torch.stack(wanted), atol=1e-12)


def test_the_gradient_goes_through_all_of_it() -> None:
    model, made = smooth(2), batch()
    objective = MART(THREAT, steps=2).within(model.inputs)
    z = objective.craft(model, made)
    assert_derivative(model, lambda: objective.losses(Answers(model), made, z).sum())


def test_the_view_is_that_of_pgd() -> None:
    model = smooth(1)
    views = [kind(THREAT, steps=4).within(model.inputs).craft(model, batch()) for kind in (MART, PGD)]
    assert torch.equal(*views)


def test_two_classes_count_the_label_twice() -> None:
    logits, y = torch.tensor([[0.3, -1.0], [2.0, 4.0]]), torch.tensor([0, 0])
    assert torch.allclose(boosted(logits, y), -2 * logits.log_softmax(1)[:, 0])


def test_a_sure_model_gives_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[200.0, 0.0, -50.0], [0.0, 200.0, 3.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    found = boosted(logits, y)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    # Sure and right: both parts vanish. Sure and wrong: each part is the margin, to the rest of the classes.
    rest = torch.tensor([0.0, 3.0]).logsumexp(0)
    assert torch.allclose(found, torch.stack([torch.tensor(0.0), 200 + 200 - rest]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", [-1, float("inf"), True, None])
def test_mistakes_are_named(beta) -> None:
    with pytest.raises(InputError, match=r"beta=.* is not a finite number of at least 0"):
        MART(THREAT, beta=beta)
