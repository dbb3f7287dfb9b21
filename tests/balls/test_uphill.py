"""Steps uphill and steps with momentum, against the formulas that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.balls.waiting import as_on_a_device
from robustml.inputs import InputSpec
from robustml.threats import L0, L1, L2, Linf, Threat

ROWS, FEATURES = 4, 30
THREATS = {"linf": Linf(0.2), "l2": L2(0.7), "l1": L1(2.0), "l0": L0(5)}
MOMENTUM = 0.75


@st.composite
def walks(draw) -> tuple[Threat, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A threat, inputs, two points of their balls, a gradient and lengths of steps."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = tuple(draw(st.sampled_from([[1.0] * FEATURES, [0.5, 2.0, 1.0] * (FEATURES // 3)])))
    inputs = InputSpec(shape=(FEATURES,), dtype="float64", scale=1.0 if set(scale) == {1.0} else scale)
    threat = THREATS[draw(st.sampled_from(list(THREATS)))].within(inputs)
    x, *noise = torch.rand(3, ROWS, FEATURES, generator=generator, dtype=torch.float64)
    ends = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    x = torch.where(ends < 0.3, x.round(), x)  # many features lie at an end of their range
    ball = threat.around(x)
    z, previous = (ball.project(x + 2 * (part - 0.5)) for part in noise)
    gradient = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    gradient *= 10.0 ** draw(st.integers(-30, 20))
    return threat, x, z, previous, gradient, ball.eps * torch.rand(ROWS, generator=generator).double()


@given(walks())
def test_uphill_is_a_step_of_steepest_ascent_and_a_projection(walk) -> None:
    threat, x, z, _, gradient, length = walk
    ball = threat.around(x)
    wanted = ball.project(z + length[:, None] * ball.ascent(gradient))
    torch.testing.assert_close(ball.uphill(z, gradient, length), wanted, atol=1e-9, rtol=0)
    one = float(length[0])
    wanted = ball.project(z + one * ball.ascent(gradient))
    torch.testing.assert_close(ball.uphill(z, gradient, one), wanted, atol=1e-9, rtol=0)


@given(walks())
def test_a_step_with_momentum_stays_in_the_ball_and_goes_on_where_the_last_one_led(walk) -> None:
    threat, x, z, previous, gradient, length = walk
    ball = threat.around(x)
    reached = ball.swing(z, previous, gradient, length, MOMENTUM)
    assert ball.contains(reached).all()
    ahead = ball.project(z + length[:, None] * ball.ascent(gradient))
    wanted = ball.project(z + MOMENTUM * (ahead - z) + (1 - MOMENTUM) * (z - previous))
    if threat.norm != "l2":
        torch.testing.assert_close(reached, wanted, atol=1e-9, rtol=0)
        return
    # Under L2 the point halfway is cut to the range and then shortened, which is the projection unless a
    # feature would have stopped elsewhere than at the input: then it is a little less far out.
    torch.testing.assert_close(reached, wanted, atol=0.5 * MOMENTUM * ball.eps, rtol=0)


def test_where_no_range_ends_the_step_with_momentum_is_that_of_the_paper_under_l2() -> None:
    generator = torch.Generator().manual_seed(0)
    x, z, previous, gradient = torch.randn(4, ROWS, FEATURES, generator=generator, dtype=torch.float64)
    ball = L2(0.7).around(x)
    z, previous = ball.project(z), ball.project(previous)
    length = torch.tensor([0.0, 0.1, 0.7, 5.0], dtype=torch.float64)
    ahead = ball.project(z + length[:, None] * ball.ascent(gradient))
    wanted = ball.project(z + MOMENTUM * (ahead - z) + (1 - MOMENTUM) * (z - previous))
    reached = ball.swing(z, previous, gradient, length, MOMENTUM)
    torch.testing.assert_close(reached, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", list(THREATS))
def test_a_gradient_of_nothing_leads_nowhere_and_does_not_disturb_its_neighbors(norm) -> None:
    generator = torch.Generator().manual_seed(1)
    x, gradient = torch.rand(2, ROWS, FEATURES, generator=generator)
    ball = THREATS[norm].within(InputSpec(shape=(FEATURES,))).around(x)
    alone = ball.uphill(x, gradient, ball.eps / 2)
    gradient[1] = 0
    together = ball.uphill(x, gradient, ball.eps / 2)
    assert torch.equal(together[1], x[1])
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(together[others], alone[others])


@given(walks())
def test_a_device_which_is_not_asked_takes_the_same_steps(walk) -> None:
    threat, x, z, previous, gradient, length = walk
    here = threat.around(x).swing(z, previous, gradient, length, MOMENTUM)
    with as_on_a_device():
        there = threat.around(x).swing(z, previous, gradient, length, MOMENTUM)
    torch.testing.assert_close(here, there, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("threat", "features"), [(L2(1.5), 784), (L1(10.0), 784), (L2(0.01), 3072)])
def test_rounding_never_leads_out_of_the_ball_whether_it_is_asked_about_or_not(threat, features) -> None:
    generator = torch.Generator().manual_seed(2)
    x, noise = torch.rand(2, 64, features, generator=generator)
    ball = threat.within(InputSpec(shape=(features,))).around(x)
    assert ball.contains(ball.project(x + (noise - 0.5) * 4)).all()
