"""Attacks that see labels alone: what they ask about is valid, and how often a label is kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from robustml.attacks.membership import kept_labels, nearby
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.sampling import Streams


def streams(n: int) -> Streams:
    return Streams.derive(0, "test", torch.arange(n))


def test_points_nearby_are_valid() -> None:
    inputs = InputSpec(
        shape=(5,),
        bounds=((0, 0, 0, 0, 0), (10, 1, 1, 4, 1)),
        immutable=(4,),
        integer=(3,),
        one_hot=((1, 2),),
    )
    x = torch.tensor([[3.0, 1, 0, 2, 0.5], [9, 0, 1, 0, 0.1]])
    points = list(itertools.islice(nearby(x, inputs, streams(2)), 30))
    assert (points[0] == x).all()
    moved = torch.stack(points[1:])
    assert (moved[..., 4] == x[:, 4]).all()
    assert (moved[..., 3] == moved[..., 3].round()).all() and (moved[..., 3] >= 0).all()
    assert (moved[..., 1] + moved[..., 2] == 1).all()
    assert ((moved[..., 0] >= 0) & (moved[..., 0] <= 10)).all()
    assert moved[..., 0].std() > 0.1


def test_images_are_shifted_each_way() -> None:
    inputs = InputSpec(shape=(1, 3, 3))
    x = torch.arange(9.0).view(1, 1, 3, 3) / 9
    points = list(itertools.islice(nearby(x, inputs, streams(1)), 9))
    right = points[1][0, 0] * 9
    assert right.round().tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]
    assert len({tuple(p.flatten().tolist()) for p in points}) == 9


def test_how_often_a_label_is_kept() -> None:
    inputs = InputSpec(shape=(2,))
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net.bias.copy_(torch.tensor([-0.5, 0.5]))
    x = torch.tensor([[0.95, 0.5], [0.55, 0.5], [0.05, 0.5]])
    y = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        found = kept_labels(net, x, y, inputs, streams(3), queries=101)
    far, near, wrong = found.tolist()
    # Noise of at most 0.4 cannot send the first across 0.5; the second it does send across.
    assert far == 101
    assert 45 < near < 85
    assert wrong == 0


def test_one_query_is_the_gap_attack_and_none_is_refused() -> None:
    x, y = torch.rand(20, 3), torch.randint(0, 2, (20,))
    net = nn.Linear(3, 2)
    with torch.no_grad():
        found = kept_labels(net, x, y, InputSpec(shape=(3,)), streams(20), queries=1)
        assert (found.bool() == (net(x).argmax(1) == y)).all()
    with pytest.raises(InputError, match="queries=0"):
        kept_labels(net, x, y, InputSpec(shape=(3,)), streams(20), queries=0)


def test_a_sample_keeps_its_noise_in_any_company() -> None:
    inputs = InputSpec(shape=(4,))
    x = torch.rand(6, 4)
    full = list(itertools.islice(nearby(x, inputs, streams(6)), 6))
    part = list(itertools.islice(nearby(x[2:3], inputs, streams(6).select(torch.tensor([2]))), 6))
    assert all((a[2:3] == b).all() for a, b in zip(full, part, strict=True))
