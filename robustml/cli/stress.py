"""`robustml stress`: attack a target and report what survives."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, RunError
from .folders import building, chosen_folder, discard, holds_run, replacing, resume_line
from .options import (
    Choice,
    Number,
    confidence_option,
    device_option,
    emit,
    finish,
    json_option,
    note,
    seconds_of,
    set_threads,
    stdout_for_results,
    threads_option,
    write_json,
)

if TYPE_CHECKING:
    from ..stress.runner import Shard
    from ..targets import Target

__all__ = ["stress"]

_LARGEST_SEED = 2**63 - 1


@click.command()
@click.argument("target", default=".")
@click.option("--suite", help="quick, standard, or the path of a suite file.")
@click.option("--threat", multiple=True, help="A threat model such as linf:8/255 or l2:0.5; may be repeated.")
@click.option("--samples", type=click.IntRange(1), help="Test on so many samples instead of all.")
@click.option("--select", type=Choice(["stratified", "first"]), help="How the samples are chosen.")
@click.option("--goal", multiple=True, help="What the attacker wants, as in '3->8'; may be repeated.")
@click.option("--seed", type=click.IntRange(0, _LARGEST_SEED), help="Decides every random number.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples worked on and journalled together.")
@click.option(
    "--draws", type=click.IntRange(2, 10_000), help="Votes on each point, for a model that answers at random."
)
@click.option(
    "--eot", type=click.IntRange(1, 10_000), help="Draws that attacks on such a model average over."
)
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), help="The run folder; runs/TARGET-TIME by default.")
@click.option("--overwrite", is_flag=True, help="Replace the run that --out holds.")
@click.option("--resume", type=click.Path(path_type=Path), help="Continue the run in this folder.")
@click.option("--shard", help="Work on one part only, as in 1/2; see --merge.")
@click.option(
    "--merge",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Put finished shards together; may be repeated.",
)
@click.option(
    "--time-budget", help="Stop after a duration such as 90s, 10m or 1.5h; what is missing is reported."
)
@click.option(
    "--max-passes",
    type=Number(0, min_open=True),
    help="Passes per sample; a backward pass counts as two.",
)
@confidence_option
@click.option("--gate", multiple=True, help="Fail (exit code 1) unless this holds, as in evasion>=40.")
@click.option("--redact-data", is_flag=True, help="Keep inputs out of the report.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@json_option
def stress(target: str, **options: Any) -> int:
    """Attack TARGET and report how much of its accuracy survives.

    TARGET is a built-in name (see `robustml list targets`), a target file, or a folder that holds
    robustml.toml; the current folder by default. What is given here overrides the target file.
    """
    time_budget = seconds_of(options["time_budget"])
    from ..targets import load_target

    set_threads(options["threads"])
    shard = _shard(options["shard"])
    chosen = _overridden(load_target(target), options)
    if options["dry_run"]:
        return _dry_run(chosen, options)
    if options["merge"]:
        return _merge(chosen, options)
    out, resume = chosen_folder(chosen, options)
    with replacing(out, overwrite=options["overwrite"] and not resume):
        return _stress(target, chosen, options, out, resume=resume, shard=shard, time_budget=time_budget)


def _overridden(target: Target, options: dict[str, Any]) -> Target:
    from ..goals import parse_goals
    from ..report.gate import parse_gate
    from ..threats import parse_threat

    changes = {
        name: options[name]
        for name in ("suite", "samples", "select", "seed", "batch_size", "draws", "eot")
        if options[name] is not None
    }
    if options["goal"]:
        changes["goals"] = parse_goals(options["goal"], target.class_names).texts
    if options["threat"]:
        changes["threats"] = tuple(parse_threat(t).within(target.model.inputs) for t in options["threat"])
    if options["gate"]:
        changes["gate"] = {**target.gate, **dict(parse_gate(text) for text in options["gate"])}
    return dataclasses.replace(target, **changes)


def _stress(
    name: str,
    target: Target,
    options: dict[str, Any],
    out: Path,
    *,
    resume: bool,
    shard: Shard,
    time_budget: float | None,
) -> int:
    from ..progress import display_for
    from ..runs import run_target, save_report

    report = None
    deadline = None if time_budget is None else time.monotonic() + time_budget
    with stdout_for_results(), display_for() as display:
        try:
            plan, folder = run_target(
                target,
                out=out,
                device=options["device"],
                confidence=options["confidence"],
                max_passes=options["max_passes"],
                time_budget=time_budget,
                shard=shard,
                resume=resume,
                redact=options["redact_data"],
                observer=display,
                command=_command(name, target, options),
            )
            if shard.count == 1:
                _audit(target, out, options, deadline)
                report = save_report(plan, folder, target.data)
        except InputError:
            if display.begun and not resume:
                discard(out)
            raise
        except RunError as error:
            if not holds_run(out):
                raise
            kept = "what was finished is kept"
            raise RunError(f"{error}; {kept}, continue with: {resume_line(out)}") from error
        except KeyboardInterrupt:
            # Without a plan there is nothing to go on with yet.
            hint = (f"continue with: {resume_line(out)}",) if holds_run(out) else ()
            raise KeyboardInterrupt(*hint) from None
    if report is None:
        note(f"shard {shard.index}/{shard.count} is done: {out}")
        return 0
    return finish(report, out, as_json=options["json"])


def _audit(target: Target, out: Path, options: dict[str, Any], deadline: float | None = None) -> None:
    """Do the part on privacy, where the target asks for one."""
    from ..auditing.audit import audit_target

    if target.privacy is not None:
        audit_target(
            target,
            out=out,
            device=options["device"],
            confidence=options["confidence"],
            resume=True,
            say=note,
            deadline=deadline,
        )


def _merge(target: Target, options: dict[str, Any]) -> int:
    from ..runs import merge_runs, save_report
    from ..stress.folder import RunFolder

    if options["out"] is None:
        raise InputError("--merge needs --out, the folder to put the shards together in")
    for name in ("resume", "shard"):
        if options[name] is not None:
            raise InputError(f"--merge puts finished shards together; it cannot go with --{name}")
    _check_shard(options["merge"][0], target, options)
    out: Path = options["out"]
    with replacing(out, overwrite=options["overwrite"]), building(out) as unfinished:
        report = merge_runs(options["merge"], unfinished, target)
        if target.privacy is not None:
            with stdout_for_results():
                _audit(target, unfinished, options)
            folder, plan = RunFolder.open(unfinished)
            report = save_report(plan, folder, target.data)
    return finish(report, out, as_json=options["json"])


def _check_shard(path: Path, target: Target, options: dict[str, Any]) -> None:
    """Refuse settings that differ from those of the shards: merging could only ignore them."""
    from ..stress.folder import RunFolder

    _, plan = RunFolder.open(path)
    given = {
        "seed": (target.seed, plan.seed),
        "batch_size": (target.batch_size, plan.chunk),
        "samples": (target.samples, plan.samples),
        "threat": ([threat.name for threat in target.threats], plan.threats),
        "goal": (list(target.goals), plan.goals),
        "draws": (target.draws, plan.randomness and plan.randomness.draws),
        "eot": (target.eot, plan.randomness and plan.randomness.eot),
        "gate": (target.gate, plan.gate),
        "confidence": (options["confidence"], plan.confidence),
        "max_passes": (options["max_passes"], plan.max_passes),
    }
    default = click.core.ParameterSource.DEFAULT
    for name, (now, then) in given.items():
        if click.get_current_context().get_parameter_source(name) is not default and now != then:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} differs from what {str(path)!r} was run with; give it to every shard")


def _dry_run(target: Target, options: dict[str, Any]) -> int:
    from ..stress.plan import stages
    from ..wrapping import pick_device
    from .planning import checked_plan

    plan = checked_plan(
        target,
        pick_device(options["device"]),
        confidence=options["confidence"],
        max_passes=options["max_passes"],
        redact=options["redact_data"],
    )
    steps = []
    for stage in stages(plan):
        detail = f"skipped: {stage.skipped}" if stage.skipped else ""
        if stage.entry is not None and not stage.skipped:
            settings = ", ".join(f"{key}={value}" for key, value in stage.entry.options.items())
            detail = f"{stage.entry.use}({settings})"
        steps.append({"stage": stage.key, "detail": detail})
    steps += [{"stage": f"privacy/{part}", "detail": ""} for part in _parts(target, options)]
    if options["json"]:
        write_json({"plan": plan.model_dump(mode="json", by_alias=True), "stages": steps})
        return 0
    suite = plan.suite.name
    emit(f"{plan.target}: {plan.samples} samples in {plan.chunks} chunks of {plan.chunk}, suite {suite}")
    emit(*(f"  {step['stage']:<28} {step['detail']}".rstrip() for step in steps))
    return 0


def _parts(target: Target, options: dict[str, Any]) -> list[str]:
    """The parts of the audit of privacy, if there is one."""
    from ..auditing.audit import checked, parts_of
    from ..auditing.job import Job

    if target.privacy is None:
        return []
    job = checked(Job(target, Path(), options["device"], options["confidence"], note))
    return [part for part, _ in parts_of(job)]


def _shard(text: str | None) -> Shard:
    from ..stress.runner import Shard

    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", "1/1" if text is None else text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"shard {text!r} is not a part of a whole, as in 1/2")
    return Shard(int(match[1]), int(match[2]))


def _command(name: str, target: Target, options: dict[str, Any]) -> str:
    """The command that reproduces the figures, wherever and in however many parts they were made."""
    words = ["robustml", "stress", name, "--seed", str(target.seed)]
    if options["suite"] is not None or not target.suite.endswith(".toml"):
        # A suite file that the target names is found through it, wherever the target lies.
        words += ["--suite", target.suite]
    for threat in target.threats:
        words += ["--threat", threat.name]
    if target.samples is not None:
        words += ["--samples", str(target.samples), "--select", target.select]
    for goal in target.goals:
        words += ["--goal", goal]
    for name, value in (("--draws", target.draws), ("--eot", target.eot)):
        if value is not None:
            words += [name, str(value)]
    if target.batch_size is not None:
        words += ["--batch-size", str(target.batch_size)]
    if options["max_passes"] is not None:
        words += ["--max-passes", f"{options['max_passes']:g}"]
    if options["confidence"] != 0.95:
        words += ["--confidence", f"{options['confidence']!r}"]
    return shlex.join(words)
