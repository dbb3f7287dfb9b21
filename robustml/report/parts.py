"""The parts that a report is made of, one small model each.

Fractions are in [0, 1]; scores are in [0, 100]. A figure that was not measured is None, never a guess.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..schema import Frozen

__all__ = [
    "AttackResult",
    "Bounds",
    "Certificates",
    "CertifiedPoint",
    "Change",
    "ClassResult",
    "Clean",
    "Condition",
    "Count",
    "CurvePoint",
    "Data",
    "Diagnostic",
    "Estimate",
    "EvidenceFile",
    "Fragile",
    "Gate",
    "Guards",
    "ModelInfo",
    "Passes",
    "Picture",
    "PlainData",
    "Queries",
    "Randomized",
    "Samples",
    "Score",
    "Scores",
    "TargetInfo",
    "ThreatResult",
    "Unaware",
    "Whole",
]

_DEEPEST = 16


def _plain(value: Any, depth: int = 0) -> Any:
    """Turn options into what JSON can hold, so that a report read back equals the one written."""
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        return {_text(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, depth + 1) for item in value), key=repr)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**64:
        return int(value)
    return _text(str(value))


def _text(text: str) -> str:
    # Half a surrogate pair is a valid str but cannot be written to any file.
    return text.encode("utf-8", "backslashreplace").decode()


def _keyed_by_text(value: Any) -> Any:
    return _plain(value) if isinstance(value, dict) else value


Sha256 = str
Count = Annotated[int, Field(ge=0, lt=2**63)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
PlainData = Annotated[dict[str, Any], BeforeValidator(_keyed_by_text), AfterValidator(_plain)]


class Estimate(Frozen):
    """A proportion with its exact confidence interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    count: Count
    total: int = Field(ge=1, lt=2**63)
    method: Literal["clopper-pearson"] = "clopper-pearson"

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Score(Frozen):
    """A figure from 0 (worst) to 100 (best) with its interval."""

    value: float = Field(ge=0, le=100)
    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)


class Scores(Frozen):
    """One measurable quantity each, without weights; None where it was not measured."""

    evasion: Score | None = None
    """The share of samples that withstand every attack under every threat model."""
    corruption: Score | None = None
    privacy: Score | None = None
    """Of the highest membership advantage; the value is that at its upper limit, not at what was seen."""
    overall: Score | None = None
    """The weakest of the scores that were measured."""


class ModelInfo(Frozen):
    """The model that was attacked."""

    name: str
    access: Literal["decision", "score", "gradient"]
    outputs: str
    parameters: Count | None
    sha256: Sha256 | None
    """Over the weights and the input specification; None for a black box that cannot be seen into."""


class Data(Frozen):
    """The data it was attacked on."""

    name: str
    samples: Count
    sha256: Sha256


class TargetInfo(Frozen):
    """What was stress-tested."""

    name: str
    model: ModelInfo
    data: Data
    inputs: PlainData
    classes: Count
    class_names: list[str]


class Randomized(Frozen):
    """How a model that answers at random was judged and attacked."""

    draws: int = Field(ge=2)
    """Draws that vote on each point: it is correct if the label wins in more than half of them."""
    eot: int = Field(ge=1)
    """Draws that attacks average each answer and each gradient over."""
    flip_rate: float | None = Field(ge=0, le=1)
    """The share of draws on clean inputs that differ from the most frequent answer."""


class ClassResult(Frozen):
    """One class; `robust` is None in the clean table."""

    label: Whole
    name: str
    total: Count
    correct: Count
    robust: Count | None = None


class Clean(Frozen):
    """Accuracy without an attacker."""

    accuracy: Estimate
    per_class: list[ClassResult]


class Passes(Frozen):
    """Samples that went through the model; a backward pass costs about two forward ones."""

    forward: Count = 0
    backward: Count = 0


class Queries(Frozen):
    """How often the model was asked about a sample before it broke, over the samples that broke."""

    median: float = Field(ge=0)
    max: Count


class AttackResult(Frozen):
    """One attack of the suite; it saw only the samples that had survived the ones before it."""

    id: str
    attack: str
    options: PlainData
    access: Literal["decision", "score", "gradient"]
    status: Literal["ran", "partial", "skipped"]
    """"partial": the budget ran out before it had seen every survivor; "skipped": it could not run at all."""
    reason: str | None = None
    attempted: Count
    broken: Count
    rescued: Count
    """Broken samples whose adversarial point the attack visited but did not return; counted all the same."""
    unconfirmed: Count
    """Samples that the attack claimed but that the check outside it did not confirm; not counted."""
    passes: Passes
    seconds: float = Field(ge=0)
    queries: Queries | None = None
    """Attacks on scores or labels alone; None where nothing broke or calls could not be told apart."""


class CurvePoint(Frozen):
    """Robust accuracy at one budget; every point is at or below the ones at smaller budgets."""

    eps: float = Field(ge=0)
    robust_accuracy: Estimate


class CertifiedPoint(Frozen):
    """Certified accuracy at one budget: the share of samples that no perturbation within it can break."""

    eps: float = Field(ge=0)
    certified_accuracy: Estimate


class Certificates(Frozen):
    """How the certificates were drawn that bound robust accuracy from below."""

    select: int = Field(ge=1)
    """Draws that chose the class of a sample."""
    draws: int = Field(ge=1)
    """Draws that bounded its probability."""
    confidence: float = Field(gt=0, lt=1)
    """Of all certificates together: that not one of them is wrong."""
    attempted: Count
    """Samples that were classified correctly, and so were to be certified."""
    certified: Count
    """Those with a radius above 0."""
    abstained: Count
    """Those of which nothing can be said; they count as errors, as do those certified with a wrong label."""
    median_radius: float | None = Field(ge=0)
    """Over the certified ones, in L2 and in units of `eps`."""
    passes: Count
    """Forward passes, over all samples."""


class Diagnostic(Frozen):
    """A check of whether the figures can be believed."""

    code: str
    title: str
    status: Literal["pass", "warn", "fail", "skipped"]
    critical: bool
    """A failed critical diagnostic makes the report untrusted."""
    value: float | None
    threshold: str
    detail: str
    """What was found, in one sentence with its figures."""
    meaning: str
    remedy: str


class Picture(Frozen):
    """PNG images, base64; the difference is stretched so that grey is no change."""

    original: Base64
    adversarial: Base64
    difference: Base64


class Change(Frozen):
    """One feature of a tabular input, before and after."""

    feature: str
    before: float
    after: float


class Fragile(Frozen):
    """A sample that broke under the smallest perturbation."""

    sample: Count
    """Row of the data set."""
    label: Whole
    predicted: Whole
    attack: str
    distance: float = Field(ge=0)
    eps: float = Field(ge=0)
    """The smallest budget within which it is known to break."""
    picture: Picture | None = None
    changes: list[Change] = Field(default_factory=list)


class Bounds(Frozen):
    """Robust accuracy from above (attacks) and from below (certificates); None where not measured."""

    upper: Estimate | None
    lower: Estimate | None = None


class Guards(Frozen):
    """What stands before the model, and what it costs on clean data."""

    guards: list[PlainData]
    """The name of each guard as "guard", and its options, in the order in which an input meets them."""
    bare_accuracy: Estimate
    """Clean accuracy of the model without its guards; that with them is in `clean`."""
    rejected: Estimate | None
    """The share of clean samples that are rejected, each of which counts as an error; None where no guard
    rejects."""
    latency: float | None = Field(ge=0)
    """How many times as long a batch takes with the guards as without, on this machine at that time."""


class Unaware(Frozen):
    """Attackers who do not know of the guards: they attack the model without them."""

    robust_accuracy: Estimate
    """Of the guarded model; the figure that counts is the one under attackers who know."""
    bare: Estimate
    """Of the model without its guards under the same attacks, on samples that the guarded one gets right."""


class ThreatResult(Frozen):
    """Everything about one threat model."""

    name: str
    norm: str
    eps: float = Field(ge=0)
    adaptive: bool
    """Whether the attacks saw the whole deployed system."""
    robust_accuracy: Bounds
    undecided: float | None = Field(ge=0, le=1)
    """The share of samples between the two bounds: neither broken nor certified."""
    unaware: Unaware | None = None
    """Beside it: attackers who do not know of the guards; None for a model without any."""
    attacks: list[AttackResult]
    curve: list[CurvePoint]
    certified: list[CertifiedPoint] = []
    """The curve from below; empty for a model without certificates."""
    per_class: list[ClassResult]
    diagnostics: list[Diagnostic]
    outcomes: str
    """One letter per sample in the order of `samples.ids`: "s" survived, "b" broken, "m" wrong when clean."""
    fragile: list[Fragile]


class Condition(Frozen):
    """One gate condition; `value` is the interval limit that it was judged on, None if not measured."""

    expression: str
    figure: str
    value: float | None
    passed: bool
    reason: str


class Gate(Frozen):
    """The conditions for release; `passed` is None when none was set."""

    conditions: list[Condition]
    passed: bool | None


class EvidenceFile(Frozen):
    """Adversarial examples, relative to the run folder."""

    path: str
    sha256: Sha256
    samples: Count


class Samples(Frozen):
    """Which samples were tested, and where the counterexamples are."""

    ids: list[Whole]
    """Rows of the data set."""
    evidence: list[EvidenceFile]
