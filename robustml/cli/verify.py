"""`robustml verify`: replay the evidence of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from .options import (
    device_option,
    emit,
    json_option,
    set_threads,
    stdout_for_results,
    threads_option,
    write_json,
)

if TYPE_CHECKING:
    from ..auditing.replaying import Replay
    from ..report.verify import Verification
    from ..targets import Target

__all__ = ["verify"]

_SHOWN = 20


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--target", help="The target file to replay against; not needed for a built-in target.")
@click.option("--rerun", type=click.IntRange(0), default=0, help="Attack so many units again and compare.")
@device_option
@threads_option
@json_option
def verify(run: Path, target: str | None, rerun: int, device: str, threads: int | None, json: bool) -> int:
    """Replay the evidence of RUN against the model, and check that every figure follows from it.

    Nothing that RUN says is executed: the model comes from --target, which is yours, or is built in.
    """
    from ..report.verify import Verification, verify_run
    from ..wrapping import pick_device

    set_threads(threads)
    chosen = _target(run, target)
    with stdout_for_results():
        stressed = (run / "plan.json").is_file() or not (run / "audit.json").is_file()
        nothing = Verification((), 0, 0, 0)
        found = verify_run(run, chosen, pick_device(device), rerun=rerun) if stressed else nothing
        audit = _audited(run, chosen, device)
    problems = [*found.problems, *(audit.problems if audit is not None else ())]
    passed = not problems
    if json:
        parts = {} if audit is None else {"again": list(audit.again), "taken": list(audit.taken)}
        facts = {**vars(found), "problems": problems}
        write_json({"passed": passed, **facts, **({"audit": parts} if parts else {})})
        return 0 if passed else 1
    for problem in problems[:_SHOWN]:
        emit(f"FAIL {problem}")
    if len(problems) > _SHOWN:
        emit(f"… and {len(problems) - _SHOWN} more problems")
    verdict = "verified" if passed else "NOT verified"
    done = [_replayed(found)] if stressed else []
    if audit is not None:
        done.append(f"{', '.join(audit.again) or 'no part'} of the audit done again")
        done += [f"the word of {', '.join(audit.taken)} taken, which train models"] if audit.taken else []
    emit(f"{verdict}: {'; '.join(done)}")
    return 0 if passed else 1


def _audited(run: Path, target: Target, device: str) -> Replay | None:
    from ..auditing.replaying import replay_audit
    from ..report.model import Report

    audited = (run / "audit.json").is_file() or Report.load(run).privacy is not None
    return replay_audit(run, target, device=device) if audited else None


def _replayed(found: Verification) -> str:
    again = f", {found.units} units attacked again" if found.units else ""
    corrupted = f", {found.corrupted} predictions on corrupted inputs" if found.corrupted else ""
    return (
        f"{found.samples} clean predictions{corrupted} and {found.counterexamples} adversarial "
        f"inputs replayed{again}"
    )


def _target(run: Path, named: str | None) -> Target:
    from ..targets import BUILTIN_TARGETS, load_target

    if named is not None:
        return load_target(named)
    about = _subject(run)
    if about in BUILTIN_TARGETS:
        return load_target(about)
    raise InputError(
        f"{str(run)!r} is about target {about!r}, which is not built in; name the target file that you "
        f"trust: robustml verify {shlex.quote(str(run))} --target FILE"
    )


def _subject(run: Path) -> str:
    """The name of the target that a run folder says it is about."""
    from ..auditing.job import read_plan
    from ..stress.folder import RunFolder

    if (run / "audit.json").is_file() and not (run / "plan.json").is_file():
        return read_plan(run).target
    return RunFolder.open(run)[1].target
