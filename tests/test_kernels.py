"""The shorter way through a first convolution: the same gradients, taken where it may be and nowhere else."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from robustml.classifier import Classifier
from robustml.inputs import InputSpec
from robustml.kernels import input_gradient, lean
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import Linf


@st.composite
def convolutions(draw) -> tuple[Tensor, Tensor, int, tuple[int, int]]:
    """An input, a kernel, a stride and a padding, of any shapes that go together."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    stride = draw(st.integers(2, 5))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    rows = draw(st.integers(max(height - 2 * padding[0], 1), 14))
    columns = draw(st.integers(max(width - 2 * padding[1], 1), 14))
    channels, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    x = torch.randn(
        draw(st.integers(0, 3)), channels, rows, columns, generator=generator, dtype=torch.float64
    )
    weight = torch.randn(outputs, channels, height, width, generator=generator, dtype=torch.float64)
    return x, weight, stride, padding


@given(convolutions())
def test_it_is_the_gradient_of_the_convolution(problem) -> None:
    x, weight, stride, padding = problem
    out = torch.conv2d(x.requires_grad_(), weight, None, stride, padding)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (wanted,) = torch.autograd.grad(out, x, gradient)
    found = input_gradient(gradient, weight, stride, padding, x.shape[2:])
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def _net(**changes) -> nn.Module:
    options = {"in_channels": 3, "out_channels": 6, "kernel_size": 4, "stride": 2, "padding": 1} | changes
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Conv2d(**options), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)]
        return nn.Sequential(*layers).double().eval().requires_grad_(False)


def _is_taken(out: Tensor) -> bool:
    """Whether the way back leads through our convolution."""
    nodes, seen = [out.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is not None:
            seen.append(type(node).__name__)
            nodes += [following for following, _ in node.next_functions]
    return "_SkippingBackward" in seen


def _pictures(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, channels, 9, 9, generator=generator, dtype=torch.float64).requires_grad_()


def _both_ways(changes) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, and what a network says of them outside and inside of `lean`."""
    net, x = _net(**changes), _pictures(changes.get("in_channels", 3))
    plain = net(x)
    with lean():
        return x, plain, net(x)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"stride": 3, "padding": 0},
        {"padding": (2, 0)},
        {"kernel_size": 1},
        {"in_channels": 1},
    ],
    ids=str,
)
def test_the_gradient_of_a_network_is_what_it_was_and_the_value_is_so_to_the_last_bit(changes) -> None:
    x, plain, out = _both_ways(changes)
    assert _is_taken(out)
    assert not _is_taken(plain)
    assert torch.equal(out, plain)
    wanted, found = (torch.autograd.grad(part.square().sum(), x)[0] for part in (plain, out))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 1},
        {"stride": (2, 1)},
        {"stride": 1, "padding": "same"},
        {"padding": "valid"},
        {"dilation": 2},
        {"groups": 3},
        {"in_channels": 5},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(changes) -> None:
    x, plain, out = _both_ways(changes)
    assert not _is_taken(out)
    wanted, found = (torch.autograd.grad(part.sum(), x)[0] for part in (plain, out))
    assert torch.equal(found, wanted)


def test_weights_that_are_trained_keep_their_gradient() -> None:
    net, x = _net(), _pictures()
    net.requires_grad_(True)
    with lean():
        out = net(x)
    assert not _is_taken(out)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_half_precision_is_left_alone() -> None:
    net, x = _net().float(), _pictures().detach().float().requires_grad_()
    with lean(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x)
    assert not _is_taken(out)


def test_it_can_be_differentiated_twice() -> None:
    net, x = _net(), _pictures()

    def curvature(way) -> Tensor:
        with way:
            out = net(x)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    torch.testing.assert_close(curvature(lean()), curvature(contextlib.nullcontext()), atol=1e-12, rtol=0)


class _Again(nn.Module):
    """Builds its graph once more during the backward pass, to save memory."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


class _Mapped(nn.Module):
    """Takes its samples one by one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda one: self.net(one[None])[0])(x)


@pytest.mark.parametrize(
    "dressed",
    [_Again, _Mapped, torch.jit.script, lambda net: net],
    ids=["checkpointed", "mapped", "scripted", "plain"],
)
def test_attacks_find_the_same_with_and_without(dressed, monkeypatch) -> None:
    net, x = _net(), _pictures().detach()
    inputs = InputSpec(shape=(3, 9, 9), dtype="float64")
    model = Classifier(dressed(net), inputs=inputs, classes=3)
    y, threat = model(x).argmax(1), Linf(0.05).within(inputs)

    def attacked() -> Tensor:
        streams = Streams.derive(0, "test", torch.arange(len(x)))
        with model.ready(torch.device("cpu")):
            return find_attack("apgd").function(model, x, y, threat=threat, streams=streams, steps=10)

    found = attacked()
    monkeypatch.setattr("robustml.attacks.active.lean", contextlib.nullcontext)
    torch.testing.assert_close(found, attacked(), atol=1e-9, rtol=0)
    assert not torch.equal(found, x)


def test_the_functional_call_is_seen_as_well() -> None:
    x, weight = _pictures(), torch.ones(2, 3, 3, 3, dtype=torch.float64)
    with lean():
        by_name = functional.conv2d(input=x, weight=weight, stride=[2], padding=1)
        by_place = torch.conv2d(x, weight, None, (2, 2))
        one_picture = functional.conv2d(x[0], weight, stride=2)
    assert _is_taken(by_name)
    assert _is_taken(by_place)
    assert not _is_taken(one_picture)
