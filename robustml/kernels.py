"""A shorter way to the gradient of an input through the first convolution, on a CPU.

Training never asks what the gradient of the input is, attacks ask for nothing else; and through a convolution
with few input channels that skips pixels, as most networks begin with, it takes PyTorch's CPU library longer
than most of the rest. The same sum is a convolution of the output's gradient with one small kernel for each
position between two strides (Shi et al. 2016, "Real-time single image and video super-resolution using an
efficient sub-pixel convolutional neural network"), which takes a half to a quarter of the time. Apart from
rounding the numbers are the same. Which way is taken depends on shapes alone and not on a clock, so that the
same run gives the same bits.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["lean"]

_FEW = 4  # input channels up to which this way is the shorter one (benchmarks/kernels.py)

Pair = tuple[int, int]


class _Skipping(torch.autograd.Function):
    """A convolution with a stride above 1 and frozen weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Pair
    ) -> Tensor:
        # What torch's own would save, so that a graph which is built once more during the backward pass
        # (torch.utils.checkpoint) matches.
        ctx.save_for_backward(x, weight)
        ctx.form = stride, padding
        return torch.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.form
        found = input_gradient(gradients[0], weight, stride, padding, (x.shape[2], x.shape[3]))
        return found, None, None, None, None


def input_gradient(
    gradient: Tensor, weight: Tensor, stride: int, padding: Pair, size: tuple[int, int]
) -> Tensor:
    """The gradient of a convolution with respect to its input: (n, channels, *size).

    Args:
        gradient: With respect to the output (n, outputs, rows, columns).
        weight: The kernel (outputs, channels, height, width).
        stride: In both directions.
        padding: Zeros above and below, and on either side.
        size: Height and width of the input.
    """
    outputs, channels, height, width = weight.shape
    down, across = -(-height // stride), -(-width // stride)
    # A pixel between two strides is reached by every stride-th row and column of the kernel only: one smaller
    # kernel for each such place, turned around.
    whole = functional.pad(weight, (0, across * stride - width, 0, down * stride - height))
    apart = whole.view(outputs, channels, down, stride, across, stride).permute(1, 3, 5, 0, 2, 4)
    kernels = apart.reshape(channels * stride * stride, outputs, down, across).flip(2, 3)
    spread = torch.conv2d(gradient, kernels, padding=(down - 1, across - 1))
    spread = functional.pixel_shuffle(spread, stride)
    # Pixels that no window reaches have a gradient of 0.
    missing = [
        max(end + margin - had, 0) for end, margin, had in zip(size, padding, spread.shape[2:], strict=True)
    ]
    if any(missing):
        spread = functional.pad(spread, (0, missing[1], 0, missing[0]))
    (top, left), (rows, columns) = padding, size
    return spread[:, :, top : top + rows, left : left + columns]


class _Lean(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            form = _form(*args, **(kwargs or {}))
            if form is not None:
                return _Skipping.apply(*form)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _form(
    input: Any,
    weight: Any = None,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> tuple[Tensor, Tensor, Tensor | None, int, Pair] | None:
    """What `_Skipping` takes, if the convolution is one for it."""
    if type(input) is not Tensor or not isinstance(weight, Tensor) or input.device.type != "cpu":
        return None
    if input.dtype not in {torch.float32, torch.float64} or torch.is_autocast_enabled("cpu"):
        return None
    if not input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    plain = groups == 1 and dilation == (1, 1) and padding is not None and input.ndim == 4
    if not plain or stride is None or stride[0] != stride[1] or stride[0] < 2 or weight.shape[1] > _FEW:
        return None
    return input, weight, bias, stride[0], padding


def _pair(value: Any) -> Pair | None:
    """Two numbers, whether one or two were given; None for a word such as "same"."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        return None
    numbers = tuple(value) * (2 if len(value) == 1 else 1)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def lean() -> contextlib.AbstractContextManager[object]:
    """Graphs that are built in here take the shorter way backwards where there is one."""
    return _Lean()
