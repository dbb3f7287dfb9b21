"""A small problem, whose federation takes a second."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import robustml as rml


def data(n: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which of the first three of eight features is the largest."""
    x = np.random.default_rng(seed).uniform(size=(n, 8)).astype("float32")
    return x, x[:, :3].argmax(1)


def net(*, norm: bool = False) -> rml.Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        middle = [nn.BatchNorm1d(16)] if norm else []
        module = nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 3))
    return rml.Classifier(module, inputs=rml.InputSpec(shape=(8,), bounds=(0, 1)), classes=3)


def run(rounds: int = 3, *, norm: bool = False, given=None, **options):
    """A federation of four clients on one CPU thread."""
    if given is None:
        options = {"clients": 4, **options}
    settings = {"device": "cpu", "batch_size": 32, "learning_rate": 0.2, **options}
    return rml.federate(net(norm=norm), data() if given is None else given, rounds=rounds, **settings)


def figures(history) -> list[dict]:
    """A history without its clock."""
    return [{key: value for key, value in entry.to_dict().items() if key != "seconds"} for entry in history]


def weights(model: rml.Classifier) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.module.state_dict().items()}


def same(one: rml.Classifier, other: rml.Classifier) -> bool:
    """Whether two models have the same bits."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
