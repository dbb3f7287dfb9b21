"""The adversarially trained MNIST network that strength is measured on, from beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["MNIST", "robust_mnist"]

MNIST = Path(__file__).parents[3] / "shared" / "data"


def robust_mnist(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network with frozen weights, and the first so many test images (n, 1, 28, 28) with their labels."""
    from safetensors.torch import load_file

    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    model.load_state_dict(load_file(MNIST / "mnist_pgd.safetensors"))
    with np.load(MNIST / "mnist.npz", allow_pickle=False) as data:
        x = torch.from_numpy(data["x_test"][:count]).float()[:, None] / 255
        y = torch.from_numpy(data["y_test"][:count].astype(np.int64))
    return model.requires_grad_(False), x, y
