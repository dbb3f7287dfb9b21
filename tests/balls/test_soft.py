"""The projection onto an L1 ball within a box, by the conditions that tell a nearest point."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustml.balls.soft import soft_threshold, softened
from robustml.balls.waiting import as_on_a_device

ROWS = 6


@st.composite
def problems(draw):
    """Perturbations, room and radius, with zeros, ties and ends of the range among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    features = draw(st.sampled_from([1, 2, 9, 100, 784]))
    delta, room = torch.randn(2, ROWS, features, generator=generator, dtype=torch.float64)
    delta, room = delta**3, room.abs()
    if draw(st.booleans()):
        delta, room = (delta * 4).round() / 4, (room * 2).round() / 2
    if draw(st.booleans()):
        room = torch.full_like(room, torch.inf)
    most = torch.minimum(delta.abs(), room).sum(1, keepdim=True)
    return delta, room, most * draw(st.floats(0.01, 1.5)) + 1e-9


@given(problems())
def test_it_is_the_nearest_point(problem) -> None:
    delta, room, radius = problem
    out = softened(delta, room, radius)
    size, left = delta.abs(), out.abs()
    assert (out * delta >= 0).all()
    assert (left <= torch.minimum(size, room)).all()
    whole = torch.minimum(size, room).sum(1, keepdim=True)
    torch.testing.assert_close(left.sum(1, keepdim=True), torch.minimum(whole, radius))
    # One threshold for all features (Karush, Kuhn and Tucker): what is cut off is no less where the room ends
    # and no more where nothing is left.
    threshold = soft_threshold(size, room, radius)
    cut, slack = size - left, 1e-7 * (1 + size)
    assert (cut <= threshold + slack)[left < room * (1 - 1e-6)].all()
    assert (cut >= threshold - slack)[left > 0].all()


@given(problems())
def test_in_float32_it_stays_within_the_radius_and_close_to_it(problem) -> None:
    delta, room, radius = (part.float() for part in problem)
    out = softened(delta, room, radius).double()
    assert (out.abs().sum(1, keepdim=True) <= radius * (1 + 1e-6)).all()
    whole = torch.minimum(delta.abs(), room).double().sum(1, keepdim=True)
    lost = torch.minimum(whole, radius.double()) - out.abs().sum(1, keepdim=True)
    # A threshold is no finer than the last digit of the values that it is taken from.
    assert (lost <= 1e-6 * delta.shape[1] * delta.abs().amax(1, keepdim=True) + 1e-4 * radius).all()


@given(problems(), st.integers(0, ROWS - 1))
def test_a_row_does_not_depend_on_the_others(problem, row) -> None:
    delta, room, radius = problem
    alone = softened(delta[row : row + 1], room[row : row + 1], radius[row : row + 1])
    torch.testing.assert_close(alone, softened(delta, room, radius)[row : row + 1], rtol=0, atol=1e-12)


@given(problems())
def test_a_device_which_is_not_asked_finds_the_same(problem) -> None:
    with as_on_a_device():
        out = softened(*problem)
    torch.testing.assert_close(out, softened(*problem), rtol=1e-9, atol=1e-12)


def test_what_fits_is_kept_to_the_last_bit() -> None:
    delta = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 0.0]])
    room = torch.tensor([[1.0, 0.1, 0.3], [1.0, 1.0, 1.0]])
    out = softened(delta, room, torch.tensor([[0.75], [0.0]]))
    assert torch.equal(out, torch.tensor([[0.1, -0.1, 0.3], [0.0, 0.0, 0.0]]))
