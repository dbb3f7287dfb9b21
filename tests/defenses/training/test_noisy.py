"""Training under noise: which noise it is, and what it buys a smoothed model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import robustml as rml
from robustml.defenses.guards.smoothing import Smoothing
from robustml.defenses.training import Noisy, harden
from robustml.errors import InputError
from tests.defenses.training.tiny import batch, losses, smooth


def test_it_is_the_cross_entropy_under_noise_of_its_own() -> None:
    model, made = smooth(), batch(400)
    z = Noisy(0.25).craft(model, made)
    noise = (z - made.x) / 0.25
    assert abs(noise.mean().item()) < 4 / np.sqrt(noise.numel())
    assert abs(noise.std().item() - 1) < 4 / np.sqrt(2 * noise.numel())
    assert torch.equal(Noisy(0.25).craft(model, batch(400)), z)  # the same streams, the same noise
    wanted = -torch.log_softmax(model(z), 1)[torch.arange(400), made.y]
    assert torch.allclose(losses(model, Noisy(0.25), batch(400)), wanted, atol=1e-12)


def test_noise_is_in_the_unit_that_the_guard_smooths_in() -> None:
    scale = (1.0, 2.0, 0.5, 3.0, 1.0)
    model, plain = smooth(scale=scale), smooth()
    found, bare = (Noisy(0.5).craft(m, batch()) - batch().x for m in (model, plain))
    assert torch.allclose(found, bare * torch.tensor(scale))
    guarded = rml.Guarded(model, [Smoothing(0.5)])
    torch.manual_seed(0)
    drawn = torch.stack([guarded.guards[0](batch().x) - batch().x for _ in range(2000)])
    assert torch.allclose(drawn.std((0, 1)), 0.5 * torch.tensor(scale).double(), rtol=0.05)


def test_a_model_trained_under_noise_is_surer_of_the_truth_under_noise() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = np.clip(rng.random((3, 5))[y] * 0.6 + 0.2 + rng.normal(0, 0.02, (300, 5)), 0, 1)
    settings = {"epochs": 30, "batch_size": 32, "learning_rate": 0.02, "validation": None}
    found = []
    for objective in (Noisy(0.3), None):
        model = harden(smooth(), (x, y), objective=objective, **settings).model
        with torch.no_grad():
            found.append(losses(model, Noisy(0.3), batch(300, seed=9, x=torch.from_numpy(x))).mean().item())
    assert found[0] < 0.8 * found[1]


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), True, "a"])
def test_mistakes_are_named(sigma) -> None:
    with pytest.raises(InputError, match="is not a finite number above 0"):
        Noisy(sigma)
