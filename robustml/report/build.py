"""From the records of a run to its report: nothing in a report comes from anywhere else."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..data import Dataset
from ..registry import find_attack
from ..stress.diagnostics import CODES, diagnose
from ..stress.folder import RunFolder
from ..stress.ledger import Ledger, StageTotals
from ..stress.plan import Plan, Stage, curve_budgets
from ..stress.probing import PROBED
from ..stress.suite import AttackEntry
from ..threats import Threat
from .certified import certificates_of, certified_curve, proven_share
from .corruption_parts import Corruptions
from .corruptions import corruption_doubts, corruption_score, corruptions_of, weakest
from .federated import federated_of
from .gallery import most_fragile
from .gate import judge_gate
from .guarding import guards_of, unaware_of
from .model import Report
from .parts import (
    AttackResult,
    Bounds,
    ClassResult,
    Clean,
    CurvePoint,
    Data,
    Diagnostic,
    Estimate,
    EvidenceFile,
    ModelInfo,
    Passes,
    Queries,
    Randomized,
    Samples,
    Score,
    Scores,
    TargetInfo,
    ThreatResult,
)
from .privacy import privacy_doubts, privacy_of, privacy_score
from .shares import share_of

__all__ = ["build_report"]

# The probes whose attacks count, and what they run.
_PROBES = {
    "ordering": "fgsm, pgd and noise",
    "black-box": "a short attack without gradients",
    "effort": "the strongest attack of the suite",
    "transfer": "inputs made against the twin",
    "randomness": "a short attack with more draws per step",
    "oblivious": "the suite, on the model without its guards",
}

_COUNTED = "found by a diagnostic and counted"

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def build_report(plan: Plan, folder: RunFolder, data: Dataset, *, created: str | None = None) -> Report:
    """Fold the journal of a run into its report.

    Args:
        plan: The plan of the run.
        folder: Its folder.
        data: The data that it names.
        created: The time to write into the report; now, if not given.

    Raises:
        InputError: if the journal does not fit the plan, or the evidence cannot be read.
    """
    ledger = Ledger(plan, data.y[plan.ids], folder.records)
    clean = share_of(plan, int(ledger.correct.sum()))
    threats = [_threat(ledger, threat, folder, data) for threat in plan.bound_threats]
    corruptions = corruptions_of(ledger)
    privacy = privacy_of(folder.path)
    scores = _scores(ledger, threats, corruptions, privacy_score(privacy))
    distrust = [*_distrust(ledger, clean, threats), *corruption_doubts(corruptions)]
    distrust += privacy_doubts(privacy, asked=plan.privacy is not None)
    uppers = {threat.name: threat.robust_accuracy.upper for threat in threats}
    return Report(
        robustml=__version__,
        created=created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(sum(r.seconds for r in folder.records) + (privacy.seconds if privacy else 0), 3),
        seed=plan.seed,
        confidence=plan.confidence,
        suite=plan.suite.name,
        command=plan.command,
        environment=plan.environment,
        target=_target(plan),
        goals=plan.aims.named(plan.class_names),
        randomness=_randomness(ledger),
        guards=guards_of(ledger),
        certificates=certificates_of(ledger),
        clean=Clean(accuracy=clean, per_class=_per_class(ledger, None)),
        threats=threats,
        corruptions=corruptions,
        privacy=privacy,
        federated=federated_of(folder.path),
        scores=scores,
        trusted=not distrust,
        distrust=distrust,
        verdict=_verdict(plan, threats, scores),
        gate=judge_gate(
            plan.gate, clean=clean, scores=scores, threats=uppers, trusted=not distrust, privacy=privacy
        ),
        samples=Samples(ids=plan.ids, evidence=_evidence_files(ledger, folder)),
    )


def _target(plan: Plan) -> TargetInfo:
    return TargetInfo(
        name=plan.target,
        model=ModelInfo(
            name=plan.model_name,
            access=plan.access,
            outputs=plan.outputs,
            parameters=plan.parameters,
            sha256=plan.model_sha256,
        ),
        data=Data(name=plan.data_name, samples=plan.samples, sha256=plan.data_sha256),
        inputs=plan.inputs,
        classes=plan.classes,
        class_names=plan.class_names,
    )


def _threat(ledger: Ledger, threat: Threat, folder: RunFolder, data: Dataset) -> ThreatResult:
    standing = ledger.standing(threat.norm, threat.eps)
    attacks = _attacks(ledger, threat)
    # What a diagnostic finds beside the suite measures nothing: those that it does not break stay untested.
    measured = not standing.any() or any(
        totals.attempted
        for totals in ledger.totals.values()
        if totals.stage.of == threat.name and totals.stage.kind == "attack"
    )
    upper = share_of(ledger.plan, int(standing.sum())) if measured else None
    lower = proven_share(ledger, threat)
    return ThreatResult(
        name=threat.name,
        norm=threat.norm,
        eps=threat.eps,
        adaptive=True,
        robust_accuracy=Bounds(upper=upper, lower=lower),
        undecided=(upper.count - (lower.count if lower else 0)) / upper.total if upper else None,
        unaware=unaware_of(ledger, threat),
        attacks=attacks,
        curve=_curve(ledger, threat) if measured else [],
        certified=certified_curve(ledger, threat),
        per_class=_per_class(ledger, standing) if measured else [],
        diagnostics=[
            Diagnostic(
                **vars(CODES[found.code]),
                code=found.code,
                status=found.status,
                value=None if found.value is None else round(found.value, 9),
                detail=found.detail,
            )
            for found in diagnose(ledger, threat)
        ],
        outcomes=_outcomes(ledger, standing) if measured else "",
        fragile=most_fragile(ledger, threat, folder, data),
    )


def _randomness(ledger: Ledger) -> Randomized | None:
    settings = ledger.plan.randomness
    if settings is None:
        return None
    clean = ledger.totals["clean"]
    rate = round(clean.facts["flips"] / clean.attempted, 9) if clean.attempted else None
    return Randomized(draws=settings.draws, eot=settings.eot, flip_rate=rate)


def _outcomes(ledger: Ledger, standing: Mask) -> str:
    return "".join(
        "s" if stands else "b" if right else "m"
        for stands, right in zip(standing, ledger.correct, strict=True)
    )


def _attacks(ledger: Ledger, threat: Threat) -> list[AttackResult]:
    """The suite's attacks in order, then what else broke samples: smaller budgets and diagnostics."""
    own = [totals for totals in ledger.totals.values() if totals.stage.of == threat.name]
    rows = [_attack(totals) for totals in own if totals.stage.kind == "attack"]
    carried = _carried(ledger, threat)
    if carried is not None:
        rows.insert(0, carried)
    for totals in own:
        found = totals.late if totals.stage.kind == "curve" else totals.broken
        if totals.stage.kind in {"curve", *_PROBES} and found:
            rows.append(_late(totals, found))
    return rows


def _attack(totals: StageTotals) -> AttackResult:
    stage = totals.stage
    entry = stage.entry
    assert entry is not None
    status: Literal["ran", "partial", "skipped"] = "ran"
    reason = None
    if stage.skipped is not None:
        status, reason = "skipped", stage.skipped
    elif totals.missing or totals.status != "complete":
        kind = {"passes": "the pass budget ran out", "time": "the time budget ran out"}.get(totals.status)
        unseen = f"{totals.missing} survivors were not attacked" if totals.missing else ""
        status, reason = "partial", "; ".join(part for part in (kind, unseen) if part)
    return AttackResult(
        id=stage.key.partition("/")[2],
        attack=entry.use,
        options=entry.options,
        access=_access(totals),
        status=status,
        reason=reason,
        attempted=totals.attempted,
        broken=totals.broken,
        rescued=totals.rescued,
        unconfirmed=totals.unconfirmed,
        passes=Passes(forward=totals.forward, backward=totals.backward),
        seconds=round(totals.seconds, 3),
        queries=_queries(totals),
    )


def _queries(totals: StageTotals) -> Queries | None:
    if not totals.queries:
        return None
    return Queries(median=statistics.median(totals.queries), max=max(totals.queries))


def _access(totals: StageTotals) -> Any:
    entry = totals.stage.entry
    if entry is None:
        if totals.stage.kind == "ordering":
            return "gradient" if totals.broken > totals.facts.get("noise_broken", 0) else "decision"
        return "gradient" if totals.backward else "score"
    if totals.stage.skipped is not None and isinstance(entry, AttackEntry) and entry.only:
        # Looking up an attack that did not run could import the whole library that it comes from.
        return entry.only[0]
    return find_attack(entry.use).access.label


def _carried(ledger: Ledger, threat: Threat) -> AttackResult | None:
    """What the stages of other threat models of the same norm broke within this one's budget."""
    broken = ledger.elsewhere[threat.name]
    if not broken:
        return None
    attempted = max(
        totals.attempted
        for totals in ledger.totals.values()
        if totals.stage.threat is not None
        and totals.stage.threat.norm == threat.norm
        and totals.stage.of != threat.name
    )
    return AttackResult(
        id="carried-over",
        attack="evidence from other budgets",
        options={},
        access="decision",
        status="ran",
        attempted=attempted,
        broken=broken,
        rescued=0,
        unconfirmed=0,
        passes=Passes(),
        seconds=0.0,
    )


def _late(totals: StageTotals, found: int) -> AttackResult:
    stage: Stage = totals.stage
    return AttackResult(
        id=stage.key.partition("/")[2],
        attack=stage.entry.use if stage.entry else _PROBES[stage.kind],
        options=stage.entry.options if stage.entry else {},
        access=_access(totals),
        status="ran",
        reason="made without the guards, and counted" if stage.kind == "oblivious" else _COUNTED,
        attempted=totals.attempted,
        broken=found,
        rescued=0,
        unconfirmed=totals.unconfirmed,
        passes=Passes(forward=totals.forward, backward=totals.backward),
        seconds=round(totals.seconds, 3),
    )


def _curve(ledger: Ledger, threat: Threat) -> list[CurvePoint]:
    budgets = {threat.eps}
    for totals in ledger.totals.values():
        at = totals.stage.threat
        if at is None or totals.stage.kind != "curve" or totals.missing or totals.status != "complete":
            continue
        if totals.stage.of == threat.name and not totals.stage.nearest:
            budgets.add(at.eps)
        elif at.norm == threat.norm and totals.stage.nearest:
            budgets |= {eps for eps in curve_budgets(ledger.plan, threat).values() if eps <= at.eps}
    points = [(0.0, int(ledger.correct.sum()))]
    points += [(eps, int(ledger.standing(threat.norm, eps).sum())) for eps in sorted(budgets)]
    return [CurvePoint(eps=eps, robust_accuracy=share_of(ledger.plan, count)) for eps, count in points]


def _per_class(ledger: Ledger, standing: Mask | None) -> list[ClassResult]:
    rows = []
    for label, name in enumerate(ledger.plan.class_names):
        members = ledger.labels == label
        if members.any():
            rows.append(
                ClassResult(
                    label=label,
                    name=name,
                    total=int(members.sum()),
                    correct=int((members & ledger.correct).sum()),
                    robust=None if standing is None else int((members & standing).sum()),
                )
            )
    return rows


def _scores(
    ledger: Ledger, threats: list[ThreatResult], corruptions: Corruptions | None, privacy: Score | None
) -> Scores:
    corruption = corruption_score(corruptions)
    evasion = None
    if all(threat.robust_accuracy.upper is not None for threat in threats):
        withstood = np.logical_and.reduce([ledger.standing(t.norm, t.eps) for t in ledger.plan.bound_threats])
        share = share_of(ledger.plan, int(withstood.sum()))
        evasion = Score(value=100 * share.value, low=100 * share.low, high=100 * share.high)
    overall = weakest([evasion, corruption, privacy])
    return Scores(evasion=evasion, corruption=corruption, privacy=privacy, overall=overall)


def _distrust(ledger: Ledger, clean: Estimate, threats: list[ThreatResult]) -> list[str]:
    reasons = []
    largest = float(np.bincount(ledger.labels).max()) / len(ledger.labels)
    # With goals the samples need not be of several classes.
    if not ledger.plan.goals and clean.value <= largest and clean.low < largest:
        reasons.append(
            f"clean accuracy is {100 * clean.value:.1f} %, no better than always naming the largest class "
            f"({100 * largest:.1f} %): check the labels and the normalization"
        )
    if missing := int((ledger.predicted < 0).sum()):
        reasons.append(f"the clean pass is missing for {missing} of {ledger.plan.samples} samples")
    for threat in threats:
        reasons += [f"{threat.name}: {reason}" for reason in _doubts(ledger, threat)]
    return reasons


def _doubts(ledger: Ledger, threat: ThreatResult) -> Iterator[str]:
    if threat.robust_accuracy.upper is None:
        yield "no attack of the suite could run, so nothing was measured"
    for attack in threat.attacks:
        if attack.status == "partial":
            yield f"{attack.id} is incomplete: {attack.reason}"
    if any(t.missing for t in ledger.totals.values() if t.stage.of == threat.name and t.stage.kind in PROBED):
        yield "the budget ran out before the diagnostics, so nothing speaks for the attacks"
    for diagnostic in threat.diagnostics:
        if diagnostic.critical and diagnostic.status == "fail":
            yield f"{diagnostic.code} {diagnostic.title} failed: {diagnostic.detail}"


def _verdict(plan: Plan, threats: list[ThreatResult], scores: Scores) -> str:
    names = " and ".join(threat.name for threat in threats)
    if scores.evasion is None:
        return f"Robust accuracy under {names} was not measured."
    count = round(scores.evasion.value * plan.samples / 100)
    interval = f"[{scores.evasion.low:.1f}, {scores.evasion.high:.1f}]"
    who = {"gradient": "", "score": " that see only scores", "decision": " that see only labels"}[plan.access]
    survive = "survives" if count == 1 else "survive"
    if plan.goals:
        cannot = f"{survive} every attempt to turn them into a target class"
        return (
            f"Of {plan.samples} test inputs with a goal, {count} {cannot} within {names}{who}: "
            f"{scores.evasion.value:.1f} % {interval} at {100 * plan.confidence:g} % confidence."
        )
    return (
        f"Of {plan.samples} test inputs, {count} {survive} every attack within {names}{who}: "
        f"{scores.evasion.value:.1f} % {interval} at {100 * plan.confidence:g} % confidence."
    )


def _evidence_files(ledger: Ledger, folder: RunFolder) -> list[EvidenceFile]:
    order = {stage.key: number for number, stage in enumerate(ledger.stages)}
    records = [record for record in folder.records if record.evidence is not None]
    records.sort(key=lambda record: (order[record.stage], record.chunk, str(record.evidence)))
    return [
        EvidenceFile(path=str(record.evidence), sha256=str(record.sha256), samples=len(record.broken))
        for record in records
    ]
