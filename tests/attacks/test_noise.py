"""Random points of the ball."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustml.inputs import InputSpec
from robustml.threats import L0, L1, L2, Linf

SPEC = InputSpec(shape=(16,))


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.5), L1(1.0), L0(3)], ids=lambda t: t.norm)
def test_points_lie_in_the_ball(run, threat) -> None:
    x = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(20, dtype=torch.int64)
    threat = threat.within(SPEC)
    z = run("noise", lambda v: torch.tensor([[1.0, 0.0]]).repeat(len(v), 1), x, y, threat, draws=3)
    assert threat.around(x).contains(z).all()
    assert (z != x).flatten(1).any(1).all()


def test_each_draw_is_another_chance(run) -> None:
    """A draw breaks a sample with probability 1/2, so 12 of them break all but one in 4,096."""
    x, y = torch.full((256, 16), 0.5), torch.zeros(256, dtype=torch.int64)

    def model(z: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(z)), z[:, 0] - 0.5], dim=1)

    broken = {
        draws: int(
            (model(run("noise", model, x, y, Linf(0.1).within(SPEC), draws=draws)).argmax(1) == 1).sum()
        )
        for draws in (1, 12)
    }
    assert 96 <= broken[1] <= 160
    assert broken[12] >= 254


def test_broken_samples_are_not_queried_again(run) -> None:
    seen = []

    def model(z: Tensor) -> Tensor:
        seen.append(len(z))
        return torch.tensor([[0.0, 1.0]]).repeat(len(z), 1)

    x, y = torch.full((8, 16), 0.5), torch.zeros(8, dtype=torch.int64)
    run("noise", model, x, y, Linf(0.1).within(SPEC), draws=50)
    assert seen == [8]
