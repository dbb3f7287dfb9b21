"""Defects 4, 5 and 7 to 9: what is kept of an attack, what counts, and whom a sample's result depends on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Adapter, Case, Figure, Task, standing
from .models import Basins, Linear, Watched, inputs

__all__ = ["CASES", "boundary_points"]

ORDERS = {"cw": ("l2", 2), "ddn": ("l2", 2), "fmn": ("l2", 2), "ead": ("l1", 1)}
"""The norm that each minimum-norm attack makes small."""


def square_l1(adapter: Adapter) -> Figure:
    model = Linear(4).eval()
    x = inputs(6)
    task = Task(model, x, model.labels(x), eps=6.0, norm="l1")
    z = adapter.square(task, queries=200)
    moved = int((task.distance(z) > 1e-6).sum())
    return moved > 0, f"{moved} of {len(x)} inputs moved, {int(standing(task, z).sum())} stand"


def repaired_mistake(adapter: Adapter) -> Figure:
    """Four pairs: right to wrong, right to right, wrong to right, and wrong to another wrong class."""
    model = Linear(4).eval()
    pool = inputs(400)
    answers = model.labels(pool)
    right, other, third = (pool[answers == label] for label in (0, 1, 2))
    x = torch.stack([right[0], right[1], other[0], other[1]])
    z = torch.stack([other[2], right[2], right[3], third[0]])
    task = Task(model, x, torch.zeros(4, dtype=torch.int64), eps=1.0)
    counted = adapter.successes(task, z).tolist()
    # Whether a mistake that stays one is counted is a convention; a repaired one is no success under any.
    fair = counted[:3] == [True, False, False]
    return fair, f"a repaired mistake is {'' if counted[2] else 'not '}counted as a success"


def restarts_keep_success(adapter: Adapter) -> Figure:
    model, task = _basins(clean=-1.0)
    z = adapter.pgd(task, steps=10, restarts=8)
    seen = model.nearest[torch.inf] <= task.eps * (1 + 1e-4)
    lost = int((seen & ~task.wrong(z)).sum())
    return lost == 0, f"{lost} of the {int(seen.sum())} samples broken in some restart are returned unbroken"


def restarts_keep_mistake(adapter: Adapter) -> Figure:
    _, task = _basins(clean=0.2)
    z = adapter.pgd(task, steps=10, restarts=8)
    repaired = int((~task.wrong(z)).sum())
    return (
        repaired == 0,
        f"{repaired} of {len(z)} misclassified inputs are returned as correctly classified ones",
    )


def _basins(clean: float) -> tuple[Watched, Task]:
    plain = Basins(0.1, clean)
    x = plain.level(16)
    y = torch.zeros(len(x), dtype=torch.int64)
    model = Watched(plain, x, y).eval()
    return model, Task(model, x, y, eps=0.1)


def _mixed() -> Task:
    """A linear model under PGD, where a quarter of the labels are wrong and some of the rest hold."""
    model = Linear(4, size=0.2).eval()
    x = inputs(20)
    y = model.labels(x)
    y[:5] = (y[:5] + 1) % 4
    return Task(model, x, y, eps=0.02)


def accuracy(adapter: Adapter) -> Figure:
    task = _mixed()
    figure, kept = adapter.robust_accuracy(task, steps=20)
    clean = ~task.wrong(task.x)
    of_all = float(kept.double().mean())
    of_correct = float((kept & clean).sum() / clean.sum())
    if abs(figure - of_all) < 1e-6:
        return True, f"{100 * figure:.1f} % of all samples"
    if abs(figure - of_correct) < 1e-6:
        return True, f"{100 * figure:.1f} % of the samples that are correct before the attack"
    return False, f"{100 * figure:.1f} % where the returned points say {100 * of_all:.1f} %"


def resume(adapter: Adapter) -> Figure:
    task = _mixed()
    model = Watched(task.model, task.x, task.y).eval()

    def interrupt() -> None:
        model.fail_after = 12

    whole, resumed = adapter.resumed(Task(model, task.x, task.y, task.eps), interrupt)
    return whole == resumed, f"{100 * whole:.1f} % undisturbed, {100 * resumed:.1f} % cut off and resumed"


def _nearest(adapter: Adapter, name: str) -> Figure:
    norm, order = ORDERS[name]
    task = near_and_far(norm)
    model = Watched(task.model, task.x, task.y).eval()
    z = adapter.minimum_norm(Task(model, task.x, task.y, task.eps, norm), name)
    seen = model.nearest[order]
    broken = task.wrong(z)
    lost = int((seen.isfinite() & ~broken).sum())
    further = (task.distance(z) / seen)[broken & seen.isfinite()]
    worst = float(further.max()) if len(further) else float("nan")
    figure = f"{lost} lost, the others at most {worst:.3f} times as far as the nearest adversarial point seen"
    return lost == 0 and worst <= 1.02, figure


def nearest_cw(adapter: Adapter) -> Figure:
    return _nearest(adapter, "cw")


def nearest_ddn(adapter: Adapter) -> Figure:
    return _nearest(adapter, "ddn")


def nearest_fmn(adapter: Adapter) -> Figure:
    return _nearest(adapter, "fmn")


def nearest_of_two(adapter: Adapter) -> Figure:
    """Attack A is nearer for the first half, B for the second, and each fails on one sample."""
    task = near_and_far("l2")
    away = boundary_points(task)
    half = (torch.arange(len(task.x)) < len(task.x) // 2).view(-1, 1, 1, 1)
    near, far = task.x + 1.1 * (away - task.x), task.x + 1.3 * (away - task.x)
    first, second = torch.where(half, near, far), torch.where(half, far, near)
    first[0], second[-1] = task.x[0], task.x[-1]
    best = torch.where(half, near, far).where(half, near)
    best[0], best[-1] = second[0], first[-1]
    assert task.wrong(best).all()
    z = adapter.nearest_of(task, [first, second])
    same = int((task.distance(z) <= task.distance(best) * (1 + 1e-4)).logical_and(task.wrong(z)).sum())
    return same == len(z), f"the nearest adversarial point is kept for {same} of {len(z)} samples"


def boundary_points(task: Task) -> Tensor:
    """The nearest point (L2) of the decision boundary of a linear model, watched or not: (n, 1, 8, 8)."""
    model = task.model.model if isinstance(task.model, Watched) else task.model
    assert isinstance(model, Linear)
    weight, bias = model.weight.detach(), model.bias.detach()
    rows = torch.arange(len(task.x))
    logits = task.x.flatten(1).double() @ weight.T + bias
    gap = logits[rows, task.y][:, None] - logits
    slope = weight[None] - weight[task.y][:, None]
    length = (gap / slope.norm(dim=2).clamp_min(1e-9)).index_put(
        (rows, task.y), torch.tensor(torch.inf).double()
    )
    which = length.argmin(1)
    step = slope[rows, which] * (gap[rows, which] / slope[rows, which].square().sum(1))[:, None]
    return task.x + step.view_as(task.x).float()


def near_and_far(norm: str) -> Task:
    """Samples at very different distances from the boundary, within (0.2, 0.8) so that no bound cuts in."""
    model = Linear(4, size=0.5).eval()
    pool = inputs(200, low=0.3, high=0.7)
    y = model.labels(pool)
    with torch.no_grad():
        top = model(pool).topk(2, dim=1).values
    order = (top[:, 0] - top[:, 1]).argsort()
    rows = order[torch.tensor([2, 40, 80, 120, 160, 190, 197, 199])]
    return Task(model, pool[rows], y[rows], eps=1.0, norm=norm)


def _alone(name: str) -> Callable[[Adapter], Figure]:
    def check(adapter: Adapter) -> Figure:
        norm, _ = ORDERS[name]
        task = near_and_far(norm)
        together = adapter.minimum_norm(task, name)
        alone = torch.cat([adapter.minimum_norm(task.only(row), name) for row in range(len(task.x))])
        turned = int((task.wrong(together) != task.wrong(alone)).sum())
        both = task.wrong(together) & task.wrong(alone)
        a, b = task.distance(together)[both], task.distance(alone)[both]
        gap = float(((a - b).abs() / b).max()) if len(b) else 0.0
        figure = (
            f"{turned} of {len(alone)} samples change their verdict, distances by up to {100 * gap:.2g} %"
        )
        return turned == 0 and gap <= 1e-3, figure

    check.__name__ = f"{name}_alone"
    return check


CASES = [
    Case(
        "square-l1",
        4,
        "Square under L1 moves the input, or the library says that it cannot.",
        square_l1,
        refusal=True,
    ),
    Case(
        "repaired-mistake",
        5,
        "An input that was misclassified and is correctly classified afterwards is no success.",
        repaired_mistake,
    ),
    Case(
        "restarts-keep-success",
        5,
        "PGD with eight restarts returns an adversarial point for every sample that some restart broke.",
        restarts_keep_success,
    ),
    Case(
        "restarts-keep-mistake",
        5,
        "PGD with eight restarts does not turn clean mistakes into correct classifications.",
        restarts_keep_mistake,
    ),
    Case(
        "robust-accuracy",
        7,
        "The library's own robust accuracy is the one that its points show.",
        accuracy,
    ),
    Case("resume", 7, "An evaluation that was cut off and goes on ends with the same figure.", resume),
    Case(
        "nearest-cw",
        8,
        "Carlini-Wagner returns for each sample the nearest adversarial point that it saw.",
        nearest_cw,
    ),
    Case(
        "nearest-ddn",
        8,
        "DDN returns for each sample the nearest adversarial point that it saw.",
        nearest_ddn,
    ),
    Case(
        "nearest-fmn",
        8,
        "FMN returns for each sample the nearest adversarial point that it saw.",
        nearest_fmn,
    ),
    Case(
        "nearest-of-two",
        8,
        "Of two minimum-norm attacks, the nearer adversarial point is kept sample by sample.",
        nearest_of_two,
    ),
    Case(
        "cw-alone",
        9,
        "Carlini-Wagner finds the same for a sample alone as in a batch of eight.",
        _alone("cw"),
    ),
    Case("ead-alone", 9, "EAD finds the same for a sample alone as in a batch of eight.", _alone("ead")),
]
