"""The report of an audit that stands by itself, without attacks on inputs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from .. import __version__
from ..errors import InputError, suggest
from ..report.gate import check_gate, judge_gate
from ..report.model import Report
from ..report.parts import Clean, Data, ModelInfo, Samples, Scores, TargetInfo
from ..report.privacy import privacy_score
from ..report.privacy_gate import PRIVACY_FIGURES
from ..report.privacy_parts import Privacy
from ..wrapping import environment, pick_device
from .job import Job

__all__ = ["AUDITED", "audit_report", "conditions_of"]

AUDITED = ("clean", "privacy", *PRIVACY_FIGURES)
"""What a gate can hold an audit to."""


def conditions_of(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The conditions that an audit is judged by.

    Those of a target file on robustness and corruptions are for the stress test, and left to it.

    Args:
        own: The gate of the target.
        given: Conditions that were asked for beside it, and that come before it.

    Raises:
        InputError: for one of these on a figure that no audit has, or a condition that cannot be.
    """
    for figure in given:
        if figure not in AUDITED:
            raise InputError(f"gate figure {figure!r} is none of an audit{suggest(figure, AUDITED)}")
    conditions = {**{name: condition for name, condition in own.items() if name in AUDITED}, **given}
    check_gate(conditions, [])
    return conditions


def audit_report(
    job: Job, privacy: Privacy, clean: Clean, *, gate: Mapping[str, str], command: str = ""
) -> Report:
    """Write down what an audit found.

    Args:
        job: What was done.
        privacy: What came of it.
        clean: Accuracy on the non-members.
        gate: See `conditions_of`.
        command: What does it again.
    """
    target, score = job.target, privacy_score(privacy)
    scores = Scores(privacy=score, overall=score)
    distrust = list(privacy.doubts)
    model = target.model
    return Report(
        robustml=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=privacy.seconds,
        seed=job.seed,
        confidence=job.confidence,
        suite="audit",
        command=command,
        environment=environment(pick_device(job.device)),
        target=TargetInfo(
            name=target.name,
            model=ModelInfo(
                name=target.model_name,
                access=model.access.label,
                outputs=model.outputs,
                parameters=model.size,
                sha256=model.fingerprint(),
            ),
            data=Data(name=target.data.name, samples=len(target.data), sha256=target.data.sha256),
            inputs=model.inputs.to_dict(),
            classes=model.classes,
            class_names=list(target.class_names),
        ),
        clean=clean,
        threats=[],
        privacy=privacy,
        scores=scores,
        trusted=not distrust,
        distrust=distrust,
        verdict=_verdict(privacy),
        gate=judge_gate(
            gate, clean=clean.accuracy, scores=scores, threats={}, trusted=not distrust, privacy=privacy
        ),
        samples=Samples(ids=list(range(len(target.data))), evidence=[]),
    )


def _verdict(privacy: Privacy) -> str:
    section = privacy.membership
    if section is None:
        return "Membership inference was not measured."
    most = section.strongest
    limits = most.advantage
    return (
        f"The strongest of {most.attacks} membership attacks on {section.members:,} members and "
        f"{section.non_members:,} non-members ({most.advantage_by}) has an advantage of "
        f"{100 * limits.value:.1f} % [{100 * limits.low:.1f}, {100 * limits.high:.1f}] at "
        f"{100 * privacy.confidence:g} % confidence."
    )
