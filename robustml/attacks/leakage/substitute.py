"""The thief's own model: built for the inputs at hand, and trained on what the target answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...inputs import InputSpec
from ...sampling import Streams, seeded

__all__ = ["Build", "network", "taught"]

Build = Callable[[], nn.Module]
"""Makes an untrained module that maps (n, *shape) to logits (n, classes)."""

_BATCH = 64
_RATE = 2e-3
_DECAY = 1e-4
_WIDE = 128
_SMALLEST = 6  # pixels; below, a convolution has nothing to slide over


def network(spec: InputSpec, classes: int) -> nn.Module:
    """Two convolutions for images, two hidden layers for anything else."""
    if len(spec.shape) == 3 and min(spec.shape[1:]) >= _SMALLEST:
        channels, height, width = spec.shape
        flat = 32 * math.ceil(height / 2) * math.ceil(width / 2)
        return nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(flat, classes)),
        )
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(spec.size, _WIDE), nn.ReLU()),
        *(nn.Linear(_WIDE, _WIDE), nn.ReLU(), nn.Linear(_WIDE, classes)),
    )


def taught(
    spec: InputSpec,
    x: Tensor,
    answers: Tensor,
    *,
    build: Build | None,
    steps: int,
    seed: int,
    device: torch.device,
) -> Classifier:
    """Train a fresh substitute on answers: cross-entropy against them, with Adam and a cosine schedule.

    Args:
        spec: The space of inputs.
        x: What was asked, (n, *shape).
        answers: Probabilities (n, width), or rows with a single 1.
        build: Makes the module; `network` if None.
        steps: Batches, whatever the number of answers is.
        seed: Decides the beginning and the order.
        device: Where it is trained.

    Returns:
        The substitute, in evaluation mode, on the CPU.

    Raises:
        InputError: if the module that was built answers with another shape.
    """
    width = answers.shape[1]
    with seeded(device, seed, "leakage/substitute"), torch.enable_grad():
        module = network(spec, width) if build is None else build()
        student = Classifier(module, inputs=_ranged(spec, x), classes=width).to(device).train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        )
        done, epoch = 0, 0
        while done < steps:
            streams = Streams.derive(seed, f"leakage/substitute/{epoch}", torch.arange(len(x)))
            order = streams.bits(1)[:, 0].argsort(stable=True)
            for rows in torch.split(order, _BATCH)[: steps - done]:
                _step(student, x[rows].to(device), answers[rows].to(device), optimizer)
                schedule.step()
                done += 1
            epoch += 1
    return student.cpu().eval()


def _step(student: Classifier, x: Tensor, answers: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    logits = student(x)
    loss = nn.functional.cross_entropy(logits, answers.to(logits.dtype))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _ranged(spec: InputSpec, x: Tensor) -> InputSpec:
    """The same space, normalized to the range of what was asked; the target's own normalization is not known.

    Copies are more faithful from [0, 1] than from standardized inputs, to which the network fits too closely.
    """
    groups = x.double() if len(spec.shape) == 1 else x.double().transpose(0, 1).flatten(1).T
    low, high = groups.amin(0), groups.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return dataclasses.replace(spec, mean=tuple(low.tolist()), std=tuple(width.tolist()))
