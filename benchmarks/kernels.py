"""What the gradient of an input costs through a first convolution: `python benchmarks/kernels.py`.

Attacks need this gradient in every step, and `robustml.kernels` knows a shorter way to it on a CPU. Both ways
are timed in turn for the first layers of well-known networks, and for some that the shorter way is not taken
for. Printed are milliseconds of PyTorch's own way, the median of the paired ratios, and whether robustml
takes the shorter way there. One thread, random weights.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from command import Parser, line, positive
from floor import CLOCKS, Clock, Turns, in_turn

from robustml.kernels import input_gradient, lean


@dataclass(frozen=True)
class Layer:
    """A convolution of square pictures."""

    name: str
    batch: int
    channels: int
    side: int
    outputs: int
    kernel: int
    stride: int
    padding: int


LAYERS = (
    Layer("mnist_pgd of these benchmarks", 256, 1, 28, 16, 4, 2, 1),
    Layer("ResNet on ImageNet", 16, 3, 224, 64, 7, 2, 3),
    Layer("AlexNet", 16, 3, 224, 64, 11, 4, 2),
    Layer("ViT-B/16", 16, 3, 224, 768, 16, 16, 0),
    Layer("ConvNeXt", 16, 3, 224, 96, 4, 4, 0),
    Layer("MobileNet", 16, 3, 224, 32, 3, 2, 1),
    Layer("ResNet on CIFAR-10", 64, 3, 32, 64, 3, 1, 1),
    Layer("a layer within", 64, 16, 32, 32, 3, 2, 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="default: wall")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    line(["first layer of", "kernel, stride", "ms of torch", "ours / torch", "taken"])
    line(["---", "---", "--:", "--:", "---"])
    for layer in LAYERS:
        turns, taken = timed(layer, given.repeats, CLOCKS[given.clock])
        spent = 1000 * statistics.median(turns.bare)
        shape = f"{layer.kernel}, {layer.stride}"
        line([layer.name, shape, f"{spent:.1f}", f"{turns.ratio:.2f}", "yes" if taken else "no"])
    return 0


def timed(layer: Layer, repeats: int, clock: Clock) -> tuple[Turns, bool]:
    """Seconds of torch's way and of ours, in turn, and whether ours is taken."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(layer.batch, layer.channels, layer.side, layer.side, generator=generator).requires_grad_()
    weight = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel, generator=generator)
    padding = layer.padding, layer.padding
    out = torch.conv2d(x, weight, None, layer.stride, padding)
    with lean():
        again = torch.conv2d(x, weight, None, layer.stride, padding)
    gradient = torch.randn(out.shape, generator=generator)
    theirs = functools.partial(torch.autograd.grad, out, x, gradient, retain_graph=True)
    size = (layer.side, layer.side)
    ours = functools.partial(input_gradient, gradient, weight, layer.stride, padding, size)
    theirs(), ours()
    return in_turn(theirs, ours, repeats, clock), type(again.grad_fn) is not type(out.grad_fn)


if __name__ == "__main__":
    raise SystemExit(main())
