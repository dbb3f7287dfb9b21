"""What guards are worth against who does not know of them, and whether attacks get through each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ...classifier import Model
from ...guarded import Guarded
from ...losses import is_wrong
from ...registry import find_attack
from ...threats import Threat
from ..attacking import Bench, Limits, Outcome, Rows, confirm, run_attack
from ..folder import Evidence, Record
from ..meter import Meter
from ..plan import Stage
from ..suite import unusable
from .common import Positions, record_of

__all__ = ["probe_components", "probe_oblivious"]

_SAMPLES = 32
_STEPS = 30
_QUERIES = 200


def probe_oblivious(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D18: the suite attacks the model without its guards, and the guarded one is shown what it found.

    Each attack works on the samples whose unguarded answer still stands, as in the suite itself. What fools
    the guarded model, too, is broken: an attacker who knows more can do this as well.
    """
    assert stage.threat is not None and bench.guarded is not None
    threat, bare = stage.threat, bench.guarded.bare
    unaware = _without(bench, bare)
    outcomes: list[Outcome] = []
    left = rows.correct
    for entry in bench.plan.suite.attack:
        if not len(left):
            break
        if unusable(entry, bare.access, threat.norm) is not None:
            continue
        key = f"{stage.key}/{entry.id}"
        outcome = run_attack(unaware, find_attack(entry.use), entry.options, threat, key, left, limits)
        outcomes.append(_shown(bench, threat, outcome))
        left = left[~outcome.broken.cpu().numpy()]
    facts = {"probed": float(len(rows.correct)), "fooled": float(len(rows.correct) - len(left))}
    record, evidence = record_of(stage, chunk, outcomes, rows.correct, facts)
    facts["transferred"] = float(len(record.broken))
    return record.model_copy(update={"facts": facts}), evidence


def _without(bench: Bench, bare: Model) -> Bench:
    """The bench with the unguarded model on it; one draw says enough, since nothing of it is believed."""
    plan = bench.plan
    if plan.randomness is not None:
        single = plan.randomness.model_copy(update={"draws": 2, "eot": 1})
        plan = plan.model_copy(update={"randomness": single})
    return dataclasses.replace(bench, plan=plan, model=bare)


def _shown(bench: Bench, threat: Threat, outcome: Outcome) -> Outcome:
    """What an attack on another model found, judged by this one."""
    positions = outcome.evidence.position
    x, y, _ = bench.batch(positions)
    ball = threat.around(x)
    # The meter of the attack knows nothing of this model, so it must not vouch for anything.
    idle = Meter(bench.model, ball, y)
    point = torch.from_numpy(outcome.evidence.x).to(x)
    seen = confirm(bench, idle, ball, y, positions, point, "complete")
    return dataclasses.replace(seen, meter=outcome.meter, checks=seen.checks + outcome.checks)


def probe_components(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, None]:
    """D16: each guard that changes inputs alone before the model, attacked with its gradient and without."""
    assert stage.threat is not None and bench.guarded is not None
    few = rows.first(_SAMPLES).correct
    record = Record(stage=stage.key, chunk=chunk, attempted=len(few))
    facts: dict[str, float] = {}
    outcomes: list[Outcome] = []
    for place, each in enumerate(bench.guarded.changing):
        alone = dataclasses.replace(bench, model=Guarded(bench.guarded.bare, [each]))
        right = _correct(alone, few)
        name = f"{place}:{each.name}"
        facts |= {f"probed {name}": float(len(right))}
        if not len(right):
            continue
        found = _attacked(alone, stage, name, right, limits)
        outcomes += found
        white = found[0].broken.cpu().numpy()
        facts[f"white {name}"] = float(white.sum())
        if len(found) > 1:
            facts[f"black {name}"] = float(found[1].broken.sum())
    update = {
        "forward": sum(outcome.meter.forward for outcome in outcomes),
        "backward": sum(outcome.meter.backward for outcome in outcomes),
        "checks": sum(outcome.checks for outcome in outcomes),
        "facts": facts,
    }
    return record.model_copy(update=update), None


def _correct(bench: Bench, positions: Positions) -> Positions:
    x, y, ids = bench.batch(positions)
    if not len(x):
        return positions
    right: Positions = positions[~is_wrong(bench.answers(x, y, ids, aimed=False), y).cpu().numpy()]
    return right


def _attacked(bench: Bench, stage: Stage, name: str, positions: Positions, limits: Limits) -> list[Outcome]:
    """A short attack along the declared derivative, then one through scores on what is left."""
    assert stage.threat is not None
    attacks: list[tuple[str, dict[str, Any]]] = [
        ("apgd", {"loss": "margin", "steps": _STEPS}),
        ("square", {"queries": _QUERIES}),
    ]
    outcomes: list[Outcome] = []
    left = positions
    for use, options in attacks:
        attack = find_attack(use)
        if stage.threat.norm not in attack.norms or attack.access > bench.model.access:
            break
        outcome = run_attack(bench, attack, options, stage.threat, f"{stage.key}/{name}/{use}", left, limits)
        outcomes.append(outcome)
        left = np.setdiff1d(left, outcome.evidence.position)
    return outcomes
