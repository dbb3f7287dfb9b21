"""For each case of the suite, a library with just that defect; and one that does right in all of them.

They show that a case can fail, that it can be passed, and that neither depends on any library's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from known_defects import Adapter, Task, Verdict
from known_defects.base import standing
from known_defects.bookkeeping import boundary_points
from torch import Tensor, nn


def gradient(task: Task, z: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    z = z.detach().requires_grad_()
    logits = task.model(z)
    value = loss(logits) if loss else nn.functional.cross_entropy(logits, task.y, reduction="sum")
    (slope,) = torch.autograd.grad(value, z)
    return slope.detach()


def steps_of(task: Task, steps: int, *, target: int | None = None, random: bool = True) -> list[Tensor]:
    """The iterates of plain PGD under Linf."""
    noise = (2 * torch.rand_like(task.x) - 1) * task.eps if random else torch.zeros_like(task.x)
    z = (task.x + noise).clamp(0, 1)
    loss = None if target is None else lambda logits: logits[:, target].sum()
    path = []
    for _ in range(steps):
        slope = gradient(task, z, loss)
        path.append(z)
        z = task.x + (z + 2.5 * task.eps / steps * slope.sign() - task.x).clamp(-task.eps, task.eps)
        z = z.clamp(0, 1)
    return [*path, z]


class Right(Adapter):
    """A library in a few lines, right where the cases look."""

    title = "the reference"

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        best = task.x.clone()
        for _ in range(restarts):
            for z in steps_of(task, steps):
                fresh = task.wrong(z) & ~task.wrong(best)
                best = torch.where(fresh.view(-1, 1, 1, 1), z, best)
        return best

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        return self.pgd(task, steps=steps)

    def ensemble(self, task: Task) -> Verdict:
        left = standing(task, task.x)
        for target in range(task.classes):
            left &= standing(task, steps_of(task, 20, target=target)[-1])
        return Verdict(left, declared=20.0 * task.classes)

    def square(self, task: Task, *, queries: int) -> Tensor:
        raise ValueError("only linf and l2")

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        z = task.x + 1.01 * (boundary_points(task) - task.x)
        gradient(task, z)  # a case looks at the points where a gradient was asked for
        return z

    def nearest_of(self, task: Task, points: list[Tensor]) -> Tensor:
        best = points[0]
        for z in points[1:]:
            nearer = (task.distance(z) < task.distance(best)) | ~task.wrong(best)
            best = torch.where((task.wrong(z) & nearer).view(-1, 1, 1, 1), z, best)
        return best

    def defended(self, task: Task, defense: Callable[[Tensor], Tensor], *, steps: int) -> Verdict:
        return Verdict(task.wrong(task.x), flag=None)

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        flat = float(gradient(task, task.x).abs().max()) == 0
        return Verdict(standing(task, task.x), flag="the gradient is zero" if flat else None)

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        class Behind(nn.Module):
            def forward(self, z: Tensor) -> Any:
                return task.model((z - mean) / std)

        return self.pgd(Task(Behind(), task.x, task.y, task.eps), steps=steps)

    def successes(self, task: Task, z: Tensor) -> Tensor:
        return task.wrong(z)

    def squeezed(self, task: Task, *, bits: int) -> Tensor:
        levels = 2**bits - 1
        logits: Tensor = task.model((task.x * levels).round() / levels)
        return logits.detach()

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        kept = ~task.wrong(self.pgd(task, steps=steps))
        return float(kept.float().mean()), kept

    def resumed(self, task: Task, interrupt: Callable[[], None]) -> tuple[float, float]:
        return 0.5, 0.5

    def default_budgets(self) -> dict[str, float]:
        return {"a": 0.1, "b": 0.1}


class FewSteps(Right):
    """Defect 1: a tenth of the steps."""

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        return super().pgd(task, steps=max(steps // 10, 1), restarts=restarts)

    def ensemble(self, task: Task) -> Verdict:
        z = steps_of(task, 10)[-1]
        return Verdict(standing(task, z), declared=100.0)


class Untargeted(Right):
    """Defect 2: an ensemble that follows one loss."""

    def ensemble(self, task: Task) -> Verdict:
        return Verdict(standing(task, steps_of(task, 50)[-1]))


class LastIterate(Right):
    """Defect 2: the last iterate, whatever came before."""

    def apgd(self, task: Task, *, steps: int) -> Tensor:
        # Of the first step of Auto-PGD, so long that it crosses the ball; then on along the loss.
        z, path = task.x, []
        for length in (2.0, 1.25, *[0.25] * steps):
            moved = z + length * task.eps * gradient(task, z).sign()
            z = (task.x + (moved - task.x).clamp(-task.eps, task.eps)).clamp(0, 1)
            path.append(z)
        return path[-1]


class Silent(Right):
    """Defect 3: no gradient, no word."""

    def defended(self, task: Task, defense: Callable[[Tensor], Tensor], *, steps: int) -> Verdict:
        return Verdict(torch.ones(len(task.x), dtype=torch.bool))

    def gradient_verdict(self, task: Task, *, steps: int) -> Verdict:
        return Verdict(standing(task, steps_of(task, steps, random=False)[-1]))


class Unmoved(Right):
    """Defect 4: a norm that is accepted and does nothing."""

    def square(self, task: Task, *, queries: int) -> Tensor:
        return task.x.clone()


class AnyChange(Right):
    """Defect 5: success is another answer than before, and the last success is kept."""

    def successes(self, task: Task, z: Tensor) -> Tensor:
        with torch.no_grad():
            return task.model(z).argmax(1) != task.model(task.x).argmax(1)

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        best = steps_of(task, steps)[-1]
        for _ in range(restarts - 1):
            z = steps_of(task, steps)[-1]
            best = torch.where(self.successes(task, z).view(-1, 1, 1, 1), z, best)
        return best


class LastRestart(Right):
    """Defect 5: each restart overwrites what the one before it found."""

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        for _ in range(restarts):
            z = steps_of(task, steps)[-1]
        return z


class Doubles(Right):
    """Defect 6: double precision where single came in."""

    def squeezed(self, task: Task, *, bits: int) -> Tensor:
        levels = 2**bits - 1
        return task.model((task.x.double() * levels).round() / levels)

    def pgd(self, task: Task, *, steps: int, restarts: int = 1) -> Tensor:
        task.model(task.x.double())
        return task.x


class NoMean(Right):
    """Defect 7: the mean of a bool array, and a state that is not read again."""

    def robust_accuracy(self, task: Task, *, steps: int) -> tuple[float, Tensor]:
        kept = ~task.wrong(task.x)
        return float(kept.mean()), kept

    def resumed(self, task: Task, interrupt: Callable[[], None]) -> tuple[float, float]:
        return 0.5, 1.0


class WholeBatch(Right):
    """Defects 8 and 9: one norm for the batch, and a stop when the sum of the losses says so."""

    def minimum_norm(self, task: Task, name: str) -> Tensor:
        near, far = (task.x + k * (boundary_points(task) - task.x) for k in (1.01, 1.5))
        gradient(task, near)
        return near if len(task.x) == 1 else far

    def nearest_of(self, task: Task, points: list[Tensor]) -> Tensor:
        return min(points, key=lambda z: float((z - task.x).norm()))


class OddBudget(Right):
    """Defect 10: one default that is another, and a defense that the attack goes around."""

    def default_budgets(self) -> dict[str, float]:
        return {"a": 4 / 255, "b": 4 / 255, "ensemble": 0.3}

    def normalized(self, task: Task, *, mean: float, std: float, steps: int) -> Tensor:
        return self.pgd(task, steps=steps)


BROKEN: dict[str, type[Adapter]] = {
    "pgd-steps": FewSteps,
    "apgd-steps": FewSteps,
    "ensemble-budget": FewSteps,
    "decoy": Untargeted,
    "silent-success": LastIterate,
    "declared-backward": Silent,
    "hidden-gradient": Silent,
    "square-l1": Unmoved,
    "repaired-mistake": AnyChange,
    "restarts-keep-success": LastRestart,
    "restarts-keep-mistake": AnyChange,
    "squeezing": Doubles,
    "precision": Doubles,
    "robust-accuracy": NoMean,
    "resume": NoMean,
    "nearest-cw": WholeBatch,
    "nearest-ddn": WholeBatch,
    "nearest-fmn": WholeBatch,
    "nearest-of-two": WholeBatch,
    "cw-alone": WholeBatch,
    "ead-alone": WholeBatch,
    "default-budgets": OddBudget,
    "normalization": OddBudget,
}
