"""The projection onto a Euclidean ball within a box, against bisection in double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.balls.scaled import scaled
from robustml.balls.waiting import as_on_a_device
from robustml.inputs import InputSpec
from robustml.threats import L2

ROWS = 6


@st.composite
def problems(draw):
    """Perturbations, box and radius, with zeros, ties, ends of the range and spread sizes among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    features = draw(st.sampled_from([1, 2, 9, 100, 784]))
    delta, low, high = torch.randn(3, ROWS, features, generator=generator, dtype=torch.float64)
    delta, low, high = delta ** draw(st.sampled_from([1, 3, 7])), -low.abs(), high.abs()
    if draw(st.booleans()):
        delta, low, high = ((part * 4).round() / 4 for part in (delta, low, high))
    if draw(st.booleans()):
        high = torch.full_like(high, torch.inf)
    longest = torch.clamp(delta, low, high).norm(dim=1, keepdim=True)
    share = torch.rand(ROWS, 1, generator=generator, dtype=torch.float64)
    return delta, low, high, longest * share * draw(st.floats(0.02, 2.5)) + 1e-9


def by_bisection(delta: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Clip(t * delta) is what the conditions of Karush, Kuhn and Tucker leave; its length rises with t."""
    delta, low, high, radius = (part.double() for part in (delta, low, high, radius))
    below, above = torch.zeros_like(radius), torch.ones_like(radius)
    for _ in range(200):
        middle = (below + above) / 2
        fits = torch.clamp(middle * delta, low, high).norm(dim=1, keepdim=True) <= radius
        below, above = torch.where(fits, middle, below), torch.where(fits, above, middle)
    whole = torch.clamp(delta, low, high)
    fits = whole.norm(dim=1, keepdim=True) <= radius
    return torch.where(fits, whole, torch.clamp(below * delta, low, high))


@given(problems())
def test_it_is_the_nearest_point(problem) -> None:
    delta, low, high, radius = problem
    out = scaled(delta, low, high, radius)
    best = by_bisection(delta, low, high, radius)
    assert ((out - best).norm(dim=1) <= 1e-9 * radius[:, 0]).all()
    assert ((out >= low) & (out <= high)).all()
    # Of a convex set the nearest point is seen under an obtuse angle from every other; some are drawn.
    generator = torch.Generator().manual_seed(0)
    for share in (0.2, 1.0, 5.0):
        other = torch.randn(delta.shape, generator=generator, dtype=torch.float64) * radius * share
        other = by_bisection(other, low, high, radius)
        slack = 1e-8 * radius[:, 0] * (radius[:, 0] + (delta - out).norm(dim=1))
        assert (((delta - out) * (other - out)).sum(1) <= slack).all()


@given(problems())
def test_in_float32_it_exceeds_neither_radius_nor_box_and_loses_next_to_nothing(problem) -> None:
    delta, low, high, radius = (part.float() for part in problem)
    out = scaled(delta, low, high, radius)
    assert ((out >= low) & (out <= high)).all()
    length = out.double().norm(dim=1, keepdim=True)
    assert (length <= radius * (1 + 2e-6)).all()
    best = by_bisection(delta, low, high, radius)
    assert ((out - best).norm(dim=1) <= 2e-5 * radius[:, 0]).all()


@given(problems(), st.integers(0, ROWS - 1))
def test_a_row_does_not_depend_on_the_others(problem, row) -> None:
    delta, low, high, radius = problem
    here = slice(row, row + 1)
    alone = scaled(delta[here], low[here], high[here], radius[here])
    torch.testing.assert_close(alone, scaled(delta, low, high, radius)[here], rtol=0, atol=1e-12)


@given(problems(), st.sampled_from([torch.float32, torch.float64]))
def test_a_device_which_is_not_asked_finds_the_same(problem, dtype) -> None:
    problem = [part.to(dtype) for part in problem]
    with as_on_a_device():
        out = scaled(*problem)
    tolerance = (1e-9 if dtype == torch.float64 else 2e-5) * problem[3][:, 0]
    assert ((out - scaled(*problem)).norm(dim=1) <= tolerance).all()
    assert (out.double().norm(dim=1, keepdim=True) <= problem[3] * (1 + 2e-6)).all()


@given(problems())
def test_one_radius_for_all_rows(problem) -> None:
    delta, low, high, radius = problem
    one = float(radius.mean())
    many = scaled(delta, low, high, torch.full_like(radius, one))
    torch.testing.assert_close(scaled(delta, low, high, one), many, rtol=0, atol=1e-12)


def test_what_fits_is_kept_to_the_last_bit_and_the_input_is_left_alone() -> None:
    delta = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 0.0], [30.0, 40.0, 0.0]])
    before = delta.clone()
    low = torch.tensor([[-1.0, -0.1, -1.0]]).expand(3, 3)
    high = torch.tensor([[1.0, 1.0, 0.3], [1.0, 1.0, 0.3], [1e9, 1e9, 0.3]])
    out = scaled(delta, low, high, torch.tensor([[0.5], [0.0], [5.0]]))
    assert torch.equal(out[:2], torch.tensor([[0.1, -0.1, 0.3], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(out[2], torch.tensor([3.0, 4.0, 0.0]))
    assert torch.equal(delta, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radius_of_nothing_and_sizes_far_apart(dtype) -> None:
    delta = torch.tensor([[3.0, -4.0], [1e6, 1.0], [1e-6, 1.0], [1.0, 1e6]], dtype=dtype)
    far = torch.full_like(delta, torch.inf)
    high = torch.tensor([[9.0, 9.0], [0.5, 9.0], [9.0, 9.0], [1.0, 0.9]], dtype=dtype)
    radius = torch.tensor([[0.0], [1.0], [1e-3], [1.0]], dtype=dtype)
    out = scaled(delta, -far, high, radius)
    assert out[0].norm() <= 1e-20
    # The wide feature stops at the end of its range, and the other one may have the rest.
    expected = by_bisection(delta, -far, high, radius)
    torch.testing.assert_close(out[1:].double(), expected[1:], rtol=1e-5, atol=1e-8)
    assert (out.double().norm(dim=1, keepdim=True) <= radius * (1 + 2e-6)).all()


def test_no_row() -> None:
    empty = torch.empty(0, 4)
    assert scaled(empty, empty, empty, torch.empty(0, 1)).shape == (0, 4)
    assert scaled(empty, empty, empty, 1.0).shape == (0, 4)


@pytest.mark.parametrize("threat", [L2(0.5), L2(0.5).within(InputSpec(shape=(3,)))])
def test_a_ball_resized_to_nothing_projects_onto_its_center(threat) -> None:
    x = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.4, 0.6]])
    step = torch.tensor([[0.3, 0.4, -0.9], [0.3, 0.0, 0.0]])
    out = threat.around(x).resized(torch.tensor([0.0, 0.1])).project(x + step)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1], torch.tensor([0.3, 0.4, 0.6]))
