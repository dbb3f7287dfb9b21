"""TRADES: the loss, the search that goes up the divergence, and what its weight trades."""

from __future__ import annotations

import pytest
import torch

import robustml as rml
from robustml.defenses.training import TRADES, Answers
from robustml.errors import InputError
from tests.defenses.training.tiny import assert_derivative, batch, losses, smooth

THREAT = rml.Linf(0.1)


def softmax(rows: torch.Tensor) -> torch.Tensor:
    powers = rows.exp()
    return powers / powers.sum(1, keepdim=True)


def apart(model, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    clean = softmax(model(x))
    return (clean * (clean / softmax(model(z))).log()).sum(1)


def test_the_loss_is_that_of_equation_5() -> None:
    model, made = smooth(1), batch()
    objective = TRADES(THREAT, steps=3, beta=4.0).within(model.inputs)
    z = objective.craft(model.eval(), batch())
    chosen = softmax(model(made.x))[torch.arange(7), made.y]
    wanted = -chosen.log() + 4 * apart(model, made.x, z)
    assert torch.allclose(losses(model, objective, made), wanted, atol=1e-12)


def test_the_gradient_goes_through_both_answers() -> None:
    model, made = smooth(2), batch()
    objective = TRADES(THREAT, steps=2).within(model.inputs)
    z = objective.craft(model, made)
    assert_derivative(model, lambda: objective.losses(Answers(model), made, z).sum())


def test_labels_have_no_part_in_the_search() -> None:
    model, made, other = smooth(1), batch(), batch()
    other.y = (other.y + 1) % 3
    objective = TRADES(THREAT, steps=5).within(model.inputs)
    assert torch.equal(objective.craft(model, made), objective.craft(model, other))


def test_on_a_linear_model_the_search_ends_at_the_corner_on_its_side() -> None:
    """Of two classes, the divergence rises with how far the gap of the logits moves, either way."""
    torch.manual_seed(0)
    net = torch.nn.Linear(5, 2).double()
    inputs = rml.InputSpec(shape=(5,), bounds=(-1.0, 2.0), dtype="float64")
    model, made = rml.Classifier(net, inputs=inputs, classes=2), batch(12)
    objective = TRADES(THREAT, steps=10).within(inputs)
    made.y = made.y % 2
    start = objective.ball(made).random(batch(12).streams)
    gap = (net.weight[1] - net.weight[0]).detach()
    side = ((start - made.x) @ gap).sign()
    assert set(side.tolist()) == {-1.0, 1.0}
    corner = made.x + 0.1 * side[:, None] * gap.sign()
    assert torch.allclose(objective.craft(model, made), corner, atol=1e-9)


def test_a_start_that_rounding_returns_to_the_input_is_left() -> None:
    """Where features are whole, the start is often the input itself, and there the divergence is flat."""
    model = smooth(1, integer=range(5), bounds=(0.0, 10.0))
    x = (batch(30).x * 10).round()
    threat = rml.L1(1.2).within(model.inputs)
    start = threat.around(x).snap(threat.around(x).random(batch(30).streams))
    at_home = (start == x).all(1)
    assert at_home.sum() > 15
    z = TRADES(threat, steps=10).craft(model, batch(30, x=x))
    assert (z[at_home] != x[at_home]).any(1).double().mean() > 0.9


def test_a_weight_of_zero_is_plain_training() -> None:
    model, made = smooth(1), batch()
    found = losses(model, TRADES(THREAT, steps=1, beta=0.0).within(model.inputs), made)
    assert torch.allclose(found, torch.nn.functional.cross_entropy(model(made.x), made.y, reduction="none"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": -1.0}, "beta=-1.0 is not a finite number of at least 0"),
        ({"beta": "6"}, "beta='6' is not a finite number of at least 0"),
        ({"steps": 1.5}, "steps=1.5 is not a whole number of at least 0"),
        ({"step": 0.0}, "step=0.0 is not a finite number above 0"),
        ({"ramp": 2.0}, "ramp=2.0 is not a share from 0 to 1"),
    ],
)
def test_mistakes_are_named(options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TRADES(THREAT, **options)


def test_a_threat_model_is_wanted() -> None:
    with pytest.raises(InputError, match="threat='linf' is not a threat model"):
        TRADES("linf")
