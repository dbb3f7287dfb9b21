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
