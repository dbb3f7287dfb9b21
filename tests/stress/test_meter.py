"""What an attack costs, and what it found: counted and kept by the meter, not by the attack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustml.attacks.evasion.apgd import apgd
from robustml.inputs import InputSpec
from robustml.registry import Logits
from robustml.sampling import Streams
from robustml.stress.meter import BudgetSpent, Meter
from robustml.threats import Ball, Linf, Threat
from tests.stress.toy import FEATURES, Counting, labels_of, linear, points

SPEC = InputSpec(shape=(FEATURES,), dtype="float64")


def setting(n: int = 6, eps: float = 0.1) -> tuple[Tensor, Tensor, Threat, Ball]:
    x = points(n)
    threat = Linf(eps).within(SPEC)
    batch = torch.from_numpy(x)
    return batch, torch.from_numpy(labels_of(linear(), x)), threat, threat.around(batch)


def streams(n: int) -> Streams:
    return Streams.derive(0, "test", torch.arange(n))


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_passes_are_those_that_the_model_sees(steps: int) -> None:
    x, y, threat, ball = setting()
    model = Counting(linear().requires_grad_(False))
    backward = 0

    def count(gradient: Tensor) -> None:
        nonlocal backward
        backward += len(gradient)

    class Hooked:
        def __call__(self, z: Tensor, /) -> Tensor:
            logits = model(z)
            if logits.requires_grad:
                logits.register_hook(count)
            return logits

    told: list[int] = []
    meter = Meter(Hooked(), ball, y, on_pass=told.append)
    apgd(meter, x, y, threat=threat, streams=streams(len(x)), steps=steps)
    assert meter.forward == model.samples == sum(told)
    assert meter.backward == backward > 0


def test_a_gradient_taken_twice_counts_twice() -> None:
    x, y, _, ball = setting()
    meter = Meter(linear().requires_grad_(False), ball, y)
    point = x.clone().requires_grad_()
    logits = meter(point)
    for column in range(2):
        torch.autograd.grad(logits[:, column].sum(), point, retain_graph=True)
    assert (meter.forward, meter.backward) == (6, 12)


def flipped(x: Tensor, y: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """Points of the ball that the linear model gets wrong, and which of them do."""
    layer = linear()
    z = apgd(layer, x, y, threat=ball.threat, streams=streams(len(x)), loss="margin", steps=20)
    with torch.no_grad():
        return z, layer(z).argmax(1) != y


def test_first_adversarial_point_is_kept() -> None:
    x, y, _, ball = setting(eps=0.4)
    z, wrong = flipped(x, y, ball)
    assert wrong.any()
    meter = Meter(linear(), ball, y)
    meter(x)
    assert not meter.hit.any()
    meter(z)
    meter(ball.project(z * 0.5 + 0.5 * x + 1e-9))
    assert torch.equal(meter.hit, wrong)
    assert torch.equal(meter.point[wrong], z[wrong])
    assert torch.equal(meter.point[~wrong], x[~wrong])


def test_points_are_credited_to_their_rows_after_compaction() -> None:
    x, y, _, ball = setting(eps=0.4)
    z, wrong = flipped(x, y, ball)
    rows = torch.tensor([4, 1])
    meter = Meter(linear(), ball, y)
    meter.focus(rows)
    meter(z[rows])
    expected = torch.zeros(6, dtype=torch.bool)
    expected[rows] = wrong[rows]
    assert wrong[rows].any()
    assert torch.equal(meter.hit, expected)
    assert torch.equal(meter.point[rows][wrong[rows]], z[rows][wrong[rows]])
    meter.focus(torch.arange(6))
    meter(z)
    assert torch.equal(meter.hit, wrong)


def test_a_batch_that_cannot_be_matched_is_only_counted() -> None:
    x, y, _, ball = setting(eps=0.4)
    z, _ = flipped(x, y, ball)
    meter = Meter(linear(), ball, y)
    meter(z[:3])
    assert meter.forward == 3
    assert not meter.hit.any()


def test_points_outside_the_ball_or_the_range_are_ignored() -> None:
    x, y, _, ball = setting(eps=0.05)
    layer = linear()
    away = 1 - x  # far outside of the ball
    low = x - 10  # outside of the range, too
    with torch.no_grad():
        assert (layer(away).argmax(1) != y).any()
    meter = Meter(layer, ball, y)
    for z in (away, low, torch.full_like(x, torch.nan)):
        meter(z)
    assert not meter.hit.any()
    assert meter.forward == 18


def test_pass_budget_stops_inside_and_keeps_what_was_found() -> None:
    x, y, threat, ball = setting(n=20, eps=0.15)
    full = Meter(linear().requires_grad_(False), ball, y)
    apgd(full, x, y, threat=threat, streams=streams(20), loss="margin", steps=30)
    meter = Meter(linear().requires_grad_(False), ball, y, max_passes=240)
    with pytest.raises(BudgetSpent) as spent:
        apgd(meter, x, y, threat=threat, streams=streams(20), loss="margin", steps=30)
    assert spent.value.kind == "passes"
    # One more batch may have begun below the limit; nothing begins above it.
    assert 240 <= meter.forward + 2 * meter.backward < 240 + 3 * 20
    assert 0 < int(meter.hit.sum()) <= int(full.hit.sum())
    with torch.no_grad():
        wrong = linear()(meter.point).argmax(1) != y
    assert torch.equal(wrong, meter.hit)


def test_deadline_stops_before_the_model_is_asked() -> None:
    x, y, _, ball = setting()
    model = Counting(linear())
    meter = Meter(model, ball, y, deadline=0.0)
    with pytest.raises(BudgetSpent) as spent:
        meter(x)
    assert spent.value.kind == "time"
    assert model.samples == meter.forward == 0


def test_the_meter_is_a_model() -> None:
    x, y, _, ball = setting()
    model: Logits = Meter(linear(), ball, y)
    assert torch.equal(model(x), linear()(x))


@pytest.mark.parametrize("weight", [1, 3])
def test_the_queries_of_each_sample_are_counted_until_it_breaks(weight: int) -> None:
    """Sample k breaks at the query k + 1 after the samples before it have left; the last one never does."""
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    ball = Linf(0.5, InputSpec(shape=(1,))).around(x)

    def model(z: Tensor) -> Tensor:
        return torch.stack([torch.full_like(z[:, 0], 0.2), z[:, 0]], dim=1)

    meter = Meter(model, ball, y, weight=weight)
    for turn in range(3):
        rows = torch.arange(turn, 4)
        meter.focus(rows)
        z = torch.zeros(len(rows), 1)
        z[0] = 0.3
        meter(z)
        meter(z)
    assert meter.matched
    assert meter.needed.tolist() == [weight, 3 * weight, 5 * weight, 0]
    assert meter.asked.tolist() == [2 * weight, 4 * weight, 6 * weight, 6 * weight]
    meter(torch.zeros(3, 1))
    assert not meter.matched
