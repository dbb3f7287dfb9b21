"""The whole audit of a target: part by part, each kept as soon as it is finished, then put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..attacks.leakage.attributes import attribute_of
from ..errors import InputError
from ..report.model import Report
from ..report.parts import Clean
from ..report.privacy import keep_privacy, settled
from ..report.privacy_parts import Privacy, Undone
from ..targets import Target
from . import retraining, steps
from .job import Finding, Job
from .reporting import audit_report
from .steps import Fields

__all__ = ["Audit", "audit_target", "checked", "gathered", "parts_of", "save_audit"]

Step = Callable[[Job], Fields]


@dataclass(frozen=True)
class Audit:
    """An audit that was carried out: the job, what was found, and accuracy on the non-members."""

    job: Job
    privacy: Privacy
    clean: Clean


def save_audit(audit: Audit, *, gate: Mapping[str, str], command: str = "") -> Report:
    """Write the report of an audit that stands by itself into its folder, as JSON and as HTML."""
    report = audit_report(audit.job, audit.privacy, audit.clean, gate=gate, command=command)
    report.save(audit.job.out / "report.json")
    report.save(audit.job.out / "report.html")
    return report


def audit_target(
    target: Target,
    *,
    out: Path,
    device: str = "auto",
    confidence: float = 0.95,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
    deadline: float | None = None,
) -> Audit:
    """Audit what training gave away: everything that the target's [privacy] table asks for.

    Args:
        target: With `train`, whose samples are the members, and `privacy`.
        out: The run folder; privacy.json is written there at the end, and each finished part before.
        device: "auto", "cpu", "cuda", ...
        confidence: Of every interval.
        resume: Go on with what the folder holds.
        say: Told of the progress, a line at a time.
        deadline: Of `time.monotonic`, after which no further part is begun.

    Raises:
        InputError: for something that cannot be used, or a folder that holds another audit.
        RunError: if training fails, or the folder cannot be written; finished parts are kept.
    """
    job = checked(Job(target, out, device, confidence, say))
    job.open(resume=resume)
    findings = []
    for part, step in parts_of(job):
        found = job.finished(part)
        late = part != "clean" and deadline is not None and time.monotonic() >= deadline
        if found is None and late:
            reason = "the time budget was spent before"
            findings.append(
                Finding(part=part, seconds=0.0, undone=[Undone(part=part, reason=reason, asked=True)])
            )
            continue
        if found is None:
            job.say(f"privacy: {part}")
            begun = time.perf_counter()
            fields = step(job)
            found = Finding(part=part, seconds=round(time.perf_counter() - begun, 3), **fields)
            job.keep(found)
        findings.append(found)
    privacy = gathered(job, findings)
    keep_privacy(out, privacy)
    accuracy = next(found.clean for found in findings if found.clean is not None)
    return Audit(job, privacy, accuracy)


def checked(job: Job) -> Job:
    """Refuse what no audit could do, before anything is trained or written.

    Raises:
        InputError: saying what.
    """
    target = job.target
    if target.train is None:
        raise InputError(
            f"target {target.name!r} does not say what its model was trained on; give data.train in its file"
        )
    if len(target.data) < 2 or len(job.members) < 2:
        raise InputError("an audit needs at least 2 members and 2 non-members")
    if job.feature is not None:
        attribute_of(job.model.inputs, job.train.x, job.feature, bins=2)
    if job.recipe is not None:
        # Each of these refuses what it cannot do.
        _ = job.training, job.base
    return job


def parts_of(job: Job) -> Iterator[tuple[str, Step]]:
    """The parts of an audit by name, from cheap to dear."""
    table = job.table
    yield "clean", steps.clean
    yield "claim", steps.claimed
    yield "membership", steps.membership
    if table.attribute is not None:
        yield "attribute", steps.attribute
    leaks: dict[str, Step] = {"inversion": steps.inversion, "extraction": steps.extraction}
    for leak in table.leakage:
        yield leak, leaks[leak]
    if job.recipe is None:
        return
    private = job.privacy is not None
    if private:
        yield "loop", retraining.loop
    if table.canaries != 0:
        yield from [("phantoms", retraining.phantoms)] if private else []
        yield "canaries", retraining.canaries
    if table.runs is not None:
        yield "runs", retraining.runs
    if private:
        yield "ladder", retraining.rungs


def gathered(job: Job, findings: list[Finding]) -> Privacy:
    """Put the findings of all parts together."""
    fields = {
        name: next((value for f in findings if (value := getattr(f, name)) is not None), None)
        for name in (
            "accounted",
            "rerun",
            "membership",
            "inversion",
            "attribute",
            "extraction",
            "loop",
            "conformance",
            "ladder",
        )
    }
    section = fields["membership"]
    return settled(
        Privacy(
            tier=section.tier if section is not None else "quick",
            recipe=None if job.recipe is None else job.recipe.name,
            confidence=job.confidence,
            seconds=round(sum(found.seconds for found in findings), 3),
            audited=None,
            pair="",
            audits=[audit for found in findings for audit in found.audits],
            undone=[part for found in findings for part in found.undone],
            notes=[],
            doubts=[],
            **fields,
        )
    )
