"""Handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998, as scikit-learn has them), and a small CNN."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ...data import as_dataset
from ...inputs import InputSpec
from . import Parts
from .training import Recipe, held_out, trained

__all__ = ["build"]

_TEST = 500


def build() -> Parts:
    """The digits target: the model, and the 500 images that it was not trained on."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(labels.astype(np.int64))
    train, test = held_out(len(x), _TEST)
    inputs = InputSpec(shape=(1, 8, 8), bounds=(0.0, 1.0))
    recipe = Recipe("digits", version=1, build=_network, epochs=20)
    return Parts(
        model=trained(recipe, x[train], y[train], inputs, classes=10),
        data=as_dataset((x[test], y[test]), inputs, classes=10, name="digits"),
        train=as_dataset((x[train], y[train]), inputs, classes=10, name="digits, training part"),
        class_names=tuple("0123456789"),
        threats=("linf:0.1",),
    )


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
