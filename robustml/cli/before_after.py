"""What verbs that train have in common: a stress test before and after with one plan, and the comparison."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from ..errors import InputError
from .options import Choice, emit, note, stdout_for_results, write_json

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..defenses.training.recipe import Recipe
    from ..report.compare import Comparison
    from ..report.model import Report
    from ..targets import Target

__all__ = ["beginning", "compared", "target_to_train", "with_tests", "with_tests_options"]


class Trained(Protocol):
    """What training gave."""

    @property
    def model(self) -> Classifier:
        """The trained model."""

    def save(self, path: str | Path) -> None:
        """Write its weights."""


T = TypeVar("T", bound=Trained)
Words = Callable[["list[Comparison]"], Sequence[str]]

_OPTIONS = (
    click.option(
        "--start",
        type=Choice(["weights", "fresh"]),
        help="Begin with the target's weights, or with fresh ones, as private recipes do by default.",
    ),
    click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder for everything."),
    click.option("--resume", is_flag=True, help="Go on with what --out holds."),
    click.option("--suite", help="Of the stress tests before and after: quick, standard, or a path."),
    click.option("--threat", multiple=True, help="A threat model such as linf:8/255; may be repeated."),
    click.option("--samples", type=click.IntRange(1), help="Stress-test on so many samples instead of all."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides every random number."),
)


def with_tests_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options about the start, the folder and the stress tests."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def target_to_train(name: str, options: Mapping[str, Any]) -> Target:
    """The target with what was given instead, and a folder that may be written to.

    Raises:
        InputError: if it has nothing to train on, or the folder holds something else.
    """
    from ..targets import load_target
    from ..threats import parse_threat

    target = load_target(name)
    changes: dict[str, Any] = {
        option: options[option] for option in ("suite", "samples", "seed") if options[option] is not None
    }
    if options["threat"]:
        changes["threats"] = tuple(parse_threat(t).within(target.model.inputs) for t in options["threat"])
    if target.train is None:
        raise InputError(f"target {name!r} names nothing to train on; give data.train in its file")
    out: Path = options["out"]
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file; name a folder")
    if not options["resume"] and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {str(out)!r} is not empty; choose another, or go on with --resume")
    return dataclasses.replace(target, **changes)


def beginning(target: Target, recipe: Recipe, start: str | None) -> Classifier:
    """The model that training begins with: a copy with its weights, or with fresh ones.

    Raises:
        InputError: for a black box.
    """
    from ..classifier import Classifier
    from ..defenses.training.renewing import renewed

    if not isinstance(target.model, Classifier):
        raise InputError(f"target {target.name!r} is a black box, whose weights cannot be trained")
    if start is None:
        start = "weights" if recipe.privacy is None else "fresh"
        if start == "fresh":
            note("the recipe is private, so training begins with fresh weights (see --start)")
    return renewed(target.model, target.seed) if start == "fresh" else copy.deepcopy(target.model)


def with_tests(
    target: Target, options: Mapping[str, Any], train: Callable[[], T], *, doing: str, command: str
) -> tuple[Report, T, Report]:
    """A stress test, training, and the same stress test again.

    Args:
        target: What is tested.
        options: Of the command.
        train: Trains, and gives what came out.
        doing: What training is, in words.
        command: What the reports come from, and what resumes it.
    """
    out: Path = options["out"]
    with stdout_for_results():
        try:
            note("stress test before")
            before = _stressed(target, out / "before", options, command)
            note(doing)
            done = train()
            done.save(out / "model.safetensors")
            note("stress test after")
            tested = dataclasses.replace(target, model=done.model)
            return before, done, _stressed(tested, out / "after", options, command)
        except KeyboardInterrupt:
            again = f"{command} --out {out} --resume, and what else was given"
            raise KeyboardInterrupt(f"continue with: {again}") from None


def _stressed(target: Target, out: Path, options: Mapping[str, Any], command: str) -> Report:
    from ..progress import display_for
    from ..report.model import Report
    from ..runs import run_target, save_report

    if options["resume"] and (out / "report.json").is_file():
        return Report.load(out)
    with display_for() as display:
        plan, folder = run_target(
            # What training gave away is the matter of an audit.
            dataclasses.replace(target, privacy=None),
            out=out,
            device=options["device"],
            confidence=options["confidence"],
            resume=options["resume"] and (out / "plan.json").is_file(),
            observer=display,
            command=command,
        )
        return save_report(plan, folder, target.data)


def compared(
    before: Report, after: Report, options: Mapping[str, Any], facts: Mapping[str, Any], words: Words
) -> int:
    """Write the comparison down, and show it.

    Args:
        before, after: The reports.
        options: Of the command.
        facts: What else is written.
        words: What else is shown, given the comparison.

    Returns:
        The exit code.
    """
    from ..files import write_atomic
    from ..report.compare import compare

    out: Path = options["out"]
    rows = compare(before, after, confidence=options["confidence"])
    distrust = [
        f"{name} is NOT TRUSTED: {'; '.join(report.distrust)}"
        for name, report in (("before", before), ("after", after))
        if not report.trusted
    ]
    whole = {"figures": [dataclasses.asdict(row) for row in rows], "distrust": distrust, **facts}
    write_atomic(out / "comparison.json", json.dumps(whole, indent=2, sort_keys=True) + "\n")
    if options["json"]:
        write_json(whole)
        return 0
    emit(*distrust, *map(str, rows), *words(rows))
    emit("", f"model: {out / 'model.safetensors'}", f"reports: {out / 'before'}, {out / 'after'}")
    return 0
