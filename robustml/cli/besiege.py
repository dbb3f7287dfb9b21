"""`robustml besiege`: federations of a target's model with hostile clients, and what each attack takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, RunError
from .federate import local_settings
from .folders import resume_line
from .options import (
    Number,
    confidence_option,
    emit,
    json_option,
    note,
    set_threads,
    stdout_for_results,
    threads_option,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..auditing.federation import Cell, FederatedStress
    from ..targets import Target

__all__ = ["besiege"]

JOURNAL = "federations.jsonl"


@click.command()
@click.argument("target", default=".")
@click.option("--clients", required=True, type=click.IntRange(2), help="Among how many to split the data.")
@click.option("--hostile", required=True, type=click.IntRange(1), help="How many of them collude.")
@click.option("--rounds", required=True, type=click.IntRange(1), help="Of each federation.")
@click.option("--aggregation", multiple=True, help="A rule, such as median; all by default; may be repeated.")
@click.option("--attack", multiple=True, help="Such as sign-flip; all by default; may be repeated.")
@click.option(
    "--partition",
    multiple=True,
    default=("iid", "dirichlet:0.3"),
    show_default=True,
    help="How to split; may be repeated.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Federations per cell.")
@click.option("--seed", type=click.IntRange(0, 2**62), help="The first of the seeds.")
@click.option("--recipe", help="What clients train by: see `robustml list recipes`; plain if not given.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1), help="Per client and round.")
@click.option("--batch-size", type=click.IntRange(1), help="Of the clients' training.")
@click.option("--learning-rate", type=Number(0, min_open=True), help="Of the clients' training.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder for everything; none by default.")
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@threads_option
@confidence_option
@json_option
def besiege(target: str, **options: Any) -> int:
    """Train the model of TARGET on clients of which some are hostile, and show what each attack takes.

    TARGET is a built-in name, a target file with data.train, or a folder that holds robustml.toml. For each
    partition, seed and aggregation, one federation is trained without an attack and one per attack, from
    fresh weights, on the CPU, with guarded aggregation. The last round's model is judged on all test data,
    which no client has and which nothing was chosen by. Federations that --out holds are not trained again.
    """
    from ..defenses.federated.environment import flower
    from ..targets import load_target

    set_threads(options["threads"])
    flower()
    clients, hostile = options["clients"], options["hostile"]
    if hostile >= clients:
        raise InputError(f"--hostile {hostile} of --clients {clients} leaves no honest one")
    _check_folder(options["out"], resume=options["resume"])
    chosen = load_target(target)
    if options["seed"] is not None:
        chosen = dataclasses.replace(chosen, seed=options["seed"])
    if chosen.train is None:
        raise InputError(f"target {target!r} names nothing to train on; give data.train in its file")
    with stdout_for_results():
        found = _besieged(chosen, options)
    return _show(found, chosen, options)


def _check_folder(out: Path | None, *, resume: bool) -> None:
    if out is None:
        if resume:
            raise InputError("--resume needs --out, the folder to go on with")
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file; name a folder")
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if inside and not resume:
        raise InputError(f"--out {str(out)!r} is not empty; choose another, or go on with --resume")
    if inside and JOURNAL not in inside:
        raise InputError(f"--out {str(out)!r} holds no {JOURNAL}, so there is nothing to go on with")


def _besieged(target: Target, options: dict[str, Any]) -> FederatedStress:
    from ..auditing.federation import stress_federation
    from ..auditing.federation_choice import aggregators_for, attacks_for
    from ..classifier import Classifier
    from ..defenses.federated import parse_partition
    from ..defenses.training.recipe import load_recipe
    from ..defenses.training.renewing import renewed

    model = target.model
    if not isinstance(model, Classifier):
        raise InputError(f"target {target.name!r} is a black box, whose weights cannot be trained")
    clients, hostile, out = options["clients"], options["hostile"], options["out"]
    partitions = list(dict.fromkeys(parse_partition(text).name for text in options["partition"]))
    attacks, without = attacks_for(options["attack"], model.inputs)
    aggregators, unfit = aggregators_for(options["aggregation"], clients, hostile)
    settings = local_settings(target, load_recipe(options["recipe"] or "standard"), options)
    for reason in (*without, *unfit):
        note(f"left out: {reason}")
    count = len(partitions) * options["seeds"] * len(aggregators) * (1 + len(attacks))
    note(f"{count} federations with {clients} clients, {hostile} of them hostile")
    try:
        return stress_federation(
            lambda: renewed(model, None),
            target.train,
            target.data,
            attacks=attacks,
            aggregators=aggregators,
            partitions=partitions,
            clients=clients,
            hostile=hostile,
            rounds=options["rounds"],
            seeds=range(target.seed, target.seed + options["seeds"]),
            confidence=options["confidence"],
            journal=None if out is None else out / JOURNAL,
            tell=_teller(count),
            **settings,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_how_to_go_on(out)) from None
    except RunError as error:
        raise RunError("; ".join([str(error), *_how_to_go_on(out)])) from error


def _teller(count: int) -> Callable[[Cell], None]:
    numbers = iter(range(1, count + 1))
    return lambda cell: note(f"{next(numbers)}/{count} {cell}")


def _how_to_go_on(out: Path | None) -> tuple[str, ...]:
    if out is None or not (out / JOURNAL).is_file():
        return ()
    return (f"what was finished is kept, continue with: {resume_line(out, flag=True)}",)


def _show(found: FederatedStress, target: Target, options: dict[str, Any]) -> int:
    from ..auditing.federation_page import HTML, JSON, keep_matrix, matrix_table

    out: Path | None = options["out"]
    about = _about(target)
    files = []
    if out is not None:
        keep_matrix(out, found, about)
        files = ["", f"matrix: {out / JSON}, {out / HTML}"]
    if options["json"]:
        write_json({**found.to_dict(), "about": about})
        return 0
    emit(*(f"NOT TRUSTED: {reason}" for reason in found.distrust()))
    emit(*matrix_table(found).splitlines(), "", *found.verdict().splitlines(), *files)
    if options["seeds"] == 1:
        note("one seed says nothing about the spread, and its intervals are all that there can be")
    return 0


def _about(target: Target) -> dict[str, Any]:
    from .. import __version__
    from ..classifier import Classifier

    model, train = target.model, target.train
    assert isinstance(model, Classifier) and train is not None  # checked before anything was trained
    return {
        "target": target.name,
        "model": target.model_name,
        "train": train.name,
        "train_sha256": train.sha256,
        "test": target.data.name,
        "test_sha256": target.data.sha256,
        "robustml": __version__,
    }
