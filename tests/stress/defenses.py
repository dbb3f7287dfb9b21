"""Defenses that do not defend: each hides something from attacks, around a small network of known weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEATURES = 6
LEVELS = 7


def base() -> nn.Module:
    """A network of two layers, the same each time."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
        middle = net[0](torch.rand(256, FEATURES, generator=generator))
        net[0].bias -= middle.mean(0)
        net[2].bias -= net(torch.rand(256, FEATURES, generator=generator)).mean(0)
    return net.eval()


class Around(nn.Module):
    """A defense around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = base()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Rounding(Around):
    """Rounds its input to few levels, which passes no gradient back."""

    def forward(self, x: Tensor) -> Any:
        return self.net((x * LEVELS).round() / LEVELS)


class Floored(Around):
    """As `Rounding`, by a cast to whole numbers."""

    def forward(self, x: Tensor) -> Any:
        return self.net((x * LEVELS + 0.5).int().float() / LEVELS)


class Detached(Around):
    """Cuts the graph at the input."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x.detach()) + 0 * x.sum(1, keepdim=True)


class Ungraded(Around):
    """Computes without gradients."""

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.net(x)


class Signs(Around):
    """Hidden units that are on or off, with nothing between."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = _Sign()


class _Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


class Saturated(Around):
    """Logits so large that the softmax is exactly one."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x) * 1e4


class Certain(Around):
    """Probabilities that are exactly zero and one."""

    def forward(self, x: Tensor) -> Any:
        return torch.softmax(self.net(x) * 1e4, dim=1)


class Misleading(Around):
    """The right answer, but logits that draw closer the surer it is: they lead away from the boundary."""

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        top = logits.topk(2, dim=1)
        lead = torch.exp(-(top.values[:, 0] - top.values[:, 1]))
        return nn.functional.one_hot(top.indices[:, 0], 3) * lead[:, None]


class Shuffled(Around):
    """The right answer on top, and the other logits in an order that changes with the input's digits."""

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        best = logits.argmax(1)
        key = (x * 997).sum(1).frac()[:, None]
        noise = torch.frac(key * torch.tensor([7.13, 31.7, 91.3]))
        shown = torch.where(noise > 0.5, -logits, logits) * (1 + noise)
        ceiling = shown.amax(1, keepdim=True) + 0.1 + noise.amax(1, keepdim=True)
        return torch.where(nn.functional.one_hot(best, 3).bool(), ceiling, shown)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class Zeroed(Around):
    """A hand-written backward pass that returns zero."""

    def forward(self, x: Tensor) -> Any:
        return self.net(_Backward.apply(x, 0.0))


class Reversed(Around):
    """A hand-written backward pass that returns the opposite."""

    def forward(self, x: Tensor) -> Any:
        return self.net(_Backward.apply(x, -1.0))


class Shattered(Around):
    """Adds ripples too small to change an answer and too steep for a gradient to mean anything."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x + 1e-3 * torch.sin(3e4 * x))


class Tired(Around):
    """Answers by the nearest input that it has seen at first, once it was asked often enough."""

    def __init__(self, patience: int, known: Tensor) -> None:
        super().__init__()
        self.asked = 0
        self.patience = patience
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Any:
        self.asked += len(x)
        if self.asked <= self.patience:
            return self.net(x)
        nearest = torch.cdist(x, self.known).argmin(1)
        return self.net(self.known[nearest]) + 0 * x.sum(1, keepdim=True)


class Fickle(Around):
    """Answers something else, with the same winner, once it was asked often enough."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.asked = 0
        self.patience = patience

    def forward(self, x: Tensor) -> Any:
        self.asked += len(x)
        logits = self.net(x)
        if self.asked <= self.patience:
            return logits
        return nn.functional.one_hot(logits.argmax(1), 3) * 5.0 + 0 * logits


class Purifying(Around):
    """Moves the input towards confidence before it answers, with gradients of its own."""

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            (step,) = torch.autograd.grad(self.net(z).logsumexp(1).sum(), z)
        return self.net(x + 0.01 * step.sign())


class Noisy(Around):
    """Adds noise to its input, other noise each time."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x + 0.02 * torch.randn_like(x))
