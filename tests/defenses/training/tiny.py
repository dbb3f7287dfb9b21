"""Models so small, in float64, that a formula and a finite difference can be held against what they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustml.classifier import Classifier
from robustml.defenses.training import Answers, Batch, Objective, Term
from robustml.inputs import InputSpec
from robustml.sampling import Streams

SHAPE = (5,)
CLASSES = 3


def smooth(seed: int = 0, shape: tuple[int, ...] = SHAPE, **spec: Any) -> Classifier:
    """A network without kinks in float64: finite differences hold everywhere."""
    size = int(torch.tensor(shape).prod())
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Classifier(net, inputs=InputSpec(shape=shape, dtype="float64", **spec), classes=CLASSES)


def batch(n: int = 7, shape: tuple[int, ...] = SHAPE, seed: int = 0, x: Tensor | None = None) -> Batch:
    """Samples of one seed; every call gives fresh streams, at the start of the same sequence."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    ids = torch.arange(n)
    return Batch(drawn if x is None else x, ids % CLASSES, ids, Streams.derive(seed, "test", ids))


def losses(model: Classifier, objective: Objective, made: Batch) -> Tensor:
    z = objective.craft(model.eval(), made)
    return objective.losses(Answers(model.train()), made, z)


def term_losses(model: Classifier, term: Term, made: Batch) -> Tensor:
    found = term.losses(Answers(model), made, made.x)
    assert found is not None
    return found


def assert_derivative(model: Classifier, value: Callable[[], Tensor], tolerance: float = 1e-6) -> None:
    """The gradient of a value with respect to every weight is that of central differences."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    step = 1e-5
    for parameter, gradient in zip(parameters, gradients, strict=True):
        with torch.no_grad():
            flat = parameter.view(-1)
            for i in range(flat.numel()):
                kept = flat[i].item()
                flat[i] = kept + step
                with torch.enable_grad():
                    up = value().item()
                flat[i] = kept - step
                with torch.enable_grad():
                    down = value().item()
                flat[i] = kept
                slope = (up - down) / (2 * step)
                assert abs(gradient.view(-1)[i].item() - slope) <= tolerance * max(1.0, abs(slope))
