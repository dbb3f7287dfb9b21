"""The section on privacy in words, as all renderers show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from .membership_parts import Limits, Membership, RateAt
from .parts import Estimate
from .privacy_parts import Accounted, Attribute, Conformance, Extraction, Inversion, Ladder, Privacy

__all__ = ["attack_cells", "claim_line", "limits", "privacy_lines", "rate", "rate_name", "short_rate"]


Part = TypeVar("Part")


def limits(figure: Limits | None) -> str:
    """A figure from 0 to 1 in percent with its interval, or a dash."""
    if figure is None:
        return "-"
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def rate_name(fpr: float) -> str:
    """What a true positive rate at this false positive rate is called."""
    return f"TPR at {100 * fpr:g} % FPR"


def rate(figure: RateAt) -> str:
    """A true positive rate, or why there is none."""
    return str(figure.tpr) if figure.tpr is not None else figure.reason or "not measured"


def short_rate(figure: RateAt) -> str:
    """The same where there is no room for a reason."""
    return str(figure.tpr) if figure.tpr is not None else "not resolvable"


def attack_cells(section: Membership) -> Iterator[tuple[str, list[str]]]:
    """A row per attack: its name, then AUC, advantage, and the rates."""
    for attack in section.attacks:
        rates = [short_rate(figure) for figure in attack.tpr]
        yield attack.attack, [limits(attack.auc), limits(attack.advantage), *rates]


def privacy_lines(section: Privacy, *, short: bool = False) -> Iterator[tuple[str, str]]:
    """The section line by line: a word, and what there is to say.

    Args:
        section: The section.
        short: Leave out what other lines say as well.
    """
    yield "Epsilon", section.pair
    yield from (() if short else _also(section))
    yield from _said("Accounted", None if short else section.accounted, _accounted)
    yield from _said("Membership", section.membership, _membership)
    yield from _said("Loop", section.loop, _conformance)
    yield from _said("Conformance", section.conformance, _conformance)
    yield from _said("Ladder", section.ladder, _ladder)
    yield from _said("Inversion", section.inversion, _inversion)
    yield from _said("Attribute", section.attribute, _attribute)
    yield from _said("Copying", section.extraction, _extraction)
    yield from (("Note", note) for note in section.notes)


def _said(name: str, part: Part | None, words: Callable[[Part], str]) -> Iterator[tuple[str, str]]:
    if part is not None:
        yield name, words(part)


def _also(section: Privacy) -> Iterator[tuple[str, str]]:
    """The audits of epsilon beside the one in the pair."""
    for audit in section.audits:
        if audit != section.audited:
            found = f"at least {audit.epsilon:.2f}" if audit.epsilon is not None else audit.reason or "-"
            given = f", if it is given {audit.assumes}" if audit.assumes else ""
            yield "Also", f"{found} ({audit.method}{given})"


def _accounted(claim: Accounted) -> str:
    how = {
        "noise multiplier": claim.noise_multiplier,
        "clipping norm": claim.clipping_norm,
        "sampling rate": claim.sampling_rate,
        "steps": claim.steps,
    }
    known = "".join(f", {name} {value:.4g}" for name, value in how.items() if value is not None)
    return (
        f"{claim.neighbors}, accountant {claim.accountant}{known}, randomness: {claim.randomness} "
        f"({claim.source})"
    )


def _membership(section: Membership) -> str:
    most = section.strongest
    number = f"{most.attacks} attacks" if most.attacks != 1 else "1 attack"
    with_what = f", {section.references} reference models" if section.references else ""
    rates = (
        f"{rate_name(figure.fpr)} {rate(figure)}{f' ({by})' if by else ''}"
        for figure, by in zip(most.tpr, most.tpr_by, strict=True)
    )
    return (
        f"the most of {number}{with_what} on {section.members:,} members and {section.non_members:,} "
        f"non-members: advantage {limits(most.advantage)} ({most.advantage_by}), AUC {limits(most.auc)} "
        f"({most.auc_by}); {'; '.join(rates)}"
    )


def claim_line(test: Conformance) -> str:
    """What was measured of each claim."""
    return "; ".join(
        f"{claim.name.replace('_', ' ')} {claim.claimed:.4g} as told, "
        + (
            (claim.reason or "not resolvable")
            if claim.value is None or claim.low is None or claim.high is None
            else f"{claim.value:.4g} [{claim.low:.4g}, {claim.high:.4g}] as seen"
        )
        for claim in test.claims
    )


def _conformance(test: Conformance) -> str:
    failed = [check.name for check in test.checks if not check.passed]
    verdict = "as the accountant was told" if test.passed else f"FAILED on {', '.join(failed)}"
    return (
        f"{verdict} ({test.canaries:,} phantom canaries over {test.steps:,} steps, "
        f"{len(test.checks)} checks); {claim_line(test)}"
    )


def _ladder(section: Ladder) -> str:
    rungs = ", ".join(f"{rung.name} {rung.accuracy}" for rung in section.rungs)
    return f"accuracy {rungs}; clipping {section.clipping}, noise {section.noise}: {section.verdict}"


def _inversion(section: Inversion) -> str:
    if section.nearer is None or section.p_value is None:
        return section.reason or "not resolvable"
    return (
        f"reconstructions are nearer to the member in {100 * section.nearer:.1f} % of pairs "
        f"(50 % by chance, p = {section.p_value:.2g})"
    )


def _attribute(section: Attribute) -> str:
    return (
        f"{section.feature} of members: {section.members} with the model, {section.baseline} without; "
        f"what comes from membership: {section.excess}"
    )


def _extraction(section: Extraction) -> str:
    parts = (
        f"{point.queries:,} queries make a copy that agrees on {point.fidelity}{_without(point.without)}"
        for point in section.points
    )
    return f"from {section.reply}: {'; '.join(parts)}"


def _without(share: Estimate | None) -> str:
    return "" if share is None else f" (without any query {share})"
