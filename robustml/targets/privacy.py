"""How privacy is to be audited: the [privacy] table of a target file, and part of the plan of a run."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from ..schema import Frozen

__all__ = ["Leak", "PrivacyTable", "Tier"]

Tier = Literal["quick", "few", "many"]
Leak = Literal["inversion", "extraction"]
Text = Annotated[str, Field(min_length=1)]

_COUNTS = {"quick": 0, "few": 4, "many": 64}
_FEW = 8


class PrivacyTable(Frozen):
    """The [privacy] table: members are data.train, non-members are the test data."""

    tier: Tier | None = None
    """"quick" trains no reference models, "few" 4 and "many" 64, unless `references` says how many."""
    references: int | None = Field(default=None, ge=0, le=10_000, multiple_of=2)
    recipe: Text | None = None
    """How the model was trained: the name of a recipe, or the path of its file. Reference models, canaries,
    the conformance test and the ladder are trained by it; without one there are none."""
    canaries: int | None = Field(default=None, ge=0, le=10**6)
    """How many are trained on, phantoms and mislabelled samples each; 0 for none. None for as many as do."""
    runs: int | None = Field(default=None, ge=16, le=10**6)
    """Train so many models, half of them with one canary, which shows an epsilon with exact error rates. None
    for none: it takes thousands of them to show much."""
    members: int | None = Field(default=None, ge=2, le=10**9)
    """Ask about so many members, drawn at random, instead of all."""
    leakage: list[Leak] = ["inversion", "extraction"]
    """What else to try."""
    attribute: Text | None = None
    """Of tabular data: the feature to infer from all others."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """What epsilon is audited at, where no claim of the model or the recipe names a delta."""

    @pydantic.model_validator(mode="after")
    def _trainable(self) -> PrivacyTable:
        count = self.reference_count
        if count and self.recipe is None:
            raise ValueError("reference models need a recipe to be trained by")
        if self.tier is not None and self.references is not None and self.tier != _tier(self.references):
            raise ValueError(f"tier {self.tier!r} does not go with {self.references} reference models")
        return self

    @property
    def reference_count(self) -> int:
        """How many reference models there are to be."""
        return self.references if self.references is not None else _COUNTS[self.tier or "quick"]


def _tier(references: int) -> str:
    return "quick" if not references else "few" if references <= _FEW else "many"
