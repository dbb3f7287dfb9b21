"""Whole numbers and one-hot groups: the valid points of a ball, and how points are snapped to them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from robustml.inputs import InputSpec
from robustml.sampling import Streams
from robustml.threats import L1, THREATS, Linf, Threat


@st.composite
def problems(draw: st.DrawFn) -> tuple[InputSpec, Tensor, Tensor, float]:
    """A spec with features of all kinds, valid inputs, points to snap, and a share of the widest budget."""
    continuous, whole, groups = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 2))
    hot = [draw(st.integers(2, 4)) for _ in range(groups)]
    size = continuous + whole + sum(hot)
    assume(size)
    edges = list(itertools.accumulate([continuous + whole, *hot]))
    high = [1.0] * continuous + [20.0] * whole + [1.0] * sum(hot)
    inputs = InputSpec(
        shape=(size,),
        bounds=(0.0, tuple(high)),
        scale=tuple(draw(st.lists(st.floats(0.5, 3), min_size=size, max_size=size))),
        immutable=tuple(draw(st.lists(st.integers(0, size - 1), max_size=2, unique=True))),
        integer=tuple(range(continuous, continuous + whole)),
        one_hot=tuple(tuple(range(a, b)) for a, b in itertools.pairwise(edges)),
    )
    rng = Streams.derive(draw(st.integers(0, 2**32)), "test", torch.arange(4))
    x = rng.uniform(size) * torch.tensor(high)
    x[:, continuous : continuous + whole] = x[:, continuous : continuous + whole].round()
    for group in inputs.one_hot:
        category = rng.integers(len(group))
        x[:, list(group)] = torch.nn.functional.one_hot(category, len(group)).float()
    share = draw(st.floats(0.01, 1))
    return inputs, x, x + share * inputs.span * rng.normal(size), share


@pytest.mark.parametrize("norm", sorted(THREATS))
@given(problem=problems())
def test_snapped_points_are_valid_and_in_the_ball(
    norm: str, problem: tuple[InputSpec, Tensor, Tensor, float]
) -> None:
    inputs, x, z, share = problem
    widest = THREATS[norm](1).widest(inputs)
    eps = max(1, round(share * widest)) if norm == "l0" else share * widest
    ball = THREATS[norm](eps, inputs).around(x)
    assert ball.contains(x).all()
    for point in (ball.project(z), ball.random(Streams.derive(1, "test", torch.arange(len(x))))):
        snapped = ball.snap(point)
        flat = snapped.flatten(1)
        assert ball.contains(snapped).all()
        whole = flat[:, list(inputs.integer)]
        assert torch.equal(whole, whole.round())
        for group in inputs.one_hot:
            assert (flat[:, list(group)].sum(1) == 1).all()
            assert ((flat[:, list(group)] == 0) | (flat[:, list(group)] == 1)).all()
        assert torch.equal(ball.snap(snapped), snapped)


@pytest.mark.parametrize(
    ("threat", "z", "snapped"),
    [
        (Linf(2), [4.6, 0.4, 0.6, 0.5], [5, 0, 1, 0.5]),  # to the nearest
        (Linf(1.7), [4.6, 0.4, 0.6, 0.5], [4, 0, 1, 0.5]),  # 5 is too far: toward the input
        (L1(1.5), [3.0, 0.4, 0.6, 0.5], [3, 1, 0, 0.5]),  # another category costs 2
        (L1(2), [3.0, 0.4, 0.6, 0.2], [3, 0, 1, 0.2]),
    ],
)
def test_snapping_by_hand(threat: Threat, z: list[float], snapped: list[float]) -> None:
    inputs = InputSpec(shape=(4,), bounds=(0, (9, 1, 1, 1)), integer=(0,), one_hot=((1, 2),))
    x = torch.tensor([[3.0, 1.0, 0.0, 0.2]])
    if threat == L1(1.5):
        x[0, 3] = 0.5
    assert threat.within(inputs).around(x).snap(torch.tensor([z])).tolist() == [pytest.approx(snapped)]


def test_points_between_whole_numbers_or_categories_are_not_contained() -> None:
    inputs = InputSpec(shape=(3,), bounds=(0, (9, 1, 1)), integer=(0,), one_hot=((1, 2),))
    ball = Linf(2, inputs).around(torch.tensor([[3.0, 1.0, 0.0]]).expand(4, 3))
    z = torch.tensor([[4.0, 0.0, 1.0], [4.5, 1.0, 0.0], [3.0, 0.5, 0.5], [3.0, 1.0, 1.0]])
    assert ball.contains(z).tolist() == [True, False, False, False]


@st.composite
def leveled(draw: st.DrawFn) -> tuple[InputSpec, Tensor, Tensor, float]:
    """Inputs with levels, on them or between them, points to snap, and a share of the widest budget."""
    levels = draw(st.sampled_from([2, 3, 16, 256, 65_536]))
    low = draw(st.sampled_from([0.0, -1.0, 0.1, -128.0]))
    high = low + draw(st.sampled_from([1.0, 2.0, 255.0]))
    shape = draw(st.sampled_from([(5,), (2, 3, 2)]))
    size = torch.zeros(shape).numel()
    inputs = InputSpec(
        shape=shape,
        bounds=(low, (high,) * size if draw(st.booleans()) else high),
        dtype="float64" if levels > 256 and abs(low) > 100 else draw(st.sampled_from(["float32", "float64"])),
        scale=draw(st.sampled_from([1.0, 0.5, 3.0])),
        immutable=(1,) if draw(st.booleans()) else (),
        levels=levels,
    )
    rng = Streams.derive(draw(st.integers(0, 2**32)), "test", torch.arange(4))
    unit = rng.uniform(*shape, dtype=torch.float64)
    x = low + (high - low) * unit
    if draw(st.booleans()):
        x = low + (high - low) * (unit * (levels - 1)).round() / (levels - 1)
    x = x.to(inputs.torch_dtype).clamp(low, high)
    share = max(draw(st.floats(0.001, 1)), 1 / (levels - 1))
    return inputs, x, x + share * inputs.span * rng.normal(*shape, dtype=x.dtype), share


@pytest.mark.parametrize("norm", sorted(THREATS))
@given(problem=leveled())
def test_snapped_points_are_at_levels_and_in_the_ball(
    norm: str, problem: tuple[InputSpec, Tensor, Tensor, float]
) -> None:
    inputs, x, z, share = problem
    widest = THREATS[norm](1).widest(inputs)
    eps = max(1, round(share * widest)) if norm == "l0" else max(share * widest, inputs.level)
    ball = THREATS[norm](eps, inputs).around(x)
    assert ball.contains(x).all()
    for point in (ball.project(z), ball.random(Streams.derive(1, "test", torch.arange(len(x)))), ball.upper):
        if norm != "linf" and point is ball.upper:
            continue
        snapped = ball.snap(point)
        assert ball.contains(snapped).all()
        levels = inputs.level_of(snapped.double())
        assert ((levels - levels.round()).abs() < 0.03)[snapped != x].all()
        assert torch.equal(ball.snap(snapped), snapped)
        # No further from the relaxed point than half a level, or a whole one where half would not fit.
        gap = (inputs.level_of(point.double()) - levels).abs()
        assert (gap < 1.05).all()


@pytest.mark.parametrize(
    ("value", "z", "snapped"),
    [
        (10.0, 12.4, 12.0),  # to the nearest
        (10.0, 13.6, 13.0),  # 14 is too far: toward the input
        (10.0, 10.4, 10.0),
        (10.0, 6.2, 7.0),
        (10.3, 10.5, 10.3),  # the input's own value is nearer than 11
        (10.3, 10.8, 11.0),
        (10.3, 10.2, 10.3),
        (10.3, 10.1, 10.0),
        (10.3, 9.9, 10.0),
        (10.3, 7.4, 8.0),  # 7 is 3.3 away
        (10.3, 300.0, 13.0),
    ],
)
def test_levels_by_hand(value: float, z: float, snapped: float) -> None:
    ball = Linf(3, InputSpec(shape=(1,), bounds=(0, 255), levels=256)).around(torch.tensor([[value]]))
    assert ball.snap(ball.project(torch.tensor([[z]]))).item() == pytest.approx(snapped)


@pytest.mark.parametrize("grey", [1, 2, 8, 77])
def test_all_of_a_budget_of_whole_levels_can_be_used(grey: int) -> None:
    """x, x + 8/255 and 8/255 are rounded to floats; that must not cost the last level."""
    pixels = torch.arange(256.0)[:, None]
    ball = Linf(grey / 255, InputSpec(shape=(1,), levels=256)).around(pixels / 255)
    for z, furthest in ((ball.upper, pixels + grey), (ball.lower, pixels - grey)):
        assert torch.equal(z, furthest.clamp(0, 255) / 255)
        assert torch.equal(ball.snap(z), z)
        assert ball.contains(z).all()
        assert torch.equal(ball.snap(ball.project(z + (z - pixels / 255))), z)


def test_points_between_levels_are_not_contained() -> None:
    ball = L1(3, InputSpec(shape=(2,), bounds=(0, 255), levels=256)).around(torch.tensor([[3.0, 7.5]] * 4))
    z = torch.tensor([[4.0, 7.5], [4.0, 8.0], [4.5, 7.5], [5.0, 9.0]])
    assert ball.contains(z).tolist() == [True, True, False, False]
