"""What a run will do, fixed before it starts: everything that decides its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt
from pydantic import Field

from ..goals import Goals, parse_goals
from ..inputs import InputSpec
from ..registry import Access
from ..schema import Frozen
from ..threats import Threat, parse_threat
from .randomized import Randomness
from .suite import CurveAttack, Suite, unusable

__all__ = ["Plan", "Stage", "stages"]

Kind = Literal["clean", "attack", "curve", "gradients", "ordering", "unbounded", "randomness"]


class Plan(Frozen):
    """The whole plan. Two runs with equal plans draw the same random numbers for the same samples."""

    schema_: Literal["robustml.plan/1"] = Field(default="robustml.plan/1", alias="schema")
    target: str
    model_name: str
    model_sha256: str | None
    parameters: int | None
    access: Literal["decision", "score", "gradient"]
    outputs: str
    inputs: dict[str, Any]
    classes: Annotated[int, Ge(2)]
    class_names: list[str]
    data_name: str
    data_sha256: str
    data_rows: int
    requested: Annotated[int, Ge(1)] | None
    """How many samples were asked for; None for all."""
    select: str
    ids: Annotated[list[int], Field(min_length=1)]
    """Rows of the data set, in the order in which they are worked on."""
    threats: Annotated[list[str], Field(min_length=1)]
    suite: Suite
    seed: int
    chunk: Annotated[int, Ge(1)]
    """Samples that are worked on, journalled and handed out together."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    max_passes: Annotated[float, Gt(0)] | None = None
    """Budget per sample of a chunk on average, a backward pass counting as two."""
    goals: list[str] = []
    """What the attacker wants, with class numbers, as in "3->8" or "*->0"; any wrong answer, if empty."""
    randomness: Randomness | None = None
    """How a model that answers at random is treated; None for one that answers alike when asked again."""
    gate: dict[str, str] = {}
    redact: bool = False
    environment: dict[str, str]
    command: str

    @cached_property
    def spec(self) -> InputSpec:
        return InputSpec.from_dict(self.inputs)

    @cached_property
    def aims(self) -> Goals:
        return parse_goals(self.goals, [str(label) for label in range(self.classes)])

    @property
    def samples(self) -> int:
        return len(self.ids)

    @property
    def chunks(self) -> int:
        return math.ceil(self.samples / self.chunk)

    def positions(self, chunk: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The positions in `ids` that a chunk holds."""
        return np.arange(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    @cached_property
    def bound_threats(self) -> list[Threat]:
        """The threat models, smaller budgets of a norm first: what breaks at one counts at the next."""
        threats = [parse_threat(text).within(self.spec) for text in self.threats]
        return sorted(threats, key=lambda threat: (threat.norm, threat.eps))


@dataclass(frozen=True)
class Stage:
    """One step of the plan, carried out on each chunk.

    Attributes:
        key: Its name in the journal.
        kind: What is done.
        threat: The threat model, at the budget that this stage uses; None for the clean pass.
        of: The name of the threat model that this stage belongs to.
        entry: The attack to run, where there is one.
        skipped: Why the stage cannot run at all, if so.
    """

    key: str
    kind: Kind
    threat: Threat | None = None
    of: str = ""
    entry: CurveAttack | None = None
    skipped: str | None = None


def stages(plan: Plan) -> list[Stage]:
    """The stages of a plan in the order in which they run."""
    return [
        Stage("clean", "clean"),
        *(stage for threat in plan.bound_threats for stage in _threat_stages(plan, threat)),
    ]


def _threat_stages(plan: Plan, threat: Threat) -> Iterator[Stage]:
    access, name = Access[plan.access.upper()], threat.name
    for entry in plan.suite.attack:
        reason = unusable(entry, access, threat.norm)
        yield Stage(f"{name}/{entry.id}", "attack", threat, name, entry, reason)
    yield Stage(f"{name}/ordering", "ordering", threat, name)
    if plan.randomness is not None:
        yield Stage(f"{name}/randomness", "randomness", threat, name)
    drawn = next((e for e in plan.suite.curve.attack if unusable(e, access, threat.norm) is None), None)
    if drawn is not None:
        for factor in plan.suite.curve.points:
            eps = _curve_eps(threat, factor)
            if eps is not None:
                yield Stage(f"{name}/curve-{factor:g}", "curve", threat.at(eps), name, drawn)
    if access is Access.GRADIENT:
        yield Stage(f"{name}/gradients", "gradients", threat, name)
    # With goals it proves nothing: a model may have no input that it takes for a target class.
    if access > Access.DECISION and threat.norm != "l0" and not plan.goals:
        yield Stage(f"{name}/unbounded", "unbounded", threat, name)


def _curve_eps(threat: Threat, factor: float) -> float | None:
    """The budget of a point of the curve, or None where it falls on the threat itself or is impossible."""
    assert threat.inputs is not None
    # Six digits are plenty for a place on a curve, and read better than 0.44999999999999996.
    eps = float(f"{threat.eps * factor:.6g}")
    if threat.norm == "l0":
        eps = float(round(eps))
    least = 1.0 if threat.norm == "l0" else threat.inputs.level
    if eps < least or eps == threat.eps or eps > threat.widest(threat.inputs):
        return None
    return eps
