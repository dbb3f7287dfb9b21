"""Every attack against linear models, whose nearest adversarial points are known in closed form.

Inputs are scaled so that each of them is at distance 1 from its nearest boundary (L0 apart, which counts
features). An attack of minimum norm has to reach that distance within 5 % (L2, Linf) or 15 % (L1, L0); one of
maximum norm has to succeed at 1.05 of it and must not at 0.98. What the attacks below are held to is weaker,
for the reason beside each; nothing is ever allowed to succeed nearer than the closed form.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustml.inputs import InputSpec
from robustml.registry import Access, all_attacks
from robustml.threats import THREATS

SHAPES = [(12,), (4, 5), (3, 4, 4)]
CLASSES = [2, 3, 10]
EXACT = {"linf": 1.05, "l2": 1.05, "l1": 1.15, "l0": 1.15}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


@dataclass(frozen=True)
class Held:
    """What an attack is held to where that is not the rule.

    Attributes:
        why: The reason.
        factor: By norm, up to which multiple of the least distance the nearest point found may lie (for
            attacks of maximum norm: at which budget all inputs must be broken). Without one there is no such
            promise, and only the lower bound is tested.
        classes: The numbers of classes for which the factor is promised.
        options: Options to run it with.
    """

    why: str = ""
    factor: dict[str, float] = field(default_factory=dict)
    classes: tuple[int, ...] = (2, 3, 10)
    options: dict[str, Any] = field(default_factory=dict)


# Steps up the margin lead to some boundary, which need not be the nearest: attacks that do not choose among
# classes need starts until one of them leads there.
STARTS = {2: 5, 3: 25, 10: 400}
HELD = {
    "pgd": Held(factor=EXACT, options={"loss": "margin", "steps": 20}),
    "apgd": Held(factor=EXACT, options={"loss": "margin", "steps": 20}),
    "fgsm": Held(
        "one step is exact where there is one boundary; it cannot choose among several",
        factor={"linf": 1.05, "l2": 1.05},
        classes=(2,),
        options={"loss": "margin"},
    ),
    "noise": Held("in many dimensions a random point hardly ever goes the right way"),
    "square": Held(
        "random search comes near the corner of a box; bumps and sparse windows suit images, not directions",
        factor={"linf": 1.3},
        classes=(2, 3),
    ),
    "boundary": Held("a random walk along the boundary", factor={"l2": 2.0}),
    "hop-skip-jump": Held("estimates directions from labels", factor={"l2": 2.0, "linf": 2.5}),
    "rays": Held("tries sign vectors block by block", factor={"linf": 2.0}),
}


def problem(
    norm: str, shape: tuple[int, ...], classes: int
) -> tuple[nn.Module, Tensor, Tensor, InputSpec, Tensor]:
    """A linear model without bias, eight inputs with their labels, and the least distance of each."""
    generator = torch.Generator().manual_seed(100 * classes + len(shape))
    layer = nn.Linear(math.prod(shape), classes, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    model = nn.Sequential(nn.Flatten(), layer)
    x = torch.randn(64, *shape, generator=generator, dtype=torch.float64)
    width = 2.0 if norm == "l0" else 50.0
    spec = InputSpec(shape=shape, bounds=(-width, width), dtype="float64")
    x = x.clamp(-width, width)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    margins = (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], math.inf)
    gaps = (layer.weight[None] - layer.weight[y][:, None]).detach()
    if norm == "l0":
        return model, x[:8], y[:8], spec, fewest(x.flatten(1), gaps, margins, width)[:8]
    away = (margins / gaps.norm(p=DUAL[norm], dim=2).clamp_min(1e-12)).amin(1)
    # Those that lie close to a boundary would become too large for the range.
    rows = away.topk(8).indices
    x = x[rows] / away[rows].view(-1, *[1] * len(shape))
    assert (x.abs() < width / 2).all()
    return model, x, y[rows], spec, torch.ones_like(away[rows])


def fewest(x: Tensor, gaps: Tensor, margins: Tensor, width: float) -> Tensor:
    """How many features must change: the fewest whose best changes sum beyond the margin to some class."""
    best = torch.maximum(gaps * (width - x)[:, None], gaps * (-width - x)[:, None])
    total = best.sort(dim=2, descending=True).values.cumsum(2)
    return ((total <= margins[:, :, None]).sum(2) + 1).amin(1).double()


def options_of(name: str, restarts: int = 1) -> dict[str, Any]:
    """Everything that makes an attack look at all classes, and for the nearest point."""
    known = {option for option, _, _ in all_attacks()[name].parameters()}
    wanted = {"nearest": True, "classes": 9, "targets": 9, "restarts": restarts} | HELD.get(
        name, Held()
    ).options
    return {key: value for key, value in wanted.items() if key in known}


def promised(name: str, norm: str, classes: int) -> float | None:
    held = HELD.get(name, Held(factor=EXACT))
    return held.factor.get(norm) if classes in held.classes else None


def cases(*, minimum: bool) -> list[Any]:
    """Each attack under each norm, in every dimension; the full grid for those that use gradients is slow."""
    found = []
    for name, attack in all_attacks().items():
        for norm, i, j in itertools.product(sorted(attack.norms), range(3), range(3)):
            if attack.minimum != minimum or (i != j and attack.access is not Access.GRADIENT):
                continue
            label = f"{name}-{norm}-{i + 1}d-{CLASSES[j]}"
            marks = [] if i == j else [pytest.mark.slow]
            found.append(pytest.param(name, norm, SHAPES[i], CLASSES[j], id=label, marks=marks))
    return found


@pytest.mark.parametrize(("name", "norm", "shape", "classes"), cases(minimum=True))
def test_minimum_norm_attacks_reach_the_closed_form(run, name, norm, shape, classes) -> None:
    model, x, y, spec, away = problem(norm, shape, classes)
    threat = THREATS[norm](5.0).within(spec)
    z = run(name, model, x, y, threat, **options_of(name))
    broken = model(z).argmax(1) != y
    distance = threat.around(x).distance(z)
    assert (distance[broken] >= away[broken] * (1 - 1e-6)).all()
    factor = promised(name, norm, classes)
    if factor is not None:
        assert broken.all()
        assert (distance <= factor * away).all(), (distance / away).max()


@pytest.mark.parametrize(("name", "norm", "shape", "classes"), cases(minimum=False))
def test_maximum_norm_attacks_succeed_exactly_when_the_margin_allows_it(
    run, name, norm, shape, classes
) -> None:
    model, x, y, spec, away = problem(norm, shape, classes)
    below = THREATS[norm](0.98 if norm != "l0" else max(1.0, float(away.min()) - 1)).within(spec)
    z = run(name, model, x, y, below, **options_of(name))
    assert not (model(z).argmax(1) != y)[away > below.eps].any()
    factor = promised(name, norm, classes)
    if factor is not None:
        z = run(name, model, x, y, THREATS[norm](factor).within(spec), **options_of(name, STARTS[classes]))
        assert (model(z).argmax(1) != y).all()


def test_what_is_held_to_less_is_registered_and_says_why() -> None:
    assert HELD.keys() <= all_attacks().keys()
    assert all(held.why or held.factor is EXACT for held in HELD.values())
