"""Defects 6 and 10: types that change on the way, budgets that differ, defenses that attacks go around."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from .base import Adapter, Case, Figure, Task, standing
from .models import Linear, Watched, inputs

__all__ = ["CASES"]


def squeezing(adapter: Adapter) -> Figure:
    plain = Linear(4)
    x = inputs(8)
    model = _Single(plain).eval()
    logits = adapter.squeezed(Task(model, x, plain.labels(x), eps=0.1), bits=3)
    with torch.no_grad():
        expected = model((x * 7).round() / 7)
    same = logits.dtype == torch.float32 and bool(torch.allclose(logits, expected, atol=1e-5))
    return same, f"{logits.dtype}, off by at most {float((logits - expected).abs().max()):.2g}"


class _Single(nn.Module):
    """A model in single precision, as models are, which does not take inputs of another type."""

    def __init__(self, model: Linear) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, len(model.bias)))
        with torch.no_grad():
            self.inner[1].weight.copy_(model.weight)
            self.inner[1].bias.copy_(model.bias)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.inner(z)
        return logits


def precision(adapter: Adapter) -> Figure:
    x = inputs(8)
    plain = Linear(4)
    model = Watched(plain, x, plain.labels(x)).eval()
    z = adapter.pgd(Task(model, x, plain.labels(x), eps=0.1), steps=5)
    types = sorted(str(t).removeprefix("torch.") for t in model.dtypes | {z.dtype})
    return types == ["float32"], f"float32 data, the model is shown {' and '.join(types)}"


def default_budgets(adapter: Adapter) -> Figure:
    budgets = adapter.default_budgets()
    if not budgets:
        return True, "every attack must be given its budget"
    groups = Counter(budgets.values()).most_common()
    names = [", ".join(name for name, eps in budgets.items() if eps == value) for value, _ in groups[1:]]
    odd = "; ".join(f"{value:.4g} in {name}" for (value, _), name in zip(groups[1:], names, strict=True))
    figure = f"{groups[0][0]:.4g} in {groups[0][1]} attacks" + (f"; {odd}" if odd else "")
    return len(groups) == 1, figure


class Turning(nn.Module):
    """Expects inputs that are scaled by 4: there its gradient points the other way than it does unscaled.

    The lead of class 1 is -cos(pi / 4 * a) for the mean a of the scaled input along a direction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.ones(64) / 64)

    def forward(self, z: Tensor) -> Tensor:
        a = z.flatten(1) @ self.direction
        lead = (torch.pi * a / 1.6).cos()
        return torch.stack([0 * lead, lead], dim=1)


def normalization(adapter: Adapter) -> Figure:
    """Unscaled, all the inputs lie on the falling side of the wave; scaled, on the rising side."""
    model = Turning().eval()
    x = inputs(8, low=0.43, high=0.47)
    y = torch.zeros(len(x), dtype=torch.int64)
    task = Task(_Behind(model), x, y, eps=0.2)
    z = adapter.normalized(Task(model, x, y, eps=0.2), mean=0.0, std=0.25, steps=20)
    assert standing(task, x).all()
    left = int(standing(task, z).sum())
    return left == 0, f"{left} of {len(x)} samples stand where an attack that knows of the scaling breaks all"


class _Behind(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.model(z / 0.25)
        return logits


CASES = [
    Case(
        "squeezing",
        6,
        "Bit-depth squeezing keeps float32, so that a model in single precision can be asked behind it.",
        squeezing,
    ),
    Case("precision", 6, "An attack on float32 data never shows the model another type.", precision),
    Case(
        "default-budgets",
        10,
        "Where attacks have a default Linf budget, it is the same one.",
        default_budgets,
    ),
    Case(
        "normalization",
        10,
        "An attack goes through the preprocessing that the library was told of.",
        normalization,
    ),
]
