"""`robustml harden`: train a target's model by a recipe, and show what that bought and what it cost."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .options import (
    Choice,
    confidence_option,
    device_option,
    emit,
    json_option,
    note,
    set_threads,
    stdout_for_results,
    threads_option,
    write_json,
)

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..defenses.privacy import Guarantee
    from ..defenses.training import Hardened
    from ..defenses.training.recipe import Recipe
    from ..report.compare import Comparison
    from ..report.model import Report
    from ..targets import Target

__all__ = ["harden"]


@click.command()
@click.argument("target", default=".")
@click.option("--recipe", required=True, help="How: see `robustml list recipes`, or the path of a TOML file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder for everything.")
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--suite", help="Of the stress tests before and after: quick, standard, or a path.")
@click.option("--threat", multiple=True, help="A threat model such as linf:8/255; may be repeated.")
@click.option("--samples", type=click.IntRange(1), help="Stress-test on so many samples instead of all.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of what the recipe says.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides every random number.")
@click.option(
    "--start",
    type=Choice(["weights", "fresh"]),
    help="Begin with the target's weights, or with fresh ones, as private recipes do by default.",
)
@device_option
@threads_option
@confidence_option
@json_option
def harden(target: str, **options: Any) -> int:
    """Harden the model of TARGET by a recipe, with a stress test before and after.

    TARGET is a built-in name, a target file with data.train, or a folder that holds robustml.toml. Training
    begins with the weights that the model has; a private recipe begins with fresh ones, since its epsilon
    does not cover what weights know already (--start weights says that they have not seen the data). Both
    stress tests have the same plan and seeds, and are compared sample by sample.
    """
    from ..defenses.training.recipe import load_recipe
    from ..targets import load_target

    set_threads(options["threads"])
    recipe = load_recipe(options["recipe"])
    chosen = _overridden(load_target(target), options)
    if chosen.train is None:
        raise InputError(f"target {target!r} names nothing to train on; give data.train in its file")
    out: Path = options["out"]
    _check_folder(out, resume=options["resume"])
    with stdout_for_results():
        try:
            note("stress test before")
            before = _stressed(chosen, out / "before", options)
            note(f"training by the recipe {recipe.name}")
            hardened = _trained(chosen, recipe, out / "training", options)
            hardened.save(out / "model.safetensors")
            note("stress test after")
            after = _stressed(dataclasses.replace(chosen, model=hardened.model), out / "after", options)
        except KeyboardInterrupt:
            again = f"robustml harden {target} --recipe {options['recipe']} --out {out} --resume"
            raise KeyboardInterrupt(f"continue with: {again}, and what else was given") from None
    return _show(before, after, hardened, out, options)


def _overridden(target: Target, options: dict[str, Any]) -> Target:
    from ..threats import parse_threat

    changes: dict[str, Any] = {
        name: options[name] for name in ("suite", "samples", "seed") if options[name] is not None
    }
    if options["threat"]:
        changes["threats"] = tuple(parse_threat(t).within(target.model.inputs) for t in options["threat"])
    return dataclasses.replace(target, **changes)


def _check_folder(out: Path, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file; name a folder")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {str(out)!r} is not empty; choose another, or go on with --resume")


def _stressed(target: Target, out: Path, options: dict[str, Any]) -> Report:
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
            command=options.get("command") or f"robustml harden {target.name} --recipe {options['recipe']}",
        )
        return save_report(plan, folder, target.data)


def _trained(target: Target, recipe: Recipe, out: Path, options: dict[str, Any]) -> Hardened:
    from ..classifier import Classifier
    from ..defenses.training.recipe import follow

    if not isinstance(target.model, Classifier):
        raise InputError(f"target {target.name!r} is a black box, whose weights cannot be trained")
    model: Classifier = _beginning(target.model, recipe, target.seed, options["start"])
    more = {"epochs": options["epochs"]} if options["epochs"] else {}
    return follow(
        recipe,
        model,
        target.train,
        threat=target.threats[0] if target.threats else None,
        seed=target.seed,
        device=options["device"],
        out=out,
        resume=options["resume"],
        progress=True,
        **more,
    )


def _beginning(model: Classifier, recipe: Recipe, seed: int, start: str | None) -> Classifier:
    from ..defenses.training.renewing import renewed

    if start is None:
        start = "weights" if recipe.privacy is None else "fresh"
        if start == "fresh":
            note("the recipe is private, so training begins with fresh weights (see --start)")
    return renewed(model, seed) if start == "fresh" else copy.deepcopy(model)


def _show(before: Report, after: Report, hardened: Hardened, out: Path, options: dict[str, Any]) -> int:
    from ..files import write_atomic
    from ..report.compare import compare

    rows = compare(before, after, confidence=options["confidence"])
    distrust = [
        f"{name} is NOT TRUSTED: {'; '.join(report.distrust)}"
        for name, report in (("before", before), ("after", after))
        if not report.trusted
    ]
    epochs = len(hardened.history)
    cost = {
        "epochs": epochs,
        "kept": hardened.chosen,
        "seconds": round(sum(epoch.seconds for epoch in hardened.history), 3),
    }
    facts = {
        "figures": [dataclasses.asdict(row) for row in rows],
        "distrust": distrust,
        "training": cost,
        "privacy": hardened.privacy and hardened.privacy.to_dict(),
        "provenance": hardened.provenance,
    }
    write_atomic(out / "comparison.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    if options["json"]:
        write_json(facts)
        return 0
    emit(*distrust, *map(str, rows), *_in_words(rows, cost))
    if hardened.privacy is not None:
        emit(_guaranteed(hardened.privacy))
    emit("", f"model: {out / 'model.safetensors'}", f"reports: {out / 'before'}, {out / 'after'}")
    return 0


def _in_words(rows: list[Comparison], cost: dict[str, Any]) -> list[str]:
    clean = rows[0].difference
    given = f"clean accuracy {100 * clean.value:+.1f} points"
    return [
        f"cost: {given}; {cost['epochs']} epochs in {cost['seconds']:.1f} s of training, "
        f"the weights are those of epoch {cost['kept']}"
    ]


def _guaranteed(privacy: Guarantee) -> str:
    how = (
        f"noise multiplier {privacy.noise_multiplier:.3g}, clipping norm {privacy.clipping_norm:g}, "
        f"{privacy.steps} steps at a sampling rate of {privacy.sampling_rate:.3g}, "
        f"randomness: {privacy.randomness}"
    )
    if privacy.epsilon is None:
        return f"privacy: no epsilon at all, since no noise was added; {how}"
    return (
        f"privacy: epsilon {privacy.epsilon:.3g} at delta {privacy.delta:g} ({privacy.neighbors}; "
        f"accountant {privacy.accountant}); {how}"
    )
