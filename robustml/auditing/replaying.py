"""Replaying an audit: is what it found what the model gives, and does every figure follow from it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..report.model import Report
from ..report.privacy import FILE, privacy_of
from ..targets import Target
from .audit import checked, gathered, parts_of
from .job import PLAN, Finding, Job, read_plan
from .reporting import audit_report

__all__ = ["Replay", "replay_audit"]

# What only asks the model is done again; what trains others would not come out the same.
_AGAIN = frozenset({"clean", "claim", "membership", "attribute", "inversion"})
# Another machine rounds differently; a change of the model or of a sample moves more.
_SLACK = 1e-3


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes:
        problems: One line each.
        again: The parts that were done again.
        taken: The parts whose word was taken, since they train models.
    """

    problems: tuple[str, ...]
    again: tuple[str, ...]
    taken: tuple[str, ...]


def replay_audit(folder: Path, target: Target, *, device: str = "auto") -> Replay:
    """Do again what an audit asked the model, and build its report anew.

    Args:
        folder: The run folder; nothing in it is executed. A recipe that it names is read, as data.
        target: The model and the data, from a source that the caller trusts.
        device: Where to ask.

    Raises:
        InputError: if the folder holds no audit, or it cannot be read.
    """
    if not (folder / PLAN).is_file():
        return Replay((f"audit: there is no {PLAN}, so nothing stands behind the part on privacy",), (), ())
    plan = read_plan(folder)
    own = None if target.privacy is None else target.privacy.recipe
    table = plan.table.model_copy(update={"recipe": own or plan.table.recipe})
    same = dataclasses.replace(target, privacy=table, seed=plan.seed)
    job = checked(Job(same, folder, device, plan.confidence, lambda line: None))
    now = job.plan()
    problems = [
        f"audit: {name} of the target is {getattr(now, name)}, of the run {getattr(plan, name)}"
        for name in ("model_sha256", "data_sha256", "members", "recipe_sha256")
        if getattr(now, name) != getattr(plan, name)
    ]
    if problems:
        return Replay(tuple(problems), (), ())
    findings, again, taken = [], [], []
    for part, step in parts_of(job):
        found = job.finished(part)
        if found is None:
            problems.append(f"audit: its part {part} is not finished")
            continue
        findings.append(found)
        if part in _AGAIN and not (part == "membership" and table.reference_count):
            fresh = Finding(part=part, seconds=found.seconds, **step(job))
            problems += _differing(f"audit: {part}", found.model_dump(), fresh.model_dump())
            again.append(part)
        else:
            taken.append(part)
    problems += _figures(job, findings)
    return Replay(tuple(problems), tuple(again), tuple(taken))


def _figures(job: Job, findings: list[Finding]) -> Iterator[str]:
    """Where the files at the top differ from what follows from the parts."""
    privacy = gathered(job, findings)
    stored = privacy_of(job.out)
    if stored is None:
        yield f"audit: there is no {FILE}"
        return
    yield from _differing(FILE, stored.model_dump(), privacy.model_dump())
    report = Report.load(job.out)
    clean = next((found.clean for found in findings if found.clean is not None), None)
    if report.threats or clean is None:
        # The report of a stress test is built anew from its own journal.
        return
    gate = {c.figure: c.expression.removeprefix(f"{c.figure} ") for c in report.gate.conditions}
    try:
        rebuilt = audit_report(job, privacy, clean, gate=gate, command=report.command)
    except InputError as error:
        yield f"report: {error}"
        return
    aside = {"created": report.created, "environment": report.environment, "robustml": report.robustml}
    yield from _differing("report", report.model_dump(), rebuilt.model_copy(update=aside).model_dump())


def _differing(where: str, stated: Any, follows: Any) -> Iterator[str]:
    if isinstance(stated, dict) and isinstance(follows, dict):
        for key in sorted(stated.keys() | follows.keys(), key=str):
            yield from _differing(f"{where}.{key}", stated.get(key), follows.get(key))
    elif isinstance(stated, list) and isinstance(follows, list) and len(stated) == len(follows):
        for index, (left, right) in enumerate(zip(stated, follows, strict=True)):
            yield from _differing(f"{where}[{index}]", left, right)
    elif not _same(stated, follows):
        yield f"{where} is {_brief(stated)}, but {_brief(follows)} follows"


def _same(stated: Any, follows: Any) -> bool:
    numbers = (int, float)
    if any(isinstance(value, bool) or not isinstance(value, numbers) for value in (stated, follows)):
        return bool(stated == follows)
    return bool(abs(stated - follows) <= _SLACK * max(1.0, abs(follows)))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
