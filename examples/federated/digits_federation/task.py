"""What the server and the clients agree on: the model."""

from __future__ import annotations

import torch
from torch import nn

import robustml as rml


def build() -> rml.Classifier:
    """A small convolutional network; everybody begins with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )
    return rml.Classifier(module, inputs=rml.InputSpec(shape=(1, 8, 8), bounds=(0, 1)), classes=10)
