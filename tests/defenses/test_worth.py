"""Every guard on three networks: who knows of it breaks no less than who does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustml as rml
from robustml.guards import all_guards
from robustml.targets import load_target
from robustml.targets.guarding import made

OPTIONS = {
    "bit-depth": {"bits": 2},
    "decimals": {"places": 1},
    "jpeg": {"quality": 50},
    "non-local-means": {"search": 5, "patch": 3},
    "smoothing": {"sigma": 0.1},
    "squeeze-detector": {"fpr": 0.1},
    "density": {"fpr": 0.1},
    "validate": {"fpr": 0.1},
}


# Other tests register guards of their own.
OURS = [name for name, kind in all_guards().items() if kind.__module__.startswith("robustml.")]


def networks() -> list[nn.Module]:
    """Three networks of different kinds, trained for a moment."""
    target = load_target("digits")
    x, y = torch.from_numpy(target.train.x), torch.from_numpy(target.train.y)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = [
            nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)),
            nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 10)),
            nn.Sequential(nn.Conv2d(1, 12, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(108, 10)),
        ][seed]
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for rows in torch.randperm(len(x)).repeat(6).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        found.append(net.eval())
    return found


@pytest.fixture(scope="module")
def trained() -> list[nn.Module]:
    return networks()


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_attackers_who_know_of_a_guard_break_no_less(trained, name) -> None:
    target = load_target("digits")
    x, y = torch.from_numpy(target.data.x), torch.from_numpy(target.data.y)
    for net in trained:
        model = rml.Classifier(net, inputs=target.model.inputs, classes=10)
        guard = made(name, OPTIONS.get(name, {}), model=model, x=x[60:], y=y[60:])
        report = rml.stress_test(
            rml.Guarded(model, [guard]),
            (x[:60], y[:60]),
            threats=["linf:0.1"],
            suite="quick",
            eot=3,
            draws=10,
        )
        (threat,) = report.threats
        assert threat.unaware is not None
        aware, unaware = threat.robust_accuracy.upper.count, threat.unaware.robust_accuracy.count
        assert aware <= unaware <= report.clean.accuracy.count
        # What was found without the guard counts, but it is not all: something was tried against the guard.
        assert any(a.attempted and a.id != "oblivious" for a in threat.attacks)
