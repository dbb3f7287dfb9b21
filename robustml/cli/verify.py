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
    from ..report.verify import verify_run
    from ..wrapping import pick_device

    set_threads(threads)
    with stdout_for_results():
        found = verify_run(run, _target(run, target), pick_device(device), rerun=rerun)
    if json:
        write_json({"passed": found.passed, **vars(found), "problems": list(found.problems)})
        return 0 if found.passed else 1
    for problem in found.problems[:_SHOWN]:
        emit(f"FAIL {problem}")
    if len(found.problems) > _SHOWN:
        emit(f"… and {len(found.problems) - _SHOWN} more problems")
    verdict = "verified" if found.passed else "NOT verified"
    again = f", {found.units} units attacked again" if found.units else ""
    corrupted = f", {found.corrupted} predictions on corrupted inputs" if found.corrupted else ""
    emit(
        f"{verdict}: {found.samples} clean predictions{corrupted} and {found.counterexamples} adversarial "
        f"inputs replayed{again}"
    )
    return 0 if found.passed else 1


def _target(run: Path, named: str | None) -> Target:
    from ..stress.folder import RunFolder
    from ..targets import BUILTIN_TARGETS, load_target

    if named is not None:
        return load_target(named)
    _, plan = RunFolder.open(run)
    if plan.target in BUILTIN_TARGETS:
        return load_target(plan.target)
    raise InputError(
        f"{str(run)!r} is about target {plan.target!r}, which is not built in; name the target file that you "
        f"trust: robustml verify {shlex.quote(str(run))} --target FILE"
    )
