"""Defects 1 to 3: budgets that are not spent, ensembles that are weaker than their name, hidden gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Adapter, Case, Figure, Task, Verdict, standing
from .models import Crest, Decoy, Linear, Rough, Rounded, Watched, inputs

__all__ = ["CASES"]


def _steps(adapter: Adapter, attack: str) -> Figure:
    """Gradient passes per sample, on a model that nothing breaks, for two step counts."""
    seen = []
    x, y = inputs(4), torch.zeros(4, dtype=torch.int64)
    for steps in (7, 30):
        model = Watched(Rough(), x, y).eval()
        run = adapter.pgd if attack == "pgd" else adapter.apgd
        run(Task(model, x, y, eps=0.1), steps=steps)
        seen.append((steps, model.backward_passes / len(x)))
    right = all(steps <= passes <= steps + 1 for steps, passes in seen)
    return right, ", ".join(f"{passes:g} gradient passes for {steps} steps" for steps, passes in seen)


def pgd_steps(adapter: Adapter) -> Figure:
    return _steps(adapter, "pgd")


def apgd_steps(adapter: Adapter) -> Figure:
    return _steps(adapter, "apgd")


def ensemble_budget(adapter: Adapter) -> Figure:
    x, y = inputs(2), torch.zeros(2, dtype=torch.int64)
    model = Watched(Linear(4, lead=12.0, size=0.05), x, y).eval()
    verdict = adapter.ensemble(Task(model, x, y, eps=0.1))
    passes = model.backward_passes / len(x)
    if verdict.declared is None:
        return True, f"{passes:g} gradient passes per sample; it promises no number"
    return (
        passes >= verdict.declared,
        f"{passes:g} gradient passes per sample of {verdict.declared:g} promised",
    )


def decoy(adapter: Adapter) -> Figure:
    model = Decoy(eps=0.1).eval()
    x = model.level(4)
    y = torch.zeros(len(x), dtype=torch.int64)
    task = Task(model, x, y, eps=0.1)
    assert standing(task, x).all() and not standing(task, model.moved(x, -1)).any()
    left = int(adapter.ensemble(task).standing.sum())
    return left == 0, f"{left} of {len(x)} samples stand that one targeted attack breaks"


def silent_success(adapter: Adapter) -> Figure:
    plain = Crest(eps=0.1)
    x = plain.level(32)
    y = torch.zeros(len(x), dtype=torch.int64)
    model = Watched(plain, x, y).eval()
    task = Task(model, x, y, eps=0.1)
    z = adapter.apgd(task, steps=10)
    seen = model.nearest[torch.inf] <= task.eps * (1 + 1e-4)
    lost = int((seen & standing(task, z)).sum())
    return lost == 0, f"{lost} of the {int(seen.sum())} samples that it saw broken are returned unbroken"


def near_half(n: int = 16) -> Tensor:
    """Inputs on the way from one bit to the other, further than a random start leads and nearer than eps."""
    generator = torch.Generator().manual_seed(3)
    side = torch.randint(0, 2, (n, 1, 8, 8), generator=generator) * 2 - 1
    return 0.5 + 0.2 * side.float()


def _rounding() -> tuple[Linear, Tensor, Tensor]:
    """A linear model, inputs, and labels that hold with and without rounding.

    The sign of the gradient moves every pixel across one half, which is the worst that can be done: both the
    model itself and the model behind the rounding are then wrong on every input.
    """
    inner = Linear(4).eval()
    x = near_half(200)
    y = inner.labels(x.round())
    keep = inner.labels(x) == y
    worst = torch.zeros_like(keep)
    for other in range(4):
        push = (inner.weight[other] - inner.weight[y]).detach().sign().view_as(x).float()
        worst |= inner.labels((x + 0.3 * push).round()) == other
        keep &= (other == y) | (inner.labels(x + 0.3 * push) != y)
    rows = (keep & worst).nonzero()[:16, 0]
    return inner, x[rows], y[rows]


def _broken_or_flagged(verdict: Verdict) -> Figure:
    left, n = int(verdict.standing.sum()), len(verdict.standing)
    flag = f"; says: {verdict.flag}" if verdict.flag else "; no warning" if left else ""
    return left == 0 or verdict.flag is not None, f"{left} of {n} breakable samples stand{flag}"


def declared_backward(adapter: Adapter) -> Figure:
    inner, x, y = _rounding()
    return _broken_or_flagged(adapter.defended(Task(inner, x, y, eps=0.3), torch.round, steps=20))


def hidden_gradient(adapter: Adapter) -> Figure:
    inner, x, y = _rounding()
    return _broken_or_flagged(adapter.gradient_verdict(Task(Rounded(inner).eval(), x, y, eps=0.3), steps=20))


CASES = [
    Case("pgd-steps", 1, "PGD makes the gradient steps that it was told to make.", pgd_steps),
    Case("apgd-steps", 1, "Auto-PGD makes the gradient steps that it was told to make.", apgd_steps),
    Case(
        "ensemble-budget",
        1,
        "The default ensemble spends at least the gradient passes that its name or its report promises.",
        ensemble_budget,
    ),
    Case(
        "decoy",
        2,
        "The default ensemble breaks a model whose nearest wrong class is out of reach, but not the next.",
        decoy,
    ),
    Case(
        "silent-success",
        2,
        "Auto-PGD returns an adversarial point for every sample that it saw broken on its way.",
        silent_success,
    ),
    Case(
        "declared-backward",
        3,
        "PGD through a rounding defense with the identity as its declared backward pass breaks it or warns.",
        declared_backward,
    ),
    Case(
        "hidden-gradient",
        3,
        "PGD on a module that rounds its inputs, so that every gradient is zero, breaks it or warns.",
        hidden_gradient,
    ),
]
