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
from ..registry import Access, all_corruptions, find_attack, find_corruption
from ..schema import Frozen
from ..targets.privacy import PrivacyTable
from ..threats import Threat, parse_threat
from .probing import can_be_followed, doubled, is_wanted
from .randomized import Randomness
from .suite import CurveAttack, Suite, kept_for, unusable

__all__ = ["Plan", "Stage", "curve_budgets", "stages"]

Kind = Literal[
    "clean",
    "attack",
    "curve",
    "gradients",
    "ordering",
    "unbounded",
    "randomness",
    "corruption",
    "worst",
    "black-box",
    "effort",
    "transfer",
    "binary",
    "state",
    "before",
    "oblivious",
    "components",
    "certificate",
    "contradiction",
]


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
    goals: list[str] = []
    """What the attacker wants, with class numbers, as in "3->8" or "*->0"; any wrong answer, if empty."""
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
    randomness: Randomness | None = None
    """How a model that answers at random is treated; None for one that answers alike when asked again."""
    guards: list[dict[str, Any]] = []
    """What stands before the model: the name and the options of each guard, in order."""
    rejects: bool = False
    """Whether one of them may reject an input."""
    certifies: bool = False
    """Whether the first of them certifies radii, and nothing behind it is in the way of that."""
    twin_sha256: str | None = None
    """Digest of the undefended or earlier model whose adversarial inputs are tried, if one was given."""
    privacy: PrivacyTable | None = None
    """How what training gave away is audited, beside what attacks on inputs find; None for not at all."""
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
        of: The name of the threat model that this stage belongs to, or of the corruption.
        entry: The attack to run, or the transformations to search, where there are any.
        skipped: Why the stage cannot run at all, if so.
        severity: Of the corruption, from 1 to 5.
        nearest: Whether it looks at every sample for the nearest adversarial point within the budget, and not
            only at those that stand.
    """

    key: str
    kind: Kind
    threat: Threat | None = None
    of: str = ""
    entry: CurveAttack | None = None
    skipped: str | None = None
    severity: int = 0
    nearest: bool = False


def stages(plan: Plan) -> list[Stage]:
    """The stages of a plan in the order in which they run."""
    return [
        Stage("clean", "clean"),
        *_certificate_stage(plan),
        *(stage for threat in plan.bound_threats for stage in _threat_stages(plan, threat)),
        *_corruption_stages(plan),
    ]


def _certificate_stage(plan: Plan) -> Iterator[Stage]:
    if plan.certifies and plan.suite.certificates.draws:
        yield Stage("certificate", "certificate")


def _corruption_stages(plan: Plan) -> Iterator[Stage]:
    settings = plan.suite.corruptions
    if settings is None:
        return
    for name in all_corruptions() if settings.kinds == "all" else settings.kinds:
        reason = _not_corruptible(plan.spec, find_corruption(name).channels)
        for severity in sorted(settings.severities):
            yield Stage(
                f"corruption/{name}-{severity}", "corruption", of=name, skipped=reason, severity=severity
            )
    for entry in settings.worst:
        reason = _not_corruptible(plan.spec)
        yield Stage(f"worst/{entry.use}", "worst", of=entry.use, entry=entry, skipped=reason)


def _not_corruptible(spec: InputSpec, channels: frozenset[int] = frozenset()) -> str | None:
    """Why inputs have no corrupted version, if so."""
    if not spec.is_image:
        return f"the inputs are not images: their shape is {list(spec.shape)}"
    if spec.one_hot:
        return "the inputs have one-hot groups, which no picture has"
    if channels and spec.shape[0] not in channels:
        wanted = " or ".join(map(str, sorted(channels)))
        return f"it needs {wanted} channels and the inputs have {spec.shape[0]}"
    return None


def _threat_stages(plan: Plan, threat: Threat) -> Iterator[Stage]:
    access, name = Access[plan.access.upper()], threat.name
    if is_wanted(plan.suite, "state"):
        yield Stage(f"{name}/before", "before", threat, name)
    if plan.guards:
        # It looks at every sample, as the score beside which it is put does.
        yield Stage(f"{name}/oblivious", "oblivious", threat, name, nearest=True)
    for entry in plan.suite.attack:
        if kept_for(entry, access, threat.norm) is not None:
            continue
        reason = unusable(entry, access, threat.norm)
        yield Stage(f"{name}/{entry.id}", "attack", threat, name, entry, reason)
    yield from _attacking_probes(plan, threat)
    if plan.randomness is not None and is_wanted(plan.suite, "randomness"):
        yield Stage(f"{name}/randomness", "randomness", threat, name)
    yield from _curve_stages(plan, threat)
    if any(_certificate_stage(plan)) and is_wanted(plan.suite, "contradiction"):
        yield Stage(f"{name}/contradiction", "contradiction", threat, name)
    yield from _looking_probes(plan, threat)


def _curve_stages(plan: Plan, threat: Threat) -> Iterator[Stage]:
    access, name, budgets = Access[plan.access.upper()], threat.name, curve_budgets(plan, threat)
    drawn = next((e for e in plan.suite.curve.attack if unusable(e, access, threat.norm) is None), None)
    if drawn is None or not budgets:
        return
    if not find_attack(drawn.use).minimum:
        for factor, eps in budgets.items():
            yield Stage(f"{name}/curve-{factor:g}", "curve", threat.at(eps), name, drawn)
    elif threat.eps == max(other.eps for other in plan.bound_threats if other.norm == threat.norm):
        # One search for the nearest adversarial point tells every budget of a norm.
        widest = max(threat.eps, *budgets.values())
        yield Stage(f"{name}/curve", "curve", threat.at(widest), name, drawn, nearest=True)


def curve_budgets(plan: Plan, threat: Threat) -> dict[float, float]:
    """The budgets of the points of a threat's security curve, beside its own, by their factor."""
    budgets = {factor: _curve_eps(threat, factor) for factor in plan.suite.curve.points}
    return {factor: eps for factor, eps in budgets.items() if eps is not None}


def _attacking_probes(plan: Plan, threat: Threat) -> Iterator[Stage]:
    """The probes whose attacks may break what the suite left standing."""
    access, name, suite = Access[plan.access.upper()], threat.name, plan.suite
    if is_wanted(suite, "ordering"):
        yield Stage(f"{name}/ordering", "ordering", threat, name)
    if is_wanted(suite, "black-box") and access is Access.GRADIENT:
        yield Stage(f"{name}/black-box", "black-box", threat, name)
    if is_wanted(suite, "effort") and (entry := doubled(suite, access, threat.norm)):
        yield Stage(f"{name}/effort", "effort", threat, name, entry)
    if is_wanted(suite, "transfer") and plan.twin_sha256 is not None:
        yield Stage(f"{name}/transfer", "transfer", threat, name)


def _looking_probes(plan: Plan, threat: Threat) -> Iterator[Stage]:
    """The probes that look at the model itself; the last one sees what all calls before have left of it."""
    access, name, suite = Access[plan.access.upper()], threat.name, plan.suite
    if plan.guards and is_wanted(suite, "components") and can_be_followed(access, threat.norm):
        yield Stage(f"{name}/components", "components", threat, name)
    if access is Access.GRADIENT and is_wanted(suite, "gradients"):
        yield Stage(f"{name}/gradients", "gradients", threat, name)
    if access is Access.GRADIENT and is_wanted(suite, "binary") and plan.randomness is None:
        yield Stage(f"{name}/binary", "binary", threat, name)
    # With goals it proves nothing: a model may have no input that it takes for a target class.
    if access > Access.DECISION and threat.norm != "l0" and not plan.goals and is_wanted(suite, "unbounded"):
        yield Stage(f"{name}/unbounded", "unbounded", threat, name)
    if is_wanted(suite, "state"):
        yield Stage(f"{name}/state", "state", threat, name)


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
