"""What a report says about privacy: epsilon from above and from below, membership, and other leaks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..schema import Frozen
from .membership_parts import Limits, Membership
from .parts import Count, Estimate

__all__ = [
    "Accounted",
    "Attribute",
    "AuditedEpsilon",
    "Claim",
    "Conformance",
    "ConformanceCheck",
    "Difference",
    "Extraction",
    "ExtractionPoint",
    "Inversion",
    "Ladder",
    "Privacy",
    "Rung",
    "Undone",
]

Positive = Annotated[float, Field(ge=0)]


class Accounted(Frozen):
    """The epsilon from above: what an accountant says of the mechanism that training claims to have been."""

    epsilon: Positive | None
    """None: no noise was added, so that no epsilon holds."""
    delta: float = Field(gt=0, lt=1)
    accountant: str
    """"prv" or "rdp"."""
    noise_multiplier: Positive | None = None
    """None, as what follows, where several have trained, each in a way of their own."""
    sampling_rate: float | None = Field(default=None, ge=0, le=1)
    steps: Count | None = None
    clipping_norm: Positive | None = None
    expected_batch: Count | None = None
    mode: str | None = None
    """How the gradient of each sample was taken."""
    neighbors: str
    """For which change of the data it holds."""
    randomness: str
    """Where noise and sampling came from; whoever knows a seed knows the noise."""
    source: str
    """Whose word it is."""


class AuditedEpsilon(Frozen):
    """An epsilon from below: training has no guarantee with a smaller one."""

    epsilon: Positive | None
    """None: not resolvable, which is no sign of privacy."""
    delta: float = Field(ge=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    """Of this bound; higher than that of the report where several audits share the risk."""
    method: str
    canaries: Count
    runs: Count
    """Models that were trained for it."""
    guesses: Count
    correct: Count
    cap: Positive
    """The most that so many canaries could have shown."""
    reason: str | None
    """Why epsilon is None."""
    accounted: Positive | None
    """What the accountant says of the very run that was audited."""
    assumes: str | None = None
    """What the bound rests on beside fair coins. One that assumes something is shown beside the pair."""


class Claim(Frozen):
    """A parameter that the accountant was told, and what was measured of it."""

    name: str
    claimed: float
    value: float | None
    low: float | None
    high: float | None
    reason: str | None
    """Why it could not be measured."""


class ConformanceCheck(Frozen):
    """One test of whether training does what it claims."""

    name: str
    passed: bool
    p_value: float = Field(ge=0, le=1)
    """Adjusted for the number of tests."""
    fault: str
    """What it is there to find."""
    power: float = Field(ge=0, le=1)
    """How probable it was that such a fault would be found."""
    reason: str | None
    """What it cannot find with so few canaries and steps."""


class Conformance(Frozen):
    """Phantom canaries went through the sampler, the clipping and the noise of the training loop."""

    passed: bool
    confidence: float = Field(gt=0, lt=1)
    """At least this share of faultless runs passes all checks."""
    canaries: Count
    included: Count
    steps: Count
    claims: list[Claim]
    checks: list[ConformanceCheck]


class Difference(Frozen):
    """A difference of two shares, in [-1, 1]."""

    value: float = Field(ge=-1, le=1)
    low: float = Field(ge=-2, le=2)
    high: float = Field(ge=-2, le=2)

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] points"


class Inversion(Frozen):
    """Reconstructions of the classes: what they show of each class, and whether of any member."""

    classes: Count
    correlation: float | None
    """With the mean of the class; the model describes its classes, which is no member's secret."""
    control: float | None
    """The same of a model that has seen no member."""
    public: float | None
    """The same of the mean of non-members: what data without the model gives."""
    nearer: float | None = Field(ge=0, le=1)
    """The share of pairs in which the member is nearer than the non-member; a half by chance."""
    p_value: float | None = Field(ge=0, le=1)
    """Of no tie to the members."""
    queries: Count
    reason: str | None
    """Why nothing can be said about members."""


class Attribute(Frozen):
    """One feature of a record inferred from the others, with the model's answers and without."""

    feature: str
    values: list[str]
    method: str
    learner: str
    queries: Count
    members: Estimate
    baseline: Estimate
    """Of the same learner without the model, on the same members."""
    gain: Difference
    non_member_gain: Difference
    excess: Difference
    """The gain on members beyond that on non-members: what comes from having been trained on."""


class ExtractionPoint(Frozen):
    """A copy made of so many answers."""

    queries: Count
    fidelity: Estimate
    """How often the copy answers as the target does."""
    without: Estimate | None
    """The same of a model trained on the true labels of the same samples without any query."""
    gain: Difference | None
    accuracy: Estimate
    transfer: Estimate | None
    """Adversarial examples made on the copy that fool the target."""


class Extraction(Frozen):
    """How well the model can be copied from its answers."""

    reply: Literal["probabilities", "labels"]
    constant: Estimate
    """Fidelity of always giving the answer that is most frequent."""
    points: list[ExtractionPoint]


class Rung(Frozen):
    """One way of training the same network on the same data."""

    name: Literal["plain", "clipped", "private"]
    accuracy: Estimate
    clipping_norm: Positive | None
    noise_multiplier: Positive | None
    epsilon: Positive | None
    """None: no epsilon holds."""


class Ladder(Frozen):
    """What each part of private training costs in accuracy, on the same test data."""

    rungs: list[Rung]
    clipping: Difference
    """Clipped minus plain."""
    noise: Difference
    """Private minus clipped."""
    total: Difference
    """Private minus plain."""
    delta: float = Field(ge=0, lt=1)
    seed: int = Field(ge=-(2**63), lt=2**63)
    randomness: str
    verdict: str


class Undone(Frozen):
    """A part of the audit that was not carried out, or an attack of it."""

    part: str
    reason: str
    asked: bool
    """Whether it was asked for and possible, so that its absence makes the report untrusted."""


class Privacy(Frozen):
    """What training gave away, from above and from below."""

    tier: Literal["quick", "few", "many"]
    recipe: str | None
    """What models were trained by for the audit; None where none was."""
    confidence: float = Field(gt=0, lt=1)
    seconds: Positive
    accounted: Accounted | None
    """What the model claims of itself; None where it claims nothing."""
    rerun: Accounted | None
    """Of a run by the recipe with canaries in its data, which is what epsilon was audited on."""
    audited: AuditedEpsilon | None
    """The first of the audits that assume nothing but fair coins."""
    pair: str
    """Both in one sentence."""
    audits: list[AuditedEpsilon]
    loop: Conformance | None
    """Of the training loop with the recipe's objective: few samples, little noise and many draws, so that
    every fault that its checks are made for would be found."""
    conformance: Conformance | None
    """Of a whole run by the recipe, the one that epsilon was audited on."""
    membership: Membership | None
    inversion: Inversion | None
    attribute: Attribute | None
    extraction: Extraction | None
    ladder: Ladder | None
    undone: list[Undone]
    notes: list[str]
    """What else must be known to read the figures."""
    doubts: list[str]
    """Why the accounted epsilon does not hold, or what is missing; each makes the report untrusted."""

    @property
    def advantage(self) -> Limits | None:
        """The highest membership advantage, with limits that hold for the highest of all attacks."""
        return None if self.membership is None else self.membership.strongest.advantage
