"""What every judge needs: the form of a finding, and the figures of a run as it asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...estimates import clopper_pearson
from ...threats import Threat
from ..ledger import Ledger, StageTotals

__all__ = [
    "Finding",
    "Status",
    "facts_of",
    "luck",
    "no_probe",
    "stages_of",
    "standing",
    "status_of",
    "status_of_count",
]

Status = Literal["pass", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a diagnostic found for one threat model; `value` is the figure held against the threshold."""

    code: str
    status: Status
    value: float | None
    detail: str


def stages_of(ledger: Ledger, threat: Threat) -> list[StageTotals]:
    """What the stages of one threat model did."""
    return [totals for totals in ledger.totals.values() if totals.stage.of == threat.name]


def facts_of(ledger: Ledger, threat: Threat, kind: str) -> dict[str, float]:
    """What the probe of one kind recorded; nothing if it did not run."""
    totals = ledger.totals.get(f"{threat.name}/{kind}")
    return totals.facts if totals is not None else {}


def standing(ledger: Ledger, threat: Threat) -> int:
    """How many samples withstand everything."""
    return int(ledger.standing(threat.norm, threat.eps).sum())


def no_probe(ledger: Ledger, otherwise: str) -> str:
    """Why there is nothing to judge."""
    if not ledger.correct.any():
        return "no sample is classified correctly"
    return f"not measured: {otherwise}"


def luck(ledger: Ledger, share: float) -> float:
    """A limit on a share of samples; ten times that for a randomized model, where some votes are luck."""
    return share if ledger.plan.randomness is None else 10 * share


def status_of(share: float, *, fail: float, warn: bool) -> Status:
    """The status of a share that may not exceed a limit."""
    if share > fail:
        return "fail"
    return "warn" if warn else "pass"


def status_of_count(count: int, total: int, *, fail: float) -> Status:
    """The status of a count of samples that should be 0, and fails where its share is above a limit for sure.

    One sample among a hundred is a warning; that it stands for more than the limit takes several.
    """
    if total and clopper_pearson(count, total)[0] > fail:
        return "fail"
    return "warn" if count else "pass"
