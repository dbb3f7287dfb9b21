"""Steps along a gradient, and the threshold that the largest features reach."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.attacks.steps import _nth_largest, free_gradient, sparse_ascent
from robustml.balls.waiting import as_on_a_device
from robustml.inputs import InputSpec
from robustml.threats import Linf

ROWS = 5


@st.composite
def sizes(draw) -> tuple[Tensor, Tensor]:
    """Values of at least 0 with ties, zeros and clusters, and counts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    features = draw(st.sampled_from([1, 2, 7, 60, 784]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    kind = draw(st.sampled_from(["plain", "ties", "zeros", "cluster", "spread"]))
    size = torch.rand(ROWS, features, generator=generator, dtype=dtype)
    if kind == "ties":
        size = (size * 3).round()
    elif kind == "zeros":
        size = torch.where(size < 0.9, 0, size)
    elif kind == "cluster":
        size = torch.where(size > 0.95, 1e6, 1 + size * 1e-4).to(dtype)
    elif kind == "spread":
        size = size.pow(30)
    count = torch.randint(1, features + 1, (ROWS, 1), generator=generator)
    return size, count


@given(sizes())
def test_so_many_values_reach_the_threshold_and_more_only_where_several_are_equal(problem) -> None:
    size, count = problem
    threshold = _nth_largest(size, count)
    exact = size.sort(dim=1, descending=True).values.gather(1, count - 1)
    assert threshold.shape == (ROWS, 1)
    # The threshold may lie below the value that it stands for, but no other value lies between the two.
    assert torch.equal(size >= threshold, size >= exact)


@given(sizes(), st.integers(0, ROWS - 1))
def test_a_threshold_does_not_depend_on_the_other_rows(problem, row) -> None:
    size, count = problem
    here = slice(row, row + 1)
    alone, together = _nth_largest(size[here], count[here]), _nth_largest(size, count)[here]
    assert torch.equal(size[here] >= alone, size[here] >= together)


@given(sizes())
def test_a_device_where_everything_is_sorted_takes_the_same_step(problem) -> None:
    size, count = problem
    share = count[:, 0] / size.shape[1]
    with as_on_a_device():
        sorted_out = sparse_ascent(size, share)
    torch.testing.assert_close(sorted_out, sparse_ascent(size, share))


@given(sizes())
def test_a_sparse_step_has_length_one_and_moves_the_largest_features_evenly(problem) -> None:
    size, count = problem
    features = size.shape[1]
    sign = torch.where(torch.arange(features) % 2 == 0, 1, -1)
    gradient = size * sign
    before = gradient.clone()
    step = sparse_ascent(gradient, count[:, 0] / features + 0.5 / features)
    assert torch.equal(gradient, before)
    exact = size.sort(dim=1, descending=True).values.gather(1, count - 1)
    moves = (size >= exact) & (size > 0)
    assert torch.equal(step != 0, moves)
    assert (step * gradient >= 0).all()
    width = moves.sum(1)
    length = step.abs().sum(1)
    torch.testing.assert_close(length, (width > 0).to(size.dtype))
    torch.testing.assert_close(step.abs().amax(1) * width, length)


def test_a_share_of_nothing_still_moves_one_feature_and_one_of_all_moves_all() -> None:
    gradient = torch.tensor([[[1.0, -3.0], [2.0, 0.5]]]).repeat(2, 1, 1)
    step = sparse_ascent(gradient, torch.tensor([0.0, 7.0]))
    assert torch.equal(step[0], torch.tensor([[0.0, -1.0], [0.0, 0.0]]))
    assert torch.equal(step[1], torch.tensor([[0.25, -0.25], [0.25, 0.25]]))


def test_no_row() -> None:
    assert sparse_ascent(torch.empty(0, 3), torch.empty(0)).shape == (0, 3)


def test_features_at_the_end_of_their_range_are_free_only_inwards() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5]])
    ball = Linf(0.2).within(InputSpec(shape=(6,))).around(x)
    gradient = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    free = free_gradient(gradient, x, ball)
    assert torch.equal(free, torch.tensor([[1.0, 0.0, 0.0, -1.0, 1.0, -1.0]]))
    # At the end of the ball as at the end of the range.
    free = free_gradient(gradient, ball.upper, ball)
    assert torch.equal(free, torch.tensor([[0.0, -1.0, 0.0, -1.0, 0.0, -1.0]]))
