"""What follows from the findings of an audit: the pair, the score, and reasons not to trust the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import read_object, write_atomic
from ..schema import validated
from .parts import Score
from .privacy_parts import Accounted, AuditedEpsilon, Conformance, Privacy

__all__ = ["FILE", "keep_privacy", "pair_of", "privacy_doubts", "privacy_of", "privacy_score", "settled"]

FILE = "privacy.json"

_SAME = 0.01  # two accounted epsilons that are so close are of the same settings
_SLACK = 1e-6


def privacy_of(folder: Path) -> Privacy | None:
    """What the audit in a run folder found; None if there was none, or it is not finished.

    Raises:
        InputError: if its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    return settled(validated(Privacy, read_object(path), where=str(path)))


def keep_privacy(folder: Path, found: Privacy) -> None:
    """Write what an audit found into a run folder.

    Raises:
        RunError: if it cannot be written.
    """
    write_atomic(folder / FILE, found.model_dump_json(indent=1) + "\n")


def privacy_doubts(found: Privacy | None, *, asked: bool) -> list[str]:
    """Why the section cannot be relied on, if so."""
    if found is None:
        return ["privacy: the audit that was asked for is not finished"] if asked else []
    return found.doubts


def settled(found: Privacy) -> Privacy:
    """Work out anew whatever follows from the findings."""
    audited = _headline(found)
    found = found.model_copy(update={"audited": audited})
    return found.model_copy(
        update={
            "pair": pair_of(found.accounted, audited),
            "notes": list(_notes(found)),
            "doubts": list(_doubts(found)),
        }
    )


def privacy_score(privacy: Privacy | None) -> Score | None:
    """100 times (1 - the upper limit of the highest membership advantage); None if it was not measured."""
    limits = None if privacy is None else privacy.advantage
    if limits is None:
        return None
    worst, best = 100 * (1 - limits.high), 100 * (1 - limits.low)
    return Score(value=worst, low=worst, high=best)


def _headline(found: Privacy) -> AuditedEpsilon | None:
    """The first of the audits that assume nothing: the choice does not depend on what they found."""
    return next((audit for audit in found.audits if audit.assumes is None), None)


def pair_of(accounted: Accounted | None, audited: AuditedEpsilon | None) -> str:
    """Epsilon from above and from below in one sentence."""
    if audited is None:
        return f"{_above(accounted)}; from below: not audited"
    upper = audited.accounted
    models = f"{audited.runs:,} model{'s' if audited.runs != 1 else ''}"
    canaries = f"{audited.canaries:,} canar{'ies' if audited.canaries != 1 else 'y'}"
    ends = (
        "not resolvable" if audited.epsilon is None else f"{audited.epsilon:.2f}",
        "no bound)" if upper is None else f"{upper:.2f}]",
    )
    line = (
        f"epsilon in [{', '.join(ends)} at delta {audited.delta:g}, {100 * audited.confidence:g} % "
        f"confidence, {canaries}, {models} ({audited.method})"
    )
    if audited.epsilon is None and audited.reason:
        line += f"; from below: {audited.reason}"
    if accounted is None or _differs(accounted.epsilon, upper):
        line = f"of the model: {_above(accounted)}; of a run by the recipe: {line}"
    return line


def _above(accounted: Accounted | None) -> str:
    if accounted is None:
        return "no epsilon is accounted for (it does not claim to be private)"
    if accounted.epsilon is None:
        return "no epsilon holds (no noise was added)"
    return (
        f"epsilon at most {accounted.epsilon:.2f} at delta {accounted.delta:g} as accounted "
        f"({accounted.accountant}; {accounted.source})"
    )


def _differs(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _SAME * max(one, other)


def _notes(found: Privacy) -> Iterator[str]:
    if found.accounted is not None and found.accounted.randomness.startswith("seed"):
        yield (
            f"noise and sampling came from {found.accounted.randomness}: epsilon holds only against those "
            "who do not know it"
        )
    if found.accounted is None and found.rerun is not None:
        yield (
            "the recipe is private, but the model does not claim to be: unless this recipe trained it, "
            "figures of models that the audit trained are about other models"
        )
    section = found.membership
    if section is not None and section.control is not None:
        control = section.control
        if not control.low <= 0.5 <= control.high:
            yield (
                f"models that saw neither set tell members from non-members (AUC {control}): the sets differ "
                "in themselves, and attacks may see that instead of membership"
            )
    if section is not None and section.duplicates:
        yield f"{section.duplicates:,} non-members equal a member and were left out"
    for test, what in _tests(found):
        blind = [check.name for check in test.checks if check.reason]
        if blind:
            yield f"the conformance test of {what} could hardly have failed on: {', '.join(blind)}"


def _tests(found: Privacy) -> Iterator[tuple[Conformance, str]]:
    if found.loop is not None:
        yield found.loop, "the training loop"
    if found.conformance is not None:
        yield found.conformance, "the run by the recipe"


def _doubts(found: Privacy) -> Iterator[str]:
    for test, what in _tests(found):
        failed = [check for check in test.checks if not check.passed]
        if failed or not test.passed:
            faults = "; ".join(f"{check.name}: {check.fault}, p = {check.p_value:.2g}" for check in failed)
            yield f"the conformance test of {what} failed ({faults}): the accounted epsilon does not hold"
    for audit in found.audits:
        beyond = audit.epsilon is not None and audit.accounted is not None
        if beyond and audit.assumes is None and (audit.epsilon or 0.0) > (audit.accounted or 0.0) + _SLACK:
            yield (
                f"an audit ({audit.method}) shows an epsilon of at least {audit.epsilon:.2f}, above the "
                f"{audit.accounted:.2f} that is accounted for: the accounted epsilon does not hold"
            )
    for part in found.undone:
        if part.asked:
            yield f"privacy: {part.part} is missing: {part.reason}"
