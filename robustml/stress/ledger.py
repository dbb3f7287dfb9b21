"""What the records of a run add up to. A pure fold: the same records give the same figures, in any order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..balls import TOLERANCE
from ..errors import InputError
from ..threats import Threat
from .attacking import Rows
from .certifying import CERTIFYING, Certified
from .corrupting import CORRUPTING, Corrupted
from .folder import Record
from .plan import Plan, Stage, stages

__all__ = ["Ledger", "StageTotals"]


@dataclass
class StageTotals:
    """One stage over all chunks that have a record."""

    stage: Stage
    attempted: int = 0
    broken: int = 0
    first: list[int] = field(default_factory=list)
    """Positions of the broken ones, which no stage before had broken."""
    rescued: int = 0
    unconfirmed: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    missing: int = 0
    """Samples that the stage should have seen and did not."""
    status: Literal["complete", "passes", "time"] = "complete"
    facts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    timings: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    queries: list[int] = field(default_factory=list)
    """Forward passes for each sample that broke, where the attack asks for nothing but answers."""
    late: int = 0
    """Curve only: samples that stood at the threat's own, larger budget until this stage broke them."""


class Ledger:
    """The state of a run: which samples stand under which threat model.

    Args:
        plan: The plan.
        labels: True labels of the planned samples, in the order of `plan.ids`: int64 (n,).
        records: The finished units, in any order.

    Attributes:
        predicted: Clean predictions int64 (n,), -1 where the clean pass is missing.
        eps: For each norm, the smallest budget within which each sample is known to break (infinity if none).
        totals: What each stage did, by its key.
        elsewhere: For each threat model, how many samples the stages of others broke within its budget.
        overlooked: Those of them that its own suite had left standing.
        corrupted: What corruptions and transformations did.
        certified: The radii that the model certifies.

    Raises:
        InputError: if a record does not fit the plan or claims what cannot be.
    """

    def __init__(self, plan: Plan, labels: np.ndarray[Any, Any], records: list[Record]) -> None:
        self.plan = plan
        self.labels = labels
        self.stages = stages(plan)
        self.predicted = np.full(plan.samples, -1, dtype=np.int64)
        self.clean_margin = np.full(plan.samples, np.nan)
        self.eps = {t.norm: np.full(plan.samples, np.inf) for t in plan.bound_threats}
        self.source: dict[str, list[Record | None]] = {norm: [None] * plan.samples for norm in self.eps}
        self.totals = {stage.key: StageTotals(stage) for stage in self.stages}
        self.elsewhere = {threat.name: 0 for threat in plan.bound_threats}
        self.overlooked = dict(self.elsewhere)
        self._aside = {threat.name: np.full(plan.samples, np.nan) for threat in plan.bound_threats}
        self.corrupted = Corrupted(plan, self.stages)
        self.certified = Certified(plan)
        by_unit: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in records:
            if record.stage not in self.totals or record.chunk >= plan.chunks:
                raise InputError(
                    f"the journal has a record that is not in the plan: {record.stage} {record.chunk}"
                )
            by_unit[record.stage, record.chunk].append(record)
        for stage in self.stages:
            for chunk in range(plan.chunks):
                self.take(stage, chunk, by_unit.get((stage.key, chunk), []))

    @property
    def correct(self) -> np.ndarray[Any, Any]:
        """Whether each sample is classified correctly without an attacker: bool (n,)."""
        equal: np.ndarray[Any, Any] = self.predicted == self.labels
        return equal

    def standing(self, norm: str, eps: float) -> np.ndarray[Any, Any]:
        """Whether each sample is correct and not known to break within a budget: bool (n,)."""
        return self.correct & (self.eps[norm] > eps)

    def proven(self, threat: Threat) -> np.ndarray[Any, Any]:
        """Whether each sample is certified within a threat model: bool (n,).

        A counterexample in hand is believed before a certificate, so no sample counts that is known to break.
        """
        proven: np.ndarray[Any, Any] = self.certified.covers(threat) & self.standing(threat.norm, threat.eps)
        return proven

    def rows(self, stage: Stage, chunk: int) -> Rows:
        """The positions of a chunk that a stage has to look at, as things stand."""
        positions = self.plan.positions(chunk)
        if stage.kind in CORRUPTING:
            return self.corrupted.rows(stage, positions, self.correct)
        if stage.kind == "clean":
            return Rows(positions, positions)
        correct = positions[self.correct[positions]]
        if stage.threat is None:
            return Rows(correct, correct)
        if stage.kind == "contradiction":
            radius = self.certified.radius[correct]
            broken = np.isfinite(self.eps[stage.threat.norm][correct]) & (radius > 0)
            return Rows(correct[broken], correct[broken], radius=radius[broken])
        if stage.nearest:
            return Rows(correct, correct)
        standing = correct[self.eps[stage.threat.norm][correct] > stage.threat.eps]
        return Rows(correct, standing, self.clean_margin[correct], self._aside[stage.of][correct])

    def to_see(self, stage: Stage, chunk: int) -> int:
        """How many samples of a chunk a stage has to look at; with none there is nothing to do."""
        if stage.skipped is not None:
            return 0
        rows = self.rows(stage, chunk)
        if stage.kind in {"clean", "attack", "curve", "oblivious"} | CORRUPTING | CERTIFYING:
            return len(rows.standing)
        return len(rows.first(self.plan.suite.diagnostics.samples).correct)

    def take(self, stage: Stage, chunk: int, records: list[Record]) -> None:
        """Add the records of one unit; with none of them, count what is missing."""
        total = self.totals[stage.key]
        if not records:
            total.missing += self.to_see(stage, chunk)
            return
        # A unit that time cut short is taken up again with what was left of the same samples.
        total.attempted += records[0].attempted
        for record in records:
            self._add(total, self.rows(stage, chunk), record)
        total.status = records[-1].status if records[-1].status != "complete" else total.status

    def _add(self, total: StageTotals, expected: Rows, record: Record) -> None:
        total.rescued += record.rescued
        total.unconfirmed += record.unconfirmed
        total.forward += record.forward
        total.backward += record.backward
        total.seconds += record.seconds
        for name, value in record.facts.items():
            total.facts[name] += value
        for name, value in record.timings.items():
            total.timings[name] += value
        if total.stage.kind in CORRUPTING:
            self.corrupted.take(total.stage, expected, record, self.labels)
            return
        if total.stage.kind == "clean":
            if not len(record.labels) == len(record.margins) == len(expected.correct):
                raise InputError(
                    f"the clean record of chunk {record.chunk} does not hold one label per sample"
                )
            self.predicted[expected.correct] = record.labels
            self.clean_margin[expected.correct] = record.margins
            return
        if total.stage.kind in CERTIFYING:
            if total.stage.kind == "certificate":
                self.certified.take(expected, record, self.labels)
            return
        if total.stage.kind == "before":
            few = expected.first(self.plan.suite.diagnostics.samples).correct
            if len(record.margins) != len(few):
                raise InputError(f"{record.stage}, chunk {record.chunk} does not hold one margin per sample")
            self._aside[total.stage.of][few] = record.margins
            return
        self._break(total, expected, record)

    def _break(self, total: StageTotals, expected: Rows, record: Record) -> None:
        threat = total.stage.threat
        assert threat is not None
        positions = np.asarray(record.broken, dtype=np.int64)
        if not set(record.broken) <= set(expected.correct.tolist()):
            raise InputError(
                f"{record.stage}, chunk {record.chunk} breaks a sample that it had not been given"
            )
        if record.broken != sorted(set(record.broken)):
            raise InputError(f"{record.stage}, chunk {record.chunk} does not list its samples in order")
        if total.stage.kind in {"attack", "curve"} and record.attempted != len(expected.standing):
            raise InputError(
                f"{record.stage}, chunk {record.chunk} attacked {record.attempted} samples, but "
                f"{len(expected.standing)} were standing"
            )
        if record.queries and len(record.queries) != len(record.broken):
            raise InputError(f"{record.stage}, chunk {record.chunk} does not hold one query count per sample")
        total.queries += record.queries
        own = next(t for t in self.plan.bound_threats if t.name == total.stage.of)
        smallest, reached = self.eps[threat.norm], _reached(record, threat)
        before = smallest[positions].copy()
        self._credit(own, reached, before)
        if total.stage.kind == "curve":
            total.late += int(((before > own.eps) & (reached <= own.eps)).sum())
        total.broken += int((before > threat.eps).sum())
        total.first += positions[before > threat.eps].tolist()
        nearer = reached < before
        smallest[positions[nearer]] = reached[nearer]
        for position in positions[nearer].tolist():
            self.source[threat.norm][position] = record

    def _credit(self, own: Threat, reached: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> None:
        """Count for the other threat models of a norm what breaks within their budgets for the first time."""
        order = self.plan.bound_threats
        for other in order:
            if other.norm == own.norm and other.name != own.name:
                count = int(((before > other.eps) & (reached <= other.eps)).sum())
                self.elsewhere[other.name] += count
                # The larger budgets of a norm come later, so the suite had its turn at this one.
                self.overlooked[other.name] += count if order.index(other) < order.index(own) else 0


def _reached(record: Record, threat: Threat) -> np.ndarray[Any, Any]:
    """The distance of each counterexample of a record; the budget where rounding took it beyond."""
    distances = np.asarray(record.distances, dtype=np.float64)
    within = np.isfinite(distances) & (distances >= 0) & (distances <= threat.eps * (1 + TOLERANCE))
    if len(distances) != len(record.broken) or not within.all():
        raise InputError(
            f"{record.stage}, chunk {record.chunk} does not hold one distance within the budget per sample"
        )
    reached: np.ndarray[Any, Any] = np.minimum(distances, threat.eps)
    return reached
