"""What a report says about corruptions: accuracy when nobody attacks, but the images are not as they were."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..schema import Frozen
from .parts import Count, Estimate, Passes, PlainData

__all__ = ["CorruptionResult", "Corruptions", "MeanEstimate", "SeverityResult", "WorstResult"]


class MeanEstimate(Frozen):
    """The mean over samples of a figure in [0, 1], with an interval that holds at any number of them."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    total: int = Field(ge=1, lt=2**63)
    """Samples; each counts once, however often it was corrupted."""
    method: Literal["betting"] = "betting"

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class SeverityResult(Frozen):
    """Accuracy under one corruption at one severity."""

    severity: int = Field(ge=1, le=5)
    accuracy: Estimate


class CorruptionResult(Frozen):
    """One corruption."""

    name: str
    group: str
    status: Literal["ran", "partial", "skipped"]
    """"partial": the budget ran out before every severity was seen; "skipped": it has no meaning here."""
    reason: str | None = None
    severities: list[SeverityResult]
    accuracy: MeanEstimate | None
    """The mean over the severities; None if one of them is missing."""


class WorstResult(Frozen):
    """Accuracy when for each sample the worst transformation of a set counts; not part of the mean."""

    name: str
    options: PlainData
    transformations: Count
    status: Literal["ran", "partial", "skipped"]
    reason: str | None = None
    attempted: Count
    """Samples that are classified correctly as they are."""
    broken: Count
    accuracy: Estimate | None


class Corruptions(Frozen):
    """Accuracy on images that are corrupted, but not by an attacker."""

    samples: Count
    clean: Estimate
    """Accuracy on the same samples as they are."""
    accuracy: MeanEstimate | None
    """The mean over all corruptions and severities; None if a part is missing."""
    kinds: list[CorruptionResult]
    worst: list[WorstResult]
    passes: Passes
