"""The real model and data that the benchmarks measure on, and a quick undefended one."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the data lie."""
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="folder of mnist.npz and mnist_pgd.safetensors"
    )


def mnist(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (n, 1, 28, 28) in [0, 1] and labels of "train" or "test"."""
    with np.load(folder / "mnist.npz", allow_pickle=False) as arrays:
        x, y = arrays[f"x_{part}"][:count], arrays[f"y_{part}"][:count]
    return torch.from_numpy(x).float().div(255)[:, None], torch.from_numpy(y.astype(np.int64))


def network() -> nn.Module:
    """The architecture of mnist_pgd: two strided convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def robust(folder: Path) -> nn.Module:
    """The adversarially trained network."""
    net = network()
    net.load_state_dict(load_file(folder / "mnist_pgd.safetensors"))
    return net.eval()


def undefended(folder: Path, seed: int = 0) -> nn.Module:
    """The same architecture after one plain epoch over 20,000 images."""
    x, y = mnist(folder, "train", 20_000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
        order = torch.randperm(len(x))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for rows in order.split(128):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net.eval()


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = stride == 1 and before == after
        self.short = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.main(x) + self.short(x))


def resnet18(width: int = 64, classes: int = 10, seed: int = 0) -> nn.Module:
    """ResNet-18 for images of 3x32x32 (a 3x3 stem without pooling), with random weights.

    Args:
        width: Channels of the first stage; 64 is the usual network.
        classes: How many.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        before = width
        for stage in range(4):
            after = width * 2**stage
            layers += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
            before = after
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)
        ).eval()
