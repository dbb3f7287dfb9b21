"""Inside `smoothed` forward passes stay as they were, to the last bit, and backward passes lead somewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from robustml.surrogates import KINDS, SLOPE, exact, smoothed


def _no_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        return z * 2


def _stored(z: Tensor) -> Tensor:
    """Cut into grey levels, as a file stores them, with arithmetic on whole numbers."""
    levels = (z.sigmoid() * 255).clamp(0, 255).to(torch.uint8)
    return (levels.int() // 16 * 16).float() / 255


def _statement(z: Tensor) -> Tensor:
    z.relu_()
    return z


# What is called, and the families that are replaced in it.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "nn.ReLU": (nn.ReLU(), {"relu"}),
    "nn.ReLU in place": (nn.ReLU(inplace=True), {"relu"}),
    "relu_ as a statement": (_statement, {"relu"}),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), {"relu"}),
    "nn.ReLU6": (nn.ReLU6(), {"clamp"}),
    "nn.Hardtanh": (nn.Hardtanh(), {"clamp"}),
    "nn.MaxPool2d": (nn.MaxPool2d(2), {"max-pool"}),
    "overlapping and padded": (nn.MaxPool2d(3, stride=2, padding=1), {"max-pool"}),
    "dilated": (nn.MaxPool2d(2, stride=1, dilation=2), {"max-pool"}),
    "one-dimensional": (lambda z: functional.max_pool1d(z.flatten(2), 3), {"max-pool"}),
    "clamp": (lambda z: z.clamp(0.1, 0.6), {"clamp"}),
    "clamp to one side": (lambda z: z.clamp(min=0.1), {"clamp"}),
    "clamp_min": (lambda z: z.clamp_min(0.1), {"clamp"}),
    "clamp_max": (lambda z: torch.clamp_max(z, 0.6), {"clamp"}),
    "clamp in place": (lambda z: z.clamp_(0.1, 0.6), {"clamp"}),
    "round": (lambda z: (z * 4).round() / 4, {"round"}),
    "round in place": (lambda z: (z * 4).round_() / 4, {"round"}),
    "floor": (lambda z: torch.floor(z * 4) / 4, {"round"}),
    "floor division": (lambda z: z // 0.25, {"round"}),
    "sign": (lambda z: z.sign(), {"sign"}),
    "heaviside": (lambda z: torch.heaviside(z, torch.zeros(1)), {"sign"}),
    "comparison": (lambda z: (z > 0.5).float(), {"compare"}),
    "choice": (lambda z: torch.where(z > 0.5, 1.0, 0.0), {"compare"}),
    "cast": (lambda z: (z * 255).int().float() / 255, {"cast"}),
    "arithmetic on whole numbers": (lambda z: (z * 255).long() * 2 / 510, {"cast"}),
    "stored levels": (_stored, {"clamp", "cast", "round"}),
    "detach": (lambda z: z.detach() * 2, {"detach"}),
    "data": (lambda z: z.data * 2, {"detach"}),
    "no_grad": (_no_grad, {"detach"}),
}


def images() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_are_exact_and_gradients_flow(name: str) -> None:
    operation, kinds = OPERATIONS[name]
    seen: Counter[str] = Counter()
    with torch.no_grad():
        expected = operation(images())
    point = images().requires_grad_()
    with smoothed(seen=seen):
        value = operation(point * 1)
    assert torch.equal(value, expected)
    assert value.dtype == expected.dtype
    (gradient,) = torch.autograd.grad(value.sum(), point)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.9
    assert set(seen) == kinds <= set(KINDS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_family_that_is_left_out_keeps_its_true_gradient(name: str) -> None:
    operation, kinds = OPERATIONS[name]
    others = frozenset(KINDS) - kinds
    true, point = images().requires_grad_(), images().requires_grad_()
    value = operation(true * 1)
    with smoothed(others):
        same = operation(point * 1)
    assert same.requires_grad == value.requires_grad
    # Torch refuses the derivative of some.
    if value.requires_grad and name not in {"floor division", "heaviside"}:
        expected = torch.autograd.grad(value.sum(), true, allow_unused=True)[0]
        found = torch.autograd.grad(same.sum(), point, allow_unused=True)[0]
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(expected, found)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20))
def test_relu_passes_back_a_sigmoid(values: list[float]) -> None:
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    with smoothed():
        (gradient,) = torch.autograd.grad(functional.relu(z).sum(), z)
    torch.testing.assert_close(gradient, torch.sigmoid(SLOPE * z.detach()))


def test_max_pooling_passes_back_the_softmax_of_its_window() -> None:
    z = images()[:1, :1, :2, :2].clone().requires_grad_()
    with smoothed():
        (gradient,) = torch.autograd.grad(functional.max_pool2d(z, 2).sum(), z)
    expected = torch.softmax(z.detach().flatten() * SLOPE, 0).view_as(z)
    torch.testing.assert_close(gradient, expected)


def test_outside_of_the_block_nothing_is_changed() -> None:
    point = images().requires_grad_()
    with smoothed():
        functional.relu(point)
    (gradient,) = torch.autograd.grad(functional.relu(point).sum(), point)
    assert torch.equal(gradient, (point.detach() > 0).float())


def test_bookkeeping_inside_of_the_block_can_ask_for_the_true_operations() -> None:
    point = images().requires_grad_()
    with smoothed(), exact():
        copy = point.detach()
    assert not copy.requires_grad


def test_forms_without_a_surrogate_are_left_alone() -> None:
    """Odd forms of known operations must not fail; they keep the gradient that they have."""
    point = images().requires_grad_()
    with smoothed():
        pooled, places = functional.max_pool2d(point, 2, return_indices=True)
        rounded_up = functional.max_pool2d(point, 3, ceil_mode=True)
    assert places.dtype == torch.int64
    for value in (pooled, rounded_up):
        (gradient,) = torch.autograd.grad(value.sum(), point, retain_graph=True)
        assert set(gradient.unique().tolist()) <= {0.0, 1.0}


class Maker(nn.Module):
    """Builds a layer in its forward pass, which fills parameters in place with gradients switched off."""

    def forward(self, x: Tensor) -> Tensor:
        layer = nn.Linear(8, 4)
        nn.init.constant_(layer.weight, 0.5)
        nn.init.zeros_(layer.bias)
        logits: Tensor = layer(x.relu())
        return logits


def test_what_can_only_be_done_without_gradients_still_works() -> None:
    point = images().requires_grad_()
    with smoothed():
        value = Maker()(point)
    assert torch.equal(value, Maker()(point))
    assert (torch.autograd.grad(value.sum(), point)[0] != 0).all()


def test_an_error_of_the_model_stays_its_error() -> None:
    with smoothed(), pytest.raises(RuntimeError, match="shape"):
        images() @ torch.zeros(3, 3)


def test_weights_that_are_frozen_get_no_gradient_and_modules_are_not_touched() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.ReLU(), nn.Linear(4, 3)).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    point = images().requires_grad_()
    with smoothed():
        value = net(point)
    torch.autograd.grad(value.sum(), point)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(images()), value)
