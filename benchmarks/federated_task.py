"""What the runtimes that `federated_runtimes.py` compares have in common: the model, and how it is trained.

In the app that is deployed, this file takes the place of the task of examples/federated.
"""

from __future__ import annotations

import torch
from torch import nn

import robustml as rml

TRAINING = {"epochs": 1, "batch_size": 64, "learning_rate": 0.05}


def build() -> rml.Classifier:
    """The small CNN for MNIST; everybody begins with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    return rml.Classifier(module, inputs=rml.InputSpec(shape=(1, 28, 28), bounds=(0, 1)), classes=10)
