"""Attacks beside the suite, whose order of strength is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...registry import Access, find_attack
from ..attacking import Bench, Limits, Outcome, Rows, run_attack
from ..folder import Evidence, Record
from ..plan import Stage

__all__ = ["probe_ordering", "probe_unbounded"]

Positions = np.ndarray[Any, np.dtype[np.int64]]


def probe_ordering(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence]:
    """D10: what a weak attack breaks, a stronger one must break; neither may break what the suite left."""
    threat = stage.threat
    assert threat is not None

    def attack(name: str, positions: Positions, **options: Any) -> Outcome:
        return run_attack(bench, find_attack(name), options, threat, f"{stage.key}/{name}", positions, limits)

    facts, outcomes = {"probed": float(len(rows.correct))}, []
    if bench.model.access is Access.GRADIENT and threat.norm in find_attack("pgd").norms:
        if threat.norm in find_attack("fgsm").norms:
            outcomes.append(attack("fgsm", rows.correct))
        weak = np.concatenate([np.empty(0, np.int64), *(outcome.evidence.position for outcome in outcomes)])
        strong = attack("pgd", np.union1d(weak, rows.standing), loss="margin")
        outcomes.insert(0, strong)
        missed = np.setdiff1d(weak, strong.evidence.position)
        facts |= {"weak": float(len(weak)), "missed": float(len(missed))}
        facts["overlooked"] = float(len(_joined(outcomes, rows.standing).position))
    random = attack("noise", rows.standing, draws=bench.plan.suite.diagnostics.noise_draws)
    facts |= {"noise_attempted": float(len(rows.standing)), "noise_broken": float(random.broken.sum())}
    outcomes.append(random)
    evidence = _joined(outcomes, rows.standing)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.standing),
        broken=evidence.position.tolist(),
        forward=sum(outcome.meter.forward for outcome in outcomes),
        backward=sum(outcome.meter.backward for outcome in outcomes),
        checks=sum(outcome.checks for outcome in outcomes),
        facts=facts,
    )
    return record, evidence


def _joined(outcomes: list[Outcome], among: np.ndarray[Any, Any]) -> Evidence:
    """One counterexample for each of the positions `among` that an attack broke; earlier attacks first."""
    columns = {
        name: np.concatenate([getattr(outcome.evidence, name) for outcome in outcomes])
        for name in vars(outcomes[0].evidence)
    }
    positions, first = np.unique(columns["position"], return_index=True)
    kept = first[np.isin(positions, among)]
    return Evidence(**{name: column[kept] for name, column in columns.items()})


def probe_unbounded(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, None]:
    """D13: with a budget that reaches every valid input, nothing but a constant answer can stand."""
    assert stage.threat is not None
    # Constraints may protect a sample for good; the question here is whether the attack finds its way.
    spec = dataclasses.replace(bench.plan.spec, immutable=(), integer=(), one_hot=())
    threat = stage.threat.within(spec).unbounded()
    name, options = ("apgd", {"loss": "margin", "steps": 50})
    if bench.model.access is not Access.GRADIENT:
        name, options = ("square", {"queries": 500})
    attack = find_attack(name)
    if threat.norm not in attack.norms:
        return Record(stage=stage.key, chunk=chunk), None
    outcome = run_attack(bench, attack, options, threat, stage.key, rows.correct, limits)
    facts = {"probed": float(len(rows.correct)), "standing": float((~outcome.broken).sum())}
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.correct),
        forward=outcome.meter.forward,
        backward=outcome.meter.backward,
        checks=outcome.checks,
        facts=facts,
    )
    return record, None
