"""From what audits return to the parts of a report, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from ..attacks.audit import AuditedEpsilon as Audited
from ..attacks.audit import Conformance as Conformed
from ..attacks.leakage import AttributeInference
from ..attacks.leakage import Extraction as Extracted
from ..attacks.leakage import Inversion as Inverted
from ..attacks.membership import Limits as Bounds
from ..attacks.membership import MembershipResult, Part
from ..attacks.membership import RateAt as Rate
from ..attacks.membership import Strongest as Most
from ..errors import InputError
from ..estimates import PairedDifference, Proportion
from ..report.membership_parts import (
    Limits,
    Membership,
    MembershipAttack,
    MembershipPart,
    RateAt,
    Roc,
    Strongest,
)
from ..report.parts import Estimate
from ..report.privacy_parts import (
    Accounted,
    Attribute,
    AuditedEpsilon,
    Claim,
    Conformance,
    ConformanceCheck,
    Difference,
    Extraction,
    ExtractionPoint,
    Inversion,
    Ladder,
    Rung,
)
from ..schema import validated
from .ladder import Ladder as Climbed
from .ladder import Rung as Step
from .membership import MembershipAudit

__all__ = [
    "accounted_of",
    "attribute_of",
    "audited_of",
    "conformance_of",
    "estimate_of",
    "extraction_of",
    "inversion_of",
    "ladder_of",
    "membership_of",
    "sure",
]

_DIGITS = 9
_POINTS = 80  # of a curve; more cannot be told apart in a picture
Tier = Literal["quick", "few", "many"]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


def _near(value: float) -> float:
    return round(float(value), _DIGITS)


def estimate_of(share: Proportion | None, confidence: float) -> Estimate | None:
    """A proportion; None of nothing."""
    if share is None or not share.total:
        return None
    return Estimate(
        value=float(share.value),
        low=float(share.low),
        high=float(share.high),
        confidence=confidence,
        count=int(share.count),
        total=int(share.total),
    )


def sure(share: Proportion, confidence: float) -> Estimate:
    """A proportion that is one of something.

    Raises:
        InputError: if it is not.
    """
    found = estimate_of(share, confidence)
    if found is None:
        raise InputError("a figure was taken of no samples at all")
    return found


def _limits(bounds: Bounds | None) -> Limits | None:
    if bounds is None:
        return None
    return Limits(value=_near(bounds.value), low=_near(bounds.low), high=_near(bounds.high))


def _rate(rate: Rate, confidence: float) -> RateAt:
    tpr = estimate_of(rate.tpr, confidence)
    reason = rate.reason or (None if tpr is not None else "not resolvable: no member is among these samples")
    achieved = estimate_of(rate.achieved, confidence)
    return RateAt(fpr=float(rate.fpr), tpr=tpr, achieved=achieved, reason=reason)


def _part(part: Part | None, confidence: float) -> MembershipPart | None:
    if part is None:
        return None
    return MembershipPart(
        name=part.name,
        members=part.members,
        non_members=part.non_members,
        auc=_limits(part.auc),
        advantage=_limits(part.advantage),
        tpr=[_rate(rate, confidence) for rate in part.tpr],
    )


def _roc(points: tuple[tuple[float, float], ...]) -> Roc:
    step = max(1, -(-len(points) // _POINTS))
    kept = [*points[:-1:step], *points[-1:]]
    return Roc(fpr=[_near(fpr) for fpr, _ in kept], tpr=[_near(tpr) for _, tpr in kept])


def _attack(result: MembershipResult) -> MembershipAttack:
    confidence = result.confidence
    # Intervals of classes hold for all of them together, so that each is of a higher confidence.
    jointly = 1 - (1 - confidence) / max(len(result.per_class), 1)
    classes = (_part(part, jointly) for part in result.per_class)
    return MembershipAttack(
        attack=result.attack,
        tier=cast(Tier, result.tier),
        references=result.references,
        queries=result.queries,
        members=result.members,
        non_members=result.non_members,
        auc=_limits(result.auc),
        advantage=_limits(result.advantage),
        tpr=[_rate(rate, confidence) for rate in result.tpr],
        roc=_roc(result.roc),
        per_class=[part for part in classes if part is not None],
        worst_decile=_part(result.most_exposed, confidence),
        note=result.note,
    )


def _strongest(most: Most, confidence: float) -> Strongest:
    best, area = _limits(most.advantage), _limits(most.auc)
    assert best is not None
    assert area is not None
    return Strongest(
        attacks=most.attacks,
        advantage=best,
        advantage_by=most.advantage_by,
        auc=area,
        auc_by=most.auc_by,
        tpr=[_rate(rate, confidence) for rate in most.tpr],
        tpr_by=list(most.tpr_by),
    )


def membership_of(audit: MembershipAudit) -> Membership:
    """The section on membership."""
    return Membership(
        tier=cast(Tier, audit.tier),
        references=audit.references,
        members=audit.members,
        non_members=audit.non_members,
        duplicates=audit.duplicates,
        member_accuracy=sure(audit.member_accuracy, audit.confidence),
        non_member_accuracy=sure(audit.non_member_accuracy, audit.confidence),
        attacks=[_attack(result) for result in audit.results],
        strongest=_strongest(audit.strongest, audit.confidence),
        control=_limits(audit.control),
        seed=audit.seed,
    )


def inversion_of(found: Inverted) -> Inversion:
    """The section on model inversion."""
    return Inversion(
        classes=len(found.classes),
        correlation=_rounded(found.correlation),
        control=_rounded(found.control),
        public=_rounded(found.public),
        nearer=_rounded(found.nearer),
        p_value=_rounded(found.p_value),
        queries=found.queries,
        reason=found.reason or None,
    )


def _difference(difference: PairedDifference) -> Difference:
    return Difference(value=_near(difference.value), low=_near(difference.low), high=_near(difference.high))


def attribute_of(found: AttributeInference, confidence: float) -> Attribute:
    """The section on attribute inference."""
    return Attribute(
        feature=found.feature,
        values=list(found.values),
        method=found.method,
        learner=found.learner,
        queries=found.queries,
        members=sure(found.members.attack, confidence),
        baseline=sure(found.members.baseline, confidence),
        gain=_difference(found.members.gain),
        non_member_gain=_difference(found.non_members.gain),
        excess=Difference(
            value=max(-1.0, min(1.0, _near(found.excess))),
            low=_near(found.excess_low),
            high=_near(found.excess_high),
        ),
    )


def extraction_of(found: Extracted, confidence: float) -> Extraction:
    """The section on model extraction."""
    return Extraction(
        reply=cast(Literal["probabilities", "labels"], found.reply),
        constant=sure(found.constant, confidence),
        points=[
            ExtractionPoint(
                queries=point.queries,
                fidelity=sure(point.fidelity, confidence),
                without=estimate_of(point.without, confidence),
                gain=None if point.gain is None else _difference(point.gain),
                accuracy=sure(point.accuracy, confidence),
                transfer=estimate_of(point.transfer, confidence),
            )
            for point in found.points
        ],
    )


def accounted_of(claim: Mapping[str, Any], source: str) -> Accounted:
    """What `Guarantee.to_dict` wrote, from a run or from the header of a file.

    Raises:
        InputError: if it is something else.
    """
    known = {name: claim[name] for name in Accounted.model_fields if name in claim}
    # What a header holds is text of strangers: whole numbers may come without a point.
    for name in ("epsilon", "delta", "noise_multiplier", "sampling_rate", "clipping_norm"):
        value = known.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            known[name] = float(value)
    return validated(Accounted, {**known, "source": source}, where=f"privacy of {source}")


def audited_of(
    found: Audited, *, runs: int, method: str, accounted: float | None, assumes: str | None = None
) -> AuditedEpsilon:
    """An epsilon from below.

    Args:
        found: What the audit says.
        runs: How many models were trained for it.
        method: What canaries were, and how they were judged.
        accounted: Of the run that was audited.
        assumes: What it rests on beside fair coins.
    """
    return AuditedEpsilon(
        epsilon=_rounded(found.epsilon),
        delta=found.delta,
        confidence=found.confidence,
        method=method,
        canaries=found.canaries,
        runs=runs,
        guesses=found.guesses,
        correct=found.correct,
        cap=max(_near(found.cap), 0.0),
        reason=found.reason or None,
        accounted=_rounded(accounted),
        assumes=assumes,
    )


def conformance_of(found: Conformed) -> Conformance:
    """The section on the conformance test."""
    return Conformance(
        passed=found.passed,
        confidence=found.confidence,
        canaries=found.canaries,
        included=found.included,
        steps=found.claims.steps,
        claims=[
            Claim(
                name=one.name,
                claimed=float(one.claimed),
                value=_rounded(one.value),
                low=_rounded(one.low),
                high=_rounded(one.high),
                reason=one.reason or None,
            )
            for one in found.parameters
        ],
        checks=[
            ConformanceCheck(
                name=check.name,
                passed=check.passed,
                p_value=_near(check.p_value),
                fault=check.fault,
                power=_near(check.power),
                reason=check.reason or None,
            )
            for check in found.checks
        ],
    )


def ladder_of(found: Climbed, confidence: float) -> Ladder:
    """The section on the ladder."""
    return Ladder(
        rungs=[_rung(step, confidence) for step in (found.plain, found.clipped, found.private)],
        clipping=_difference(found.clipping),
        noise=_difference(found.noise),
        total=_difference(found.total),
        delta=found.delta,
        seed=found.seed,
        randomness=found.randomness,
        verdict=found.verdict,
    )


def _rung(step: Step, confidence: float) -> Rung:
    return Rung(
        name=cast(Literal["plain", "clipped", "private"], step.name),
        accuracy=sure(step.accuracy, confidence),
        clipping_norm=_rounded(step.clipping_norm),
        noise_multiplier=_rounded(step.noise_multiplier),
        epsilon=_rounded(step.epsilon),
    )
