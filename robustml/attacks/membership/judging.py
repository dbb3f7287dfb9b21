"""The verdict on scores: how well they tell members from others, in all, per class and where it is worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...estimates import Proportion
from .signals import Array
from .statistics import Limits, RateAt, advantage, auc, rate_above, roc, threshold_for

__all__ = ["MembershipResult", "Part", "Strongest", "Subjects", "judge", "strongest"]

_EXPOSED = 0.9  # the quantile above which a sample belongs to the most exposed tenth


@dataclass(frozen=True)
class Subjects:
    """The samples that attacks are judged on; row numbers are those of the scores.

    Attributes:
        members: Rows of samples that the target was trained on.
        chosen_on, reported_on: Two disjoint parts of the rows of non-members: thresholds are chosen on the
            first and reported on the second.
        y: The label of every row.
        exposure: How exposed every row is, going by other models than the target; None if that is unknown.
    """

    members: Array
    chosen_on: Array
    reported_on: Array
    y: Array
    exposure: Array | None = None


@dataclass(frozen=True)
class Part:
    """What an attack finds out about some of the samples.

    Attributes:
        name: Which samples.
        members, non_members: How many.
        auc, advantage: None where there is nobody to compare.
        tpr: At the thresholds that were chosen for all samples: of a part, the achieved rate may differ.
    """

    name: str
    members: int
    non_members: int
    auc: Limits | None
    advantage: Limits | None
    tpr: tuple[RateAt, ...]


@dataclass(frozen=True)
class MembershipResult:
    """How well an attack tells members from non-members.

    Attributes:
        attack: Its name.
        tier: What it takes: "quick" (no reference models), "few" or "many".
        references: How many reference models it used.
        queries: Questions to the target per sample.
        members, non_members: How many it is judged on.
        confidence: Of every interval, unless a field says otherwise.
        auc: See `statistics.auc`.
        advantage: See `statistics.advantage`.
        tpr: One for each false positive rate.
        roc: Points (FPR, TPR), at most 200.
        per_class: One for each label; each kind of interval holds for all classes at once (Bonferroni).
        most_exposed: The tenth of all samples that reference models say is the most exposed; the target's
            answers play no part in that choice. None without references.
        note: What else must be known, or None.
    """

    attack: str
    tier: str
    references: int
    queries: int
    members: int
    non_members: int
    confidence: float
    auc: Limits | None
    advantage: Limits | None
    tpr: tuple[RateAt, ...]
    roc: tuple[tuple[float, float], ...] = field(repr=False)
    per_class: tuple[Part, ...] = field(repr=False)
    most_exposed: Part | None
    note: str | None = None


@dataclass(frozen=True)
class Strongest:
    """The most that any of several attacks finds out.

    A maximum over attacks flatters the attacker. The lower limits are corrected for that (Bonferroni); the
    upper limits need none: the highest of several upper limits is above the limit of the attack that is the
    best in truth, which holds by itself.

    Attributes:
        attacks: How many were tried.
        advantage, auc: The highest, with limits for the highest.
        advantage_by, auc_by: Which attack had it.
        tpr: For each false positive rate: that of the attack that found the most members; the interval of
            `tpr` is about the most that any of them finds.
        tpr_by: Which attack, None where the rate cannot be resolved.
    """

    attacks: int
    advantage: Limits
    advantage_by: str
    auc: Limits
    auc_by: str
    tpr: tuple[RateAt, ...]
    tpr_by: tuple[str | None, ...]


def judge(
    attack: str,
    scores: Array,
    subjects: Subjects,
    *,
    learned: bool = False,
    tier: str = "quick",
    references: int = 0,
    queries: int = 1,
    fprs: Sequence[float] = (0.01, 0.001),
    confidence: float = 0.95,
    note: str | None = None,
) -> MembershipResult:
    """Judge the scores of an attack.

    Args:
        attack: Its name.
        scores: Of all rows (n,): the higher, the more like a member.
        subjects: The rows.
        learned: Whether the attack learned from the non-members that thresholds are chosen on; then the
            others alone are reported on, in every figure.
        tier, references, queries, note: As in `MembershipResult`.
        fprs: False positive rates.
        confidence: Of the intervals.
    """
    others = subjects.reported_on
    if not learned:
        others = np.sort(np.concatenate([subjects.chosen_on, others]))
    thresholds = [(fpr, *threshold_for(fpr, scores[subjects.chosen_on])) for fpr in fprs]

    def part(name: str, rows: Array, of: int = 1) -> Part:
        own, rest, tested = (
            scores[side[rows[side]]] for side in (subjects.members, others, subjects.reported_on)
        )
        jointly = 1 - (1 - confidence) / of
        rates = tuple(rate_above(*given, own, tested, jointly) for given in thresholds)
        return Part(name, len(own), len(rest), auc(own, rest, jointly), advantage(own, rest, jointly), rates)

    everyone = part("all", np.ones(len(scores), dtype=bool))
    labels = np.unique(subjects.y)
    exposed = None
    if subjects.exposure is not None:
        bar = np.quantile(subjects.exposure, _EXPOSED)
        exposed = part("most exposed tenth", subjects.exposure > bar)
    return MembershipResult(
        attack=attack,
        tier=tier,
        references=references,
        queries=queries,
        members=everyone.members,
        non_members=everyone.non_members,
        confidence=confidence,
        auc=everyone.auc,
        advantage=everyone.advantage,
        tpr=everyone.tpr,
        roc=roc(scores[subjects.members], scores[others]),
        per_class=tuple(part(f"class {k}", subjects.y == k, len(labels)) for k in labels),
        most_exposed=exposed,
        note=note,
    )


def strongest(
    scores: dict[str, Array], subjects: Subjects, results: Sequence[MembershipResult], learned: set[str]
) -> Strongest:
    """The most that any of the attacks finds out, with limits that hold for a maximum.

    Args:
        scores: Of each attack (n,).
        subjects: The rows.
        results: What `judge` said of each.
        learned: Names of the attacks that learned from non-members.
    """
    tried = len(results)
    confidence = results[0].confidence
    strict = 1 - (1 - confidence) / tried
    fprs = tuple(rate.fpr for rate in results[0].tpr)
    again = [
        judge(r.attack, scores[r.attack], subjects, learned=r.attack in learned, fprs=fprs, confidence=strict)
        for r in results
    ]
    best, best_by = _highest([(r.attack, r.advantage) for r in results], [r.advantage for r in again])
    area, area_by = _highest([(r.attack, r.auc) for r in results], [r.auc for r in again])
    rates = [_highest_rate(results, again, place) for place in range(len(fprs))]
    return Strongest(
        tried, best, best_by, area, area_by, tuple(r for r, _ in rates), tuple(by for _, by in rates)
    )


def _highest(
    found: Sequence[tuple[str, Limits | None]], strict: Sequence[Limits | None]
) -> tuple[Limits, str]:
    known = [
        (limits, lower.low, name)
        for (name, limits), lower in zip(found, strict, strict=True)
        if limits and lower
    ]
    limits, _, name = max(known, key=lambda entry: entry[0].value)
    return Limits(
        limits.value, max(low for _, low, _ in known), max(other.high for other, _, _ in known)
    ), name


def _highest_rate(
    results: Sequence[MembershipResult], again: Sequence[MembershipResult], place: int
) -> tuple[RateAt, str | None]:
    known = [
        (loose.tpr[place], strict.tpr[place], loose.attack)
        for loose, strict in zip(results, again, strict=True)
        if loose.tpr[place].tpr is not None
    ]
    if not known:
        return results[0].tpr[place], None
    rates = [(_rate(loose), _rate(strict)) for loose, strict, _ in known]
    top = max(range(len(known)), key=lambda number: rates[number][0].value)
    rate, value = known[top][0], rates[top][0]
    low, high = max(strict.low for _, strict in rates), max(loose.high for loose, _ in rates)
    shown = Proportion(value.count, value.total, value.value, low, high)
    return RateAt(rate.fpr, rate.threshold, shown, rate.achieved, None), known[top][2]


def _rate(rate: RateAt) -> Proportion:
    assert rate.tpr is not None
    return rate.tpr
