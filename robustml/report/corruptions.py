"""The section on corruptions, from what the ledger has added up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ..estimates import clopper_pearson, mean_interval
from ..registry import find_corruption
from ..stress.corrupting import CORRUPTING, transformed
from ..stress.ledger import Ledger, StageTotals
from .corruption_parts import CorruptionResult, Corruptions, MeanEstimate, SeverityResult, WorstResult
from .parts import Estimate, Passes, Score

__all__ = ["corruption_doubts", "corruption_score", "corruptions_of", "weakest"]

Array = np.ndarray[Any, Any]


def corruptions_of(ledger: Ledger) -> Corruptions | None:
    """The section, or None if the suite did not ask for it."""
    totals = [t for t in ledger.totals.values() if t.stage.kind in CORRUPTING]
    if not totals:
        return None
    member = ledger.corrupted.member
    cells = _cells(ledger)
    grouped: dict[str, list[StageTotals]] = {}
    for total in totals:
        if total.stage.kind == "corruption":
            grouped.setdefault(total.stage.of, []).append(total)
    asked = [t for stages in grouped.values() for t in stages if t.stage.skipped is None]
    return Corruptions(
        samples=int(member.sum()),
        clean=_estimate(ledger, ledger.correct[member]),
        accuracy=_mean(ledger, [cells.get(t.stage.key) for t in asked]),
        kinds=[_kind(ledger, name, stages, cells) for name, stages in grouped.items()],
        worst=[_worst(ledger, total) for total in totals if total.stage.kind == "worst"],
        passes=Passes(forward=sum(total.forward for total in totals)),
    )


def _cells(ledger: Ledger) -> dict[str, Array]:
    """For each finished stage of a corruption, which of its samples are right under it."""
    member = ledger.corrupted.member
    return {
        key: (said == ledger.labels)[member]
        for key, said in ledger.corrupted.said.items()
        if not ledger.totals[key].missing and ledger.totals[key].stage.skipped is None
    }


def _kind(ledger: Ledger, name: str, totals: list[StageTotals], cells: dict[str, Array]) -> CorruptionResult:
    measured = [total for total in totals if total.stage.key in cells]
    status, reason = _status(totals)
    return CorruptionResult(
        name=name,
        group=find_corruption(name).group,
        status=status,
        reason=reason,
        severities=[
            SeverityResult(severity=total.stage.severity, accuracy=_estimate(ledger, cells[total.stage.key]))
            for total in measured
        ],
        accuracy=_mean(ledger, [cells.get(total.stage.key) for total in totals]),
    )


def _worst(ledger: Ledger, total: StageTotals) -> WorstResult:
    stage = total.stage
    assert stage.entry is not None
    member, broken = ledger.corrupted.member, ledger.corrupted.broken[stage.key]
    status, reason = _status([total])
    return WorstResult(
        name=stage.of,
        options=stage.entry.options,
        transformations=0 if stage.skipped else len(transformed(ledger.plan, stage)),
        status=status,
        reason=reason,
        attempted=total.attempted,
        broken=int(broken.sum()),
        accuracy=None if status != "ran" else _estimate(ledger, (ledger.correct & ~broken)[member]),
    )


def _status(totals: list[StageTotals]) -> tuple[Literal["ran", "partial", "skipped"], str | None]:
    skipped = totals[0].stage.skipped
    if skipped is not None:
        return "skipped", skipped
    missing = sum(total.missing for total in totals)
    if missing:
        return "partial", f"the budget ran out: {missing} samples were not seen"
    return "ran", None


def _estimate(ledger: Ledger, right: Array) -> Estimate:
    count, total, confidence = int(right.sum()), len(right), ledger.plan.confidence
    low, high = clopper_pearson(count, total, confidence)
    return Estimate(value=count / total, low=low, high=high, confidence=confidence, count=count, total=total)


def _mean(ledger: Ledger, cells: list[Array | None]) -> MeanEstimate | None:
    """The mean accuracy over cells of the same samples; None if there is none, or one was not measured."""
    present = [cell for cell in cells if cell is not None]
    if not present or len(present) < len(cells):
        return None
    # The same samples are in every cell: what is independent is the sample with its mean over the cells.
    counts: Array = np.stack(present).sum(0)
    low, high = mean_interval(counts / len(present), ledger.plan.confidence)
    value = int(counts.sum()) / (len(present) * len(counts))
    return MeanEstimate(value=value, low=low, high=high, confidence=ledger.plan.confidence, total=len(counts))


def corruption_score(section: Corruptions | None) -> Score | None:
    """100 times the mean accuracy over corruptions and severities."""
    if section is None or section.accuracy is None:
        return None
    mean = section.accuracy
    return Score(value=100 * mean.value, low=100 * mean.low, high=100 * mean.high)


def weakest(scores: list[Score | None]) -> Score | None:
    """The lowest of the scores that were measured, and the lowest of their limits."""
    measured = [score for score in scores if score is not None]
    if not measured:
        return None
    # The lowest of the true values is above the lowest lower limit wherever its own limit holds.
    return Score(**{name: min(getattr(score, name) for score in measured) for name in Score.model_fields})


def corruption_doubts(section: Corruptions | None) -> Iterator[str]:
    """Why the section cannot be relied on, if so: a part of it was asked for, possible, and not done."""
    parts: list[CorruptionResult | WorstResult] = []
    if section is not None:
        parts = [*section.kinds, *section.worst]
    for part in parts:
        if part.status == "partial":
            yield f"corruption {part.name} is incomplete: {part.reason}"
