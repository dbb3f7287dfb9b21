"""`robustml audit`: what training gave away about its data."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, RunError
from .folders import holds_run, resume_line
from .options import (
    Choice,
    confidence_option,
    device_option,
    finish,
    json_option,
    note,
    set_threads,
    stdout_for_results,
    threads_option,
)

if TYPE_CHECKING:
    from ..report.model import Report
    from ..targets import Target
    from ..targets.privacy import PrivacyTable

__all__ = ["audit"]

_OPTIONS = ("tier", "references", "recipe", "canaries", "runs", "members", "attribute")


@click.command()
@click.argument("target", default=".")
@click.option(
    "--tier", type=Choice(["quick", "few", "many"]), help="Reference models: none, 4, or 64, as a rule."
)
@click.option("--references", type=click.IntRange(0, 10_000), help="So many reference models instead.")
@click.option("--recipe", help="How the model was trained; needed for whatever trains others like it.")
@click.option("--canaries", type=click.IntRange(0, 10**6), help="So many canaries; 0 for none.")
@click.option("--runs", type=click.IntRange(16, 10**6), help="Train so many models, half with one canary.")
@click.option("--members", type=click.IntRange(2), help="Ask about so many members, drawn at random.")
@click.option("--attribute", help="Of tabular data: infer this feature from all others.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides every random number.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder; runs/TARGET-audit-TIME by default.")
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--gate", multiple=True, help="Fail (exit code 1) unless this holds, as in epsilon<=8.")
@device_option
@threads_option
@confidence_option
@json_option
def audit(target: str, **options: Any) -> int:
    """Find out what the model of TARGET gives away about the data that it was trained on.

    TARGET is a built-in name, a target file with data.train, or a folder that holds robustml.toml; what is
    given here overrides its [privacy] table. Members are data.train, non-members the test data. Membership
    inference and other leaks need nothing but the model; with a recipe, models are trained for reference
    models, canaries, the conformance test of private training and the ladder of its costs.
    """
    from ..targets import load_target

    set_threads(options["threads"])
    chosen = _overridden(load_target(target), options)
    gate = _gate(chosen, options["gate"])
    out, resume = _folder(chosen, options), options["resume"]
    with stdout_for_results():
        report = _audited(chosen, options, out, gate=gate, resume=resume, command=_command(target, options))
    return finish(report, out, as_json=options["json"])


def _overridden(target: Target, options: dict[str, Any]) -> Target:
    changes = {"seed": options["seed"]} if options["seed"] is not None else {}
    return dataclasses.replace(target, privacy=_table(target.privacy, options), **changes)


def _table(own: PrivacyTable | None, options: dict[str, Any]) -> PrivacyTable:
    from ..schema import validated
    from ..targets.privacy import PrivacyTable

    given = {name: options[name] for name in _OPTIONS if options[name] is not None}
    table = {} if own is None else own.model_dump(exclude_unset=True)
    for one, other in (("tier", "references"), ("references", "tier")):
        # Of the two, what is given now replaces what the file says.
        if one in given and other not in given:
            table.pop(other, None)
    return validated(PrivacyTable, {**table, **given}, where="privacy")


def _gate(target: Target, given: tuple[str, ...]) -> dict[str, str]:
    from ..auditing.reporting import conditions_of
    from ..report.gate import parse_gate

    return conditions_of(target.gate, dict(parse_gate(text) for text in given))


def _folder(target: Target, options: dict[str, Any]) -> Path:
    out: Path | None = options["out"]
    if out is None:
        if options["resume"]:
            raise InputError("--resume needs --out, the folder of the audit to go on with")
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"{target.name}-audit-{stamp}"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file; name a folder")
    if not options["resume"] and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {str(out)!r} is not empty; choose another, or go on with --resume")
    if options["resume"] and out.is_dir() and any(out.iterdir()) and not (out / "audit.json").is_file():
        raise InputError(f"--out {str(out)!r} holds no audit.json, so there is nothing to go on with")
    return out


def _audited(
    target: Target, options: dict[str, Any], out: Path, *, gate: dict[str, str], resume: bool, command: str
) -> Report:
    from ..auditing.audit import audit_target, save_audit

    try:
        found = audit_target(
            target,
            out=out,
            device=options["device"],
            confidence=options["confidence"],
            resume=resume,
            say=note,
        )
        return save_audit(found, gate=gate, command=command)
    except RunError as error:
        if not holds_run(out):
            raise
        kept = "what was finished is kept"
        raise RunError(f"{error}; {kept}, continue with: {resume_line(out, flag=True)}") from error
    except KeyboardInterrupt:
        hint = (f"continue with: {resume_line(out, flag=True)}",) if holds_run(out) else ()
        raise KeyboardInterrupt(*hint) from None


def _command(name: str, options: dict[str, Any]) -> str:
    """The command that does the audit again."""
    words = ["robustml", "audit", name]
    for option in (*_OPTIONS, "seed"):
        if options[option] is not None:
            words += [f"--{option}", str(options[option])]
    if options["confidence"] != 0.95:
        words += ["--confidence", f"{options['confidence']!r}"]
    return shlex.join(words)
