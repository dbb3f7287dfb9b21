"""Mislabelled canaries: what a trained model's answers show of whether they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustml.auditing.canaries import audit_by_many_runs, audit_with_canaries
from robustml.defenses.privacy import DifferentialPrivacy
from robustml.errors import InputError

Array = np.ndarray[Any, Any]

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist.npz"


def _net(width: int = 64, features: int = 20, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))


def _data(n: int) -> tuple[Array, Array]:
    """Clusters that are easy to tell apart, and roomy enough for each sample to be learned by heart."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, n)
    x = 0.6 * rng.random((n, 20)) + 0.4 * np.eye(4)[y].repeat(5, axis=1)
    return x.astype("float32"), y


def test_a_network_that_learns_by_heart_is_found_out() -> None:
    found = audit_with_canaries(
        _net(256), _data(800), canaries=200, epochs=60, batch_size=50, learning_rate=1e-2
    )
    assert found.accounted is None
    assert found.learned > 0.1
    assert found.unseen < 0.05
    assert found.epsilon.epsilon is not None and found.gaussian.epsilon is not None
    assert found.epsilon.epsilon > 1.5
    assert found.gaussian.epsilon > found.epsilon.epsilon


def test_a_network_that_learns_nothing_shows_nothing() -> None:
    net = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = audit_with_canaries(net, _data(300), canaries=200, epochs=1, learning_rate=1e-6)
    assert found.epsilon.epsilon is None
    assert "not resolvable with 200 canaries" in found.epsilon.reason
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_private_training_shows_less_than_was_accounted() -> None:
    pytest.importorskip("opacus")
    privacy = DifferentialPrivacy(noise_multiplier=2.0, delta=1e-4, mode="ghost", seed=0)
    found = audit_with_canaries(_net(), _data(400), canaries=300, privacy=privacy, epochs=5)
    assert found.accounted is not None and found.accounted.epsilon is not None
    assert found.epsilon.delta == 1e-4
    assert (found.epsilon.epsilon or 0.0) <= found.accounted.epsilon < 20


def test_many_runs_tell_one_wrong_label() -> None:
    found = audit_by_many_runs(_net(), _data(40), runs=40, epochs=30, batch_size=20, learning_rate=1e-2)
    most = 1 - 0.025 ** (1 / 10)
    assert found.cap == pytest.approx(np.log((1 - most - 1e-5) / most))
    assert found.epsilon is not None
    assert 0.3 < found.epsilon <= found.cap
    assert found.correct >= found.guesses - 2 == 18
    assert found.method == "many runs"
    blind = audit_by_many_runs(_net(), _data(40), runs=16, epochs=1, learning_rate=1e-6)
    assert blind.epsilon is None


def test_refuses_what_it_cannot_plant() -> None:
    with pytest.raises(InputError, match="runs=8"):
        audit_by_many_runs(_net(), _data(40), runs=8)
    with pytest.raises(InputError, match="canaries=50"):
        audit_with_canaries(_net(), _data(50), canaries=50)
    with pytest.raises(InputError, match="resume is not for an audit"):
        audit_with_canaries(_net(), _data(50), canaries=10, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_file(), reason="needs the MNIST file beside the repository")
def test_training_without_noise_on_mnist() -> None:
    with np.load(DATA) as data:
        x, y = data["x_train"][:4000, None].astype("float32") / 255, data["y_train"][:4000].astype(np.int64)
    net = _net(256, 784, 10)
    found = audit_with_canaries(net, (x, y), canaries=1000, epochs=40, batch_size=128, learning_rate=2e-3)
    assert found.learned > 0.6
    assert found.unseen < 0.05
    # 2.82 in an audit of the same kind elsewhere: 313 of 320 guesses right.
    assert found.epsilon.epsilon is not None
    assert found.epsilon.epsilon >= 2.5
