"""Attacks beside the suite, whose order of strength is known, with the true gradient and with surrogates."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from ...registry import Access, find_attack
from ...surrogates import KINDS
from ..attacking import Bench, Limits, Outcome, Rows, run_attack
from ..folder import Evidence, Record
from ..plan import Stage
from ..probing import follows_surrogates
from .common import Positions, joined, record_of, smoothing

__all__ = ["probe_ordering", "probe_unbounded"]

_STEPS = 20
# How many of the samples that only surrogates break are asked which operation it was.
_EXPLAINED = 32


def probe_ordering(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, Evidence | None]:
    """D10, D18, D22: what a weak attack breaks, a stronger one must break, and none what the suite left.

    One gradient step, then PGD from the same start along the true gradient and along the surrogates; where
    these break more, they are tried one family of operations at a time. Random points come last.
    """
    threat = stage.threat
    assert threat is not None
    facts: dict[str, float] = {"probed": float(len(rows.correct))}
    outcomes: list[Outcome] = []
    if bench.model.access is Access.GRADIENT and threat.norm in find_attack("pgd").norms:
        outcomes = _gradient_attacks(bench, stage, rows, limits, facts)
    noise = {"draws": bench.plan.suite.diagnostics.noise_draws}
    key = f"{stage.key}/noise"
    random = run_attack(bench, find_attack("noise"), noise, threat, key, rows.standing, limits)
    facts |= {"noise_attempted": float(len(rows.standing)), "noise_broken": float(random.broken.sum())}
    outcomes.append(random)
    return record_of(stage, chunk, outcomes, rows.standing, facts)


def _gradient_attacks(
    bench: Bench, stage: Stage, rows: Rows, limits: Limits, facts: dict[str, float]
) -> list[Outcome]:
    threat = stage.threat
    assert threat is not None
    weak = np.empty(0, np.int64)
    outcomes = []
    if threat.norm in find_attack("fgsm").norms:
        fgsm = find_attack("fgsm")
        outcomes.append(run_attack(bench, fgsm, {}, threat, f"{stage.key}/fgsm", rows.correct, limits))
        weak = outcomes[0].evidence.position
    plain = _descend(bench, stage, rows.correct, limits)
    seen: Counter[str] = Counter()
    smooth = _descend(bench, stage, rows.correct, limits, seen=seen)
    strong, other = plain.evidence.position, smooth.evidence.position
    only, back = np.setdiff1d(other, strong), np.setdiff1d(strong, other)
    facts |= {"plain": float(len(strong)), "smooth_only": float(len(only)), "plain_only": float(len(back))}
    outcomes = [plain, *outcomes]
    facts["overlooked"] = float(len(joined(outcomes, rows.standing).position))
    outcomes.append(smooth)
    if len(only) > len(back):
        outcomes += _explained(bench, stage, only[:_EXPLAINED], limits, facts, seen)
    # A suite that goes around masked gradients is not at fault where the plain gradient leads nowhere.
    best = (
        np.union1d(strong, other)
        if follows_surrogates(bench.plan.suite, bench.model.access, threat.norm)
        else strong
    )
    missed = np.setdiff1d(weak, best)
    if len(missed):
        # One start that ends badly is bad luck; that several do, with another loss, is not.
        key, options = f"{stage.key}/again", {"steps": 2 * _STEPS, "restarts": 5}
        outcomes.append(run_attack(bench, find_attack("pgd"), options, threat, key, missed, limits))
        missed = np.setdiff1d(missed, outcomes[-1].evidence.position)
    facts |= {"weak": float(len(weak)), "missed": float(len(missed))}
    return outcomes


def _descend(
    bench: Bench,
    stage: Stage,
    positions: Positions,
    limits: Limits,
    *,
    kinds: frozenset[str] | None = None,
    seen: Counter[str] | None = None,
) -> Outcome:
    """PGD with the true gradient if neither `kinds` nor `seen` is given; always from the same start."""
    assert stage.threat is not None
    around = None if kinds is None and seen is None else smoothing(kinds, seen)
    options = {"loss": "margin", "steps": _STEPS}
    key = f"{stage.key}/pgd"
    return run_attack(bench, find_attack("pgd"), options, stage.threat, key, positions, limits, around)


def _explained(
    bench: Bench,
    stage: Stage,
    only: Positions,
    limits: Limits,
    facts: dict[str, float],
    seen: Counter[str],
) -> list[Outcome]:
    """Which family of operations, replaced alone, lets the attack through."""
    facts["explained"] = float(len(only))
    outcomes = []
    # A block without gradients leaves no trace of itself, so detaching is always asked about.
    for kind in [kind for kind in KINDS if seen[kind] or kind == "detach"]:
        outcomes.append(_descend(bench, stage, only, limits, kinds=frozenset({kind})))
        facts[f"by {kind}"] = float(outcomes[-1].broken.sum())
    return outcomes


def probe_unbounded(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits
) -> tuple[Record, None]:
    """D13: with a budget that reaches every valid input, nothing but a constant answer can stand."""
    assert stage.threat is not None
    # Constraints may protect a sample for good; the question here is whether the attack finds its way.
    spec = dataclasses.replace(bench.plan.spec, immutable=(), integer=(), one_hot=())
    threat = stage.threat.within(spec).unbounded()
    name: str = "apgd"
    options: dict[str, Any] = {"loss": "margin", "steps": 50}
    if bench.model.access is not Access.GRADIENT:
        name, options = "square", {"queries": 500}
    attack = find_attack(name)
    if threat.norm not in attack.norms:
        return Record(stage=stage.key, chunk=chunk), None
    outcomes = [run_attack(bench, attack, options, threat, stage.key, rows.correct, limits)]
    left = np.setdiff1d(rows.correct, outcomes[0].evidence.position)
    if name == "apgd" and len(left) and follows_surrogates(bench.plan.suite, bench.model.access, threat.norm):
        outcomes.append(run_attack(bench, attack, options, threat, stage.key, left, limits, smoothing()))
        left = np.setdiff1d(left, outcomes[1].evidence.position)
    facts = {"probed": float(len(rows.correct)), "standing": float(len(left))}
    record, _ = record_of(stage, chunk, outcomes, rows.correct, facts)
    # What breaks beyond the budget is no counterexample.
    return record.model_copy(update={"broken": []}), None
