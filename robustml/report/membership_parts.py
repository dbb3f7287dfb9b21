"""What a report says about membership: who was in the training data?"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from ..schema import Frozen
from .parts import Count, Estimate

__all__ = ["Limits", "Membership", "MembershipAttack", "MembershipPart", "RateAt", "Roc", "Strongest"]

Fraction = Annotated[float, Field(ge=0, le=1)]


class Limits(Frozen):
    """A figure in [0, 1] with its interval, where it is no plain proportion."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class RateAt(Frozen):
    """The share of members that is found at a false positive rate."""

    fpr: float = Field(gt=0, lt=1)
    tpr: Estimate | None
    """None: not resolvable."""
    achieved: Estimate | None
    """False positives among the non-members that the threshold was not chosen on."""
    reason: str | None
    """Why there is no figure."""


class MembershipPart(Frozen):
    """What an attack finds out about some of the samples."""

    name: str
    members: Count
    non_members: Count
    auc: Limits | None
    advantage: Limits | None
    tpr: list[RateAt]


class Roc(Frozen):
    """Points of the curve by rising rates, as two columns."""

    fpr: list[Fraction]
    tpr: list[Fraction]

    @pydantic.model_validator(mode="after")
    def _in_pairs(self) -> Roc:
        if len(self.fpr) != len(self.tpr):
            raise ValueError("its two columns are not equally long")
        return self


class MembershipAttack(Frozen):
    """How well one attack tells members from non-members."""

    attack: str
    tier: Literal["quick", "few", "many"]
    references: Count
    queries: Count
    """Questions to the model per sample."""
    members: Count
    non_members: Count
    auc: Limits | None
    advantage: Limits | None
    """The highest true minus false positive rate over all thresholds."""
    tpr: list[RateAt]
    roc: Roc
    per_class: list[MembershipPart]
    worst_decile: MembershipPart | None
    """The tenth of the samples that reference models say is the most exposed; None without references."""
    note: str | None


class Strongest(Frozen):
    """The most that any of the attacks finds out; every interval holds for the highest of them."""

    attacks: int = Field(ge=1)
    advantage: Limits
    advantage_by: str
    auc: Limits
    auc_by: str
    tpr: list[RateAt]
    tpr_by: list[str | None]


class Membership(Frozen):
    """Membership inference on the model."""

    tier: Literal["quick", "few", "many"]
    references: Count
    members: Count
    non_members: Count
    duplicates: Count
    """Non-members that equal a member, and were left out for that."""
    member_accuracy: Estimate
    non_member_accuracy: Estimate
    attacks: list[MembershipAttack]
    strongest: Strongest
    control: Limits | None
    """AUC of the losses of models that never saw either set: a half, unless the sets differ in themselves."""
    seed: int = Field(ge=0, lt=2**63)
