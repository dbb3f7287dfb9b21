"""Every attack of robustml under each of its norms, at sizes that suit a measurement of time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustml as rml
from robustml.registry import Access, Logits, all_attacks, find_attack
from robustml.sampling import Streams
from robustml.stress.meter import Meter
from robustml.threats import THREATS

__all__ = ["EPS", "NORMS", "Case", "cases", "named", "run"]

NORMS = ("linf", "l2", "l1", "l0")
EPS = {"linf": 0.3, "l2": 1.5, "l1": 10.0, "l0": 20.0}
"""Budgets on MNIST."""

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "alma": [{"steps": 100}],
    "apgd": [{"loss": "ce"}, {"loss": "margin"}, {"loss": "dlr"}],
    "apgd-t": [{"steps": 30, "targets": 3}],
    "boundary": [{"queries": 300}],
    "carlini-wagner": [{"binary_steps": 3, "steps": 30}],
    "deepfool": [{"steps": 10}],
    "ead": [{"binary_steps": 3, "steps": 30}],
    "fab": [{"steps": 20, "targets": 3}],
    "hop-skip-jump": [{"queries": 300}],
    "noise": [{}],
    "pgd": [{"steps": 40}],
    "rays": [{"queries": 300}],
    "relay": [{"legs": 6, "near": None}],
    "square": [{"queries": 300}],
    "superdeepfool": [{"steps": 10}],
}
"""What is not at its default; an attack that is not named here runs with its defaults."""


@dataclass(frozen=True)
class Case:
    """One attack under one norm. A minimum-norm attack goes on within the budget, so that nobody leaves."""

    name: str
    norm: str
    options: dict[str, Any]

    @property
    def shown(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.options.items())


def cases(names: Collection[str], norms: Collection[str]) -> list[Case]:
    """The cases of some attacks under some norms, by name."""
    found = []
    for name in sorted(names):
        attack = find_attack(name)
        for norm in NORMS:
            if norm in attack.norms and norm in norms:
                found += [Case(name, norm, options) for options in OPTIONS.get(name, [{}])]
    return found


def named(access: Collection[Access]) -> list[str]:
    """The attacks that need one of these accesses."""
    return [name for name, attack in all_attacks().items() if attack.access in access]


def run(model: Logits, x: Tensor, y: Tensor, case: Case, *, eps: float | None = None) -> Tensor:
    """One attack on one batch, as the harness runs it: through the meter that counts and watches.

    Args:
        model: The model, ready for attack.
        x: Inputs (n, *shape) in [0, 1].
        y: Labels int64 (n,).
        case: What to run.
        eps: The budget; that of `EPS` if not given.
    """
    attack = find_attack(case.name)
    spec = rml.InputSpec(shape=tuple(x.shape[1:]))
    threat = THREATS[case.norm](EPS[case.norm] if eps is None else eps).within(spec)
    streams = Streams.derive(0, case.name, torch.arange(len(x), device=x.device))
    target = Meter(model, threat.around(x), y)
    options = {**case.options, **({"nearest": True} if attack.minimum else {})}
    return attack.function(target, x, y, threat=threat, streams=streams, **options)
