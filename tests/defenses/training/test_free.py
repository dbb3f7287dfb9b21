"""Free adversarial training: Algorithm 1 by hand, and what carries over to which samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import robustml as rml
from robustml.defenses.training import Answers, Batch, Free, harden
from robustml.errors import InputError
from tests.defenses.training.test_fast import slope
from tests.defenses.training.tiny import assert_derivative, batch, smooth

THREAT = rml.Linf(0.1)


def replayed(objective: Free, model, made: Batch) -> list[torch.Tensor]:
    """The views of all replays of a batch, with the gradients that a model gives."""
    views = []
    for _ in range(objective.replays):
        z = objective.craft(model, made)
        views.append(z)
        point = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.losses(Answers(model), made, point).sum(), point)
        objective.absorb(made, gradient)
    return views


def part(x: torch.Tensor, first: int, memory: dict) -> Batch:
    made = batch(len(x), x=x)
    return Batch(x, made.y, made.ids + first, made.streams, 0.0, memory)


def test_training_is_that_of_algorithm_1() -> None:
    """Three batches, three replays, plain gradient descent: all of it written out."""
    x, y = batch(12).x, torch.arange(12) % 3
    trained, by_hand = (smooth(1, bounds=(-1.0, 2.0)) for _ in range(2))
    loader = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    harden(
        trained,
        loader,
        objective=Free(THREAT, replays=3),
        epochs=1,
        validation=None,
        schedule="constant",
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    delta = torch.zeros(4, 5, dtype=torch.float64)
    for inputs, labels in loader:
        for _ in range(3):
            z = (inputs + delta).requires_grad_()
            loss = torch.nn.functional.cross_entropy(by_hand(z), labels)
            weights = list(by_hand.parameters())
            *gradients, ascent = torch.autograd.grad(loss, [*weights, z])
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= 0.5 * gradient
                delta = (delta + 0.1 * ascent.sign()).clamp(-0.1, 0.1)
    for one, other in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_the_first_view_is_the_input_and_the_next_one_up_the_gradient() -> None:
    model, made = smooth(1), batch()
    first, second = replayed(Free(THREAT, replays=2).within(model.inputs), model, made)
    assert torch.equal(first, made.x)
    wanted = (made.x + 0.1 * slope(model, made.x, made.y).sign()).clamp(0, 1)
    assert torch.allclose(second, wanted, atol=1e-12)


def test_parts_of_a_batch_carry_over_to_their_places() -> None:
    model, x = smooth(1), batch(16).x
    objective = Free(THREAT, replays=2).within(model.inputs)
    memory: dict = {}
    parts = [part(x[i : i + 4], i, memory) for i in (0, 4)]
    whole = part(x[:8], 0, {})
    left = {}
    for _ in range(2):
        for made in (*parts, whole):
            z = objective.craft(model, made)
            gradient = slope(model, z, made.y)
            objective.absorb(made, gradient)
            left[id(made)] = objective.ball(made).advance(z, gradient.sign(), 0.1) - made.x
    for made, places in zip(parts, (slice(0, 4), slice(4, 8)), strict=True):
        after = part(x[8:][places], 8 + places.start, memory)
        wanted = (after.x + left[id(made)]).clamp(0, 1)
        assert torch.allclose(objective.craft(model, after), wanted, atol=1e-12)


@pytest.mark.parametrize("size", [2, 9])
def test_a_batch_of_another_size_takes_what_fits(size: int) -> None:
    model, x = smooth(1), batch(20).x
    objective = Free(THREAT, replays=1).within(model.inputs)
    memory: dict = {}
    made = part(x[:5], 0, memory)
    replayed(objective, model, made)
    z = objective.craft(model, part(x[5 : 5 + size], 5, memory))
    moved = (z != x[5 : 5 + size]).any(1)
    assert moved[:5].all()
    assert not moved[5:].any()


def test_memory_does_not_grow() -> None:
    model, x = smooth(1), batch(60).x
    objective = Free(THREAT, replays=2).within(model.inputs)
    memory: dict = {}
    for i in range(0, 60, 4):
        replayed(objective, model, part(x[i : i + 4], i, memory))
    (kept,) = memory.values()
    assert not kept.at_work
    assert len(kept.carried) == 1


def test_the_gradient_is_that_of_the_loss() -> None:
    model, made = smooth(2), batch()
    objective = Free(THREAT).within(model.inputs)
    z = objective.craft(model, made)
    assert_derivative(model, lambda: objective.losses(Answers(model), made, z).sum())


def test_steps_count_replays() -> None:
    calls = []
    model = smooth(1)
    model.module.register_forward_hook(lambda *_: calls.append(model.training))
    data = (batch(12).x.numpy(), np.arange(12) % 3)
    harden(model, data, objective=Free(THREAT, replays=4), validation=None, epochs=2, batch_size=6)
    assert calls == [True] * 2 * 2 * 4  # one pass per step, and none to craft


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replays": 0}, "replays=0 is not a whole number of at least 1"),
        ({"replays": 2.0}, "replays=2.0 is not a whole number of at least 1"),
        ({"step": -1.0}, "step=-1.0 is not a finite number above 0"),
    ],
)
def test_mistakes_are_named(options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Free(THREAT, **options)
