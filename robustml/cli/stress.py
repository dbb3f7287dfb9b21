"""`robustml stress`: attack a target and report what survives."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import device_option, json_option, seconds_of, set_threads, show_report, threads_option

if TYPE_CHECKING:
    from ..report.model import Report
    from ..targets import Target

__all__ = ["stress"]


@click.command()
@click.argument("target", default=".")
@click.option("--suite", help="quick, standard, or the path of a suite file.")
@click.option(
    "--threat", "threats", multiple=True, help="A threat model such as linf:8/255 or l2:0.5; may be repeated."
)
@click.option("--samples", type=click.IntRange(1), help="Test on so many samples instead of all.")
@click.option("--select", type=click.Choice(["stratified", "first"]), help="How the samples are chosen.")
@click.option("--seed", type=int, help="Decides every random number.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples worked on and journalled together.")
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
    type=click.FloatRange(0, min_open=True),
    help="Passes per sample; a backward pass counts as two.",
)
@click.option(
    "--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True
)
@click.option(
    "--gate", "gates", multiple=True, help="Fail (exit code 1) unless this holds, as in evasion>=40."
)
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
    chosen = _overridden(load_target(target), options)
    if options["dry_run"]:
        return _dry_run(chosen, options)
    if options["merge"]:
        return _merge(chosen, options)
    return _stress(target, chosen, options, time_budget)


def _overridden(target: Target, options: dict[str, Any]) -> Target:
    from ..report.gate import parse_gate
    from ..threats import parse_threat

    changes = {
        name: options[name]
        for name in ("suite", "samples", "select", "seed", "batch_size")
        if options[name] is not None
    }
    if options["threats"]:
        changes["threats"] = tuple(parse_threat(t).within(target.model.inputs) for t in options["threats"])
    if options["gates"]:
        changes["gate"] = {**target.gate, **dict(parse_gate(text) for text in options["gates"])}
    return dataclasses.replace(target, **changes)


def _stress(name: str, target: Target, options: dict[str, Any], time_budget: float | None) -> int:
    from ..api import run_target, save_report
    from ..progress import observer_for

    out, resume = _folder(target, options)
    shard = _shard(options["shard"])
    observer = observer_for()
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
            observer=observer,
            command=_command(name, target, options),
        )
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; continue with: {_resume_line(name, out)}", err=True)
        raise
    finally:
        close = getattr(observer, "close", None)
        if close is not None:
            close()
    if shard.count > 1:
        click.echo(f"shard {shard.index}/{shard.count} is done: {out}", err=True)
        return 0
    return _finish(save_report(plan, folder, target.data), out, options)


def _finish(report: Report, out: Path, options: dict[str, Any]) -> int:
    show_report(report, as_json=options["as_json"])
    click.echo(f"report: {out / 'report.html'}", err=options["as_json"])
    return 1 if report.gate.passed is False else 0


def _merge(target: Target, options: dict[str, Any]) -> int:
    from ..api import merge_runs

    if options["out"] is None:
        raise InputError("--merge needs --out, the folder to put the shards together in")
    _clear(options["out"], overwrite=options["overwrite"])
    return _finish(merge_runs(options["merge"], options["out"], target), options["out"], options)


def _dry_run(target: Target, options: dict[str, Any]) -> int:
    from ..api import make_plan, pick_device
    from ..stress.plan import stages

    plan = make_plan(
        target,
        pick_device(options["device"]),
        confidence=options["confidence"],
        max_passes=options["max_passes"],
        redact=options["redact_data"],
        command="",
    )
    click.echo(
        f"{plan.target}: {plan.samples} samples in {plan.chunks} chunks of {plan.chunk}, suite {plan.suite.name}"
    )
    for stage in stages(plan):
        detail = f"skipped: {stage.skipped}" if stage.skipped else ""
        if stage.entry is not None and not stage.skipped:
            options_ = ", ".join(f"{key}={value}" for key, value in stage.entry.options.items())
            detail = f"{stage.entry.use}({options_})"
        click.echo(f"  {stage.key:<28} {detail}".rstrip())
    return 0


def _folder(target: Target, options: dict[str, Any]) -> tuple[Path, bool]:
    """Where the run goes, and whether it goes on there."""
    if options["resume"] is not None:
        if options["out"] is not None and options["out"] != options["resume"]:
            raise InputError("--out and --resume name different folders; give one of them")
        return options["resume"], True
    if options["out"] is None:
        import datetime

        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"{target.name}-{stamp}", False
    _clear(options["out"], overwrite=options["overwrite"])
    return options["out"], False


def _clear(out: Path, *, overwrite: bool) -> None:
    """Remove the run in a folder, and nothing that is not part of one."""
    if not overwrite or not out.exists():
        return
    import shutil

    known = {"plan.json", "journal.jsonl", "evidence", "report.json", "report.html"}
    strangers = (
        sorted(entry.name for entry in out.iterdir() if entry.name not in known)
        if out.is_dir()
        else [out.name]
    )
    if strangers:
        raise InputError(f"--overwrite refuses to remove {str(out)!r}: {strangers[0]!r} is not part of a run")
    try:
        shutil.rmtree(out)
    except OSError as error:
        raise InputError(f"cannot replace {str(out)!r}: {error.strerror}") from None


def _shard(text: str | None) -> Any:
    from ..stress.runner import Shard

    if text is None:
        return Shard()
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None:
        raise InputError(f"shard {text!r} is not of the form 1/2")
    return Shard(int(match[1]), int(match[2]))


def _command(name: str, target: Target, options: dict[str, Any]) -> str:
    """The command that reproduces the figures, wherever and in however many parts they were made."""
    words = ["robustml", "stress", name, "--suite", target.suite, "--seed", str(target.seed)]
    for threat in target.threats:
        words += ["--threat", threat.name]
    if target.samples is not None:
        words += ["--samples", str(target.samples), "--select", target.select]
    if target.batch_size is not None:
        words += ["--batch-size", str(target.batch_size)]
    if options["max_passes"] is not None:
        words += ["--max-passes", f"{options['max_passes']:g}"]
    return shlex.join(words)


def _resume_line(name: str, out: Path) -> str:
    import sys

    arguments = sys.argv[2:]
    kept = [a for a in arguments if a != "--overwrite"]
    for option in ("--out", "--resume"):
        while option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    kept = [a for a in kept if not a.startswith(("--out=", "--resume="))]
    return shlex.join(["robustml", "stress", *kept, "--resume", str(out)])
