"""Losses: values worked out by hand, invariances, and what happens at ties and with broken logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustml.errors import InputError
from robustml.losses import LOSSES, cross_entropy, dlr, is_wrong, loss_named, margin, targeted_dlr

FOUR = torch.tensor([[1.0, 4.0, 2.5, -1.0]], dtype=torch.float64)
NAN, INF = float("nan"), float("inf")

logit_rows = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.floats(-20, 20), min_size=k, max_size=k), min_size=1, max_size=4)
)


def label(y: int) -> Tensor:
    return torch.tensor([y])


@pytest.mark.parametrize(
    ("logits", "y", "wrong"),
    [
        ([1.0, 2.0, 0.0], 1, False),
        ([1.0, 2.0, 0.0], 0, True),
        ([2.0, 2.0, 0.0], 0, False),  # a tie goes to the first
        ([2.0, 2.0, 0.0], 1, True),
        ([0.0, 0.0, 0.0], 0, False),
        ([NAN, 2.0, 0.0], 0, True),
        ([1.0, NAN, 0.0], 1, True),
        ([5.0, 1.0, NAN], 0, True),
        ([NAN, NAN, NAN], 0, True),
        ([INF, 1.0, 0.0], 0, False),
        ([-INF, 1.0, 0.0], 1, False),
    ],
)
def test_is_wrong(logits: list[float], y: int, wrong: bool) -> None:
    assert is_wrong(torch.tensor([logits]), label(y)).tolist() == [wrong]


def test_cross_entropy_by_hand() -> None:
    total = sum(math.exp(v) for v in (1.0, 4.0, 2.5, -1.0))
    assert cross_entropy(FOUR, label(2)).item() == pytest.approx(math.log(total) - 2.5)
    assert cross_entropy(torch.zeros(1, 10), label(3)).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize(("y", "value"), [(1, -1.5), (0, 3.0), (2, 1.5), (3, 5.0)])
def test_margin_by_hand(y: int, value: float) -> None:
    assert margin(FOUR, label(y)).item() == value


@pytest.mark.parametrize(("y", "value"), [(1, -0.5), (0, 1.0), (2, 0.5), (3, 5 / 3)])
def test_dlr_by_hand(y: int, value: float) -> None:
    # Largest 4, third largest 1: the denominator is 3.
    assert dlr(FOUR, label(y)).item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("y", "target", "value"), [(1, 2, -0.375), (1, 0, -0.75), (0, 1, 0.75), (3, 1, 1.25)]
)
def test_targeted_dlr_by_hand(y: int, target: int, value: float) -> None:
    # Largest 4, third and fourth 1 and -1: the denominator is 4 - 0 = 4.
    assert targeted_dlr(FOUR, label(y), label(target)).item() == pytest.approx(value)


def test_targeted_dlr_with_three_classes_climbs_towards_the_lowest_logit() -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0]], requires_grad=True)
    value = targeted_dlr(logits, label(0), label(2))
    assert value.item() == -4.0
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.equal(gradient, torch.tensor([[-1.0, 0.0, 1.0]]))


def test_with_two_classes_the_ratio_losses_are_the_margin() -> None:
    logits = torch.tensor([[3.0, 1.0], [-1.0, 4.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    assert torch.equal(dlr(logits, y), torch.tensor([-2.0, 5.0]))
    assert torch.equal(targeted_dlr(logits, y, 1 - y), torch.tensor([-2.0, 5.0]))
    (gradient,) = torch.autograd.grad(dlr(logits, y).sum(), logits)
    assert torch.equal(gradient, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


@given(logit_rows, st.floats(0.1, 50), st.floats(-20, 20), st.data())
def test_dlr_is_blind_to_scale_and_shift(
    rows: list[list[float]], scale: float, shift: float, data: st.DataObject
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    # Where the three largest logits nearly coincide, rounding decides their ratio.
    spread = logits.topk(min(3, logits.shape[1]), dim=1).values
    logits = logits[(spread[:, 0] - spread[:, -1]) > 1e-3]
    if logits.shape[1] < 3 or not len(logits):
        return
    classes = st.integers(0, logits.shape[1] - 1)
    y, target = (
        torch.tensor(data.draw(st.lists(classes, min_size=len(logits), max_size=len(logits)))) for _ in "yt"
    )
    moved = logits * scale + shift
    torch.testing.assert_close(dlr(moved, y), dlr(logits, y), rtol=1e-6, atol=1e-6)
    if logits.shape[1] > 3:
        torch.testing.assert_close(
            targeted_dlr(moved, y, target), targeted_dlr(logits, y, target), rtol=1e-6, atol=1e-6
        )


@given(logit_rows, st.sampled_from(sorted(LOSSES)), st.data())
def test_losses_and_their_gradients_are_finite_and_rise_with_the_error(
    rows: list[list[float]], name: str, data: st.DataObject
) -> None:
    logits = torch.tensor(rows, requires_grad=True)
    classes = st.integers(0, logits.shape[1] - 1)
    y = torch.tensor(data.draw(st.lists(classes, min_size=len(rows), max_size=len(rows))))
    values = loss_named(name)(logits, y)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.shape == (len(rows),)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    if name == "margin":
        # Strictly positive means wrong, strictly negative means right; zero is a tie.
        assert (is_wrong(logits, y)[values > 0]).all()
        assert (~is_wrong(logits, y)[values < 0]).all()
        assert torch.equal(gradient.gather(1, y[:, None])[:, 0], -torch.ones(len(rows)))


@pytest.mark.parametrize("loss", [dlr, lambda z, y: targeted_dlr(z, y, 1 - y)])
def test_ratio_losses_at_a_complete_tie(loss: object) -> None:
    logits = torch.zeros(1, 5, requires_grad=True)
    value = loss(logits, label(0))  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == 0
    assert gradient.isfinite().all()


def test_loss_named_finds_and_suggests() -> None:
    assert loss_named("dlr") is dlr
    with pytest.raises(InputError, match="loss='margn' is not known; did you mean 'margin'"):
        loss_named("margn")
