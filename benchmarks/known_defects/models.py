"""Models so small that what an attack must find is known in closed form, and a wrapper that watches it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SHAPE", "Basins", "Crest", "Decoy", "Linear", "Rough", "Rounded", "Watched", "inputs"]

SHAPE = (1, 8, 8)
FEATURES = 64


def inputs(n: int, seed: int = 1, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Inputs drawn uniformly: float32 (n, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, *SHAPE, generator=generator)


def _signs(seed: int) -> Tensor:
    """A direction of as many +1 as -1, in no pattern that a square window could follow: (64,)."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.ones(FEATURES)
    signs[torch.randperm(FEATURES, generator=generator)[: FEATURES // 2]] = -1
    return signs


class Linear(nn.Module):
    """Logits that are linear in the input, computed in double precision.

    Args:
        classes: How many.
        lead: Added to the logit of class 0.
        size: Scale of the weights.
    """

    def __init__(self, classes: int = 4, *, seed: int = 0, lead: float = 0.0, size: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = size * torch.randn(classes, FEATURES, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(-weight.sum(1) / 2)
        self.lead = lead

    def forward(self, z: Tensor) -> Tensor:
        logits = z.flatten(1).double() @ self.weight.T + self.bias
        first = torch.zeros_like(logits)
        first[:, 0] = self.lead
        return (logits + first).float()

    def labels(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x).argmax(1)


class _Along(nn.Module):
    """Logits that depend on one coordinate: u(x) = <signs, x - 0.5> / (64 * eps), in [-1, 1] at x = 0.5."""

    def __init__(self, eps: float, seed: int = 0) -> None:
        super().__init__()
        self.signs = nn.Parameter(_signs(seed) / (FEATURES * eps))
        self.eps = eps

    def u(self, z: Tensor) -> Tensor:
        along: Tensor = (z.flatten(1) - 0.5) @ self.signs
        return along

    def level(self, n: int) -> Tensor:
        """Inputs at u = 0, far from each other: (n, 1, 8, 8)."""
        spread = inputs(n, seed=2, low=-0.3, high=0.3).flatten(1)
        with torch.no_grad():
            signs = self.signs.sign()
            return (0.5 + spread - (spread @ signs)[:, None] * signs / FEATURES).view(-1, *SHAPE)

    def moved(self, x: Tensor, u: float) -> Tensor:
        """Each input at the far end of its ball, at coordinate u = -1 or 1."""
        with torch.no_grad():
            return x + u * self.eps * self.signs.sign().view(SHAPE)


class Decoy(_Along):
    """Four classes, of which the nearest wrong one cannot be reached and the next one can.

    Up to u = 1 class 1 comes ever closer to the true class 0 and never gets there: every attack that
    follows its best loss goes that way. Class 2 wins below u = -0.8.
    """

    def forward(self, z: Tensor) -> Tensor:
        u = self.u(z)
        decoy = -torch.exp(-3 * (u + 0.5))
        return torch.stack([0 * u, decoy, -8 * (u + 0.8), -7 + 0 * u], dim=1)


class Basins(_Along):
    """Two classes; class 1 wins on the right, and an attack that starts on the left stays there.

    From the clean point the lead of class 1 rises to the right. To the left it falls into a valley, and from
    there rises to a summit that is still below zero.

    Args:
        eps: The budget.
        clean: The lead of class 1 at the clean point, u = 0: above zero it is a clean mistake.
    """

    def __init__(self, eps: float, clean: float, seed: int = 0) -> None:
        super().__init__(eps, seed)
        self.clean = clean

    def forward(self, z: Tensor) -> Tensor:
        u = 30 * self.u(z)
        right = self.clean + 2 * u.clamp_min(0).tanh()
        slope = self.clean + (self.clean + 1) * 2 * u.clamp(-0.5, 0)
        summit = slope + 0.6 * (u + 0.5).clamp_max(0).neg().tanh()
        lead = torch.where(u > 0, right, summit)
        return torch.stack([0 * lead, lead], dim=1)


class Rough(nn.Module):
    """Four classes, of which class 0 wins everywhere, under waves that cross each other in many directions.

    No step repeats an earlier one, so that an attack which notices that it goes in circles goes on as well.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.directions = nn.Parameter(100 * torch.randn(4, FEATURES, 8, generator=generator))
        self.lead = 6.0

    def forward(self, z: Tensor) -> Tensor:
        waves = 0.2 * torch.einsum("nf,kfw->nkw", z.flatten(1), self.directions).sin().sum(2)
        return torch.cat([waves[:, :1] + self.lead, waves[:, 1:]], dim=1)


class Crest(_Along):
    """Six classes; the first step leads onto a crest where class 1 wins, and cross-entropy leads off it.

    At the far left four wrong classes are nearly as likely as the true one: the highest cross-entropy of all,
    and no mistake.
    """

    def forward(self, z: Tensor) -> Tensor:
        u = self.u(z)
        crest = 0.5 * torch.exp(-((u - 0.9) / 0.3).square()) - 2 * torch.sigmoid(-8 * (u - 0.5)) - 0.1
        others = 2.9 * torch.sigmoid(-12 * (u + 0.6)) - 3
        return torch.stack([0 * u, crest, others, others, others, others], dim=1)


class Rounded(nn.Module):
    """A rounding layer before a model: one bit per feature, and a gradient of zero."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.inner(z.round())
        return logits


class Watched(nn.Module):
    """Count the passes of a model, and note which samples an attack saw broken, and how near.

    A point belongs to the input that it is nearest to, since attacks cut up and reorder their batches. Only
    points where a gradient was asked for are noted: iterates of an attack, not the probes of a line search.

    Args:
        model: The model.
        x: The inputs under attack (n, 1, 8, 8), further from each other than an attack moves them.
        y: Labels (n,).
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.model = model
        self.x, self.y = x, y
        self.fail_after: int | None = None
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self.forward_passes = self.backward_passes = 0
        self.dtypes: set[torch.dtype] = set()
        self.nearest = {order: torch.full((len(self.x),), torch.inf) for order in (1, 2, torch.inf)}

    def forward(self, z: Tensor) -> Tensor:
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise KeyboardInterrupt
        logits: Tensor = self.model(z)
        self.forward_passes += len(z)
        self.dtypes.add(z.dtype)
        if logits.requires_grad:
            logits.register_hook(self._backward)
            self._note(z.detach(), logits.detach())
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)

    def _note(self, z: Tensor, logits: Tensor) -> None:
        moved = (z.float()[:, None] - self.x[None]).flatten(2)
        rows = moved.norm(dim=2).argmin(1)
        mine = moved[torch.arange(len(z)), rows]
        inside = ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
        wrong = (logits.argmax(1) != self.y[rows]) & inside
        for order, nearest in self.nearest.items():
            distance = torch.linalg.vector_norm(mine, ord=order, dim=1)
            nearest.scatter_reduce_(0, rows[wrong], distance[wrong], "amin")
