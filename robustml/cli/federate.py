"""`robustml federate`: train a target's model on clients that keep their data, and show what that came to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, suggest
from .harden import _beginning, _check_folder, _overridden, _stressed
from .options import (
    Choice,
    Number,
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
    from ..defenses.federated import Federated
    from ..defenses.training.recipe import Recipe
    from ..report.model import Report
    from ..targets import Target

__all__ = ["federate"]

# What a recipe says about a run with epochs to choose from; a federation has rounds.
_NOT_LOCAL = ("epochs", "keep", "patience", "schedule", "validation")


@click.command()
@click.argument("target", default=".")
@click.option("--clients", required=True, type=click.IntRange(1), help="Among how many to split the data.")
@click.option("--rounds", required=True, type=click.IntRange(1), help="How many.")
@click.option("--partition", default="iid", show_default=True, help="iid, or dirichlet:0.3 and the like.")
@click.option(
    "--aggregation", default="mean", show_default=True, help="A rule, such as median; a wrong one lists them."
)
@click.option("--recipe", help="What clients train by: see `robustml list recipes`; plain if not given.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1), help="Per client and round.")
@click.option("--batch-size", type=click.IntRange(1), help="Of the clients' training.")
@click.option("--learning-rate", type=Number(0, min_open=True), help="Of the clients' training.")
@click.option(
    "--runtime", default="in-process", show_default=True, help="in-process, or ray for clients in parallel."
)
@click.option(
    "--start",
    type=Choice(["weights", "fresh"]),
    help="Begin with the target's weights, or with fresh ones, as private recipes do by default.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder for everything.")
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--suite", help="Of the stress tests before and after: quick, standard, or a path.")
@click.option("--threat", multiple=True, help="A threat model such as linf:8/255; may be repeated.")
@click.option("--samples", type=click.IntRange(1), help="Stress-test on so many samples instead of all.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides every random number.")
@device_option
@threads_option
@confidence_option
@json_option
def federate(target: str, **options: Any) -> int:
    """Train the model of TARGET on clients that keep their data, with a stress test before and after.

    TARGET is a built-in name, a target file with data.train, or a folder that holds robustml.toml. A tenth of
    the training data is the server's, which judges each round by it; the rest is split among the clients.
    Replies that are no honest work are quarantined, and the round goes on. To federate data that are where
    they belong, on several machines, see the how-to about deployment.
    """
    from ..defenses.federated.environment import flower
    from ..defenses.training.recipe import load_recipe
    from ..targets import load_target

    set_threads(options["threads"])
    flower()
    # What the reports say they come from.
    options["command"] = (
        f"robustml federate {target} --clients {options['clients']} --rounds {options['rounds']}"
    )
    recipe = load_recipe(options["recipe"]) if options["recipe"] else None
    _check(recipe, options)
    chosen = _overridden(load_target(target), options)
    if chosen.train is None:
        raise InputError(f"target {target!r} names nothing to train on; give data.train in its file")
    out: Path = options["out"]
    _check_folder(out, resume=options["resume"])
    with stdout_for_results():
        try:
            note("stress test before")
            before = _stressed(chosen, out / "before", options)
            note(f"{options['rounds']} rounds with {options['clients']} clients")
            done = _trained(chosen, recipe, out / "federation", options)
            done.save(out / "model.safetensors")
            note("stress test after")
            after = _stressed(dataclasses.replace(chosen, model=done.model), out / "after", options)
            after = _told(after, done, out / "after", chosen)
        except KeyboardInterrupt:
            again = f"robustml federate {target} --out {out} --resume"
            raise KeyboardInterrupt(f"continue with: {again}, and what else was given") from None
    return _show(before, after, done, out, options)


def _check(recipe: Recipe | None, options: dict[str, Any]) -> None:
    """Refuse before the stress test what the federation would refuse after it."""
    from ..defenses.federated import aggregation, parse_partition
    from ..defenses.federated.environment import quiet
    from ..defenses.federated.federation import RUNTIMES

    parse_partition(options["partition"])
    with quiet():
        aggregation(options["aggregation"])
    if options["runtime"] not in RUNTIMES:
        raise InputError(
            f"runtime={options['runtime']!r} is not known{suggest(options['runtime'], RUNTIMES)}"
        )
    if recipe is not None and recipe.teacher is not None:
        raise InputError(f"recipe {recipe.name!r} trains a teacher first, for which no client has the data")


def _trained(target: Target, recipe: Recipe | None, out: Path, options: dict[str, Any]) -> Federated:
    from ..classifier import Classifier
    from ..defenses.federated import federate
    from ..defenses.training.recipe import arguments_of, load_recipe

    if not isinstance(target.model, Classifier):
        raise InputError(f"target {target.name!r} is a black box, whose weights cannot be trained")
    more: dict[str, Any] = {}
    if recipe is not None:
        if recipe.teacher is not None:
            raise InputError(
                f"recipe {recipe.name!r} trains a teacher first, for which no client has the data"
            )
        more = arguments_of(recipe, threat=target.threats[0] if target.threats else None)
    more = {key: value for key, value in more.items() if key not in _NOT_LOCAL}
    given = {key: options[key] for key in ("batch_size", "learning_rate") if options[key] is not None}
    return federate(
        _beginning(target.model, recipe or load_recipe("standard"), target.seed, options["start"]),
        target.train,
        **{**more, **given},
        rounds=options["rounds"],
        clients=options["clients"],
        partition=options["partition"],
        aggregation=options["aggregation"],
        epochs=options["epochs"],
        runtime=options["runtime"],
        seed=target.seed,
        device=options["device"],
        out=out,
        resume=options["resume"],
        progress=True,
    )


def _told(report: Report, done: Federated, folder: Path, target: Target) -> Report:
    """The report of a run, with the federation that the model comes from."""
    from ..report.federated import keep_federated
    from ..runs import save_report
    from ..stress.folder import RunFolder

    if report.federated is not None:
        return report
    keep_federated(folder, done.figures())
    kept, plan = RunFolder.open(folder)
    return save_report(plan, kept, target.data)


def _show(before: Report, after: Report, done: Federated, out: Path, options: dict[str, Any]) -> int:
    from ..files import write_atomic
    from ..report.compare import compare

    rows = compare(before, after, confidence=options["confidence"])
    distrust = [
        f"{name} is NOT TRUSTED: {'; '.join(report.distrust)}"
        for name, report in (("before", before), ("after", after))
        if not report.trusted
    ]
    facts = {
        "figures": [dataclasses.asdict(row) for row in rows],
        "distrust": distrust,
        "federation": {
            "clients": list(done.clients),
            "rounds": len(done.history) - 1,
            "kept": done.chosen,
            "seconds": round(sum(entry.seconds for entry in done.history), 3),
            "history": [entry.to_dict() for entry in done.history],
            "quarantine": list(done.quarantine),
        },
        "privacy": done.privacy,
        "provenance": done.provenance,
    }
    write_atomic(out / "comparison.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    if options["json"]:
        write_json(facts)
        return 0
    emit(*distrust, *map(str, rows), *_in_words(done))
    emit("", f"model: {out / 'model.safetensors'}", f"reports: {out / 'before'}, {out / 'after'}")
    return 0


def _in_words(done: Federated) -> list[str]:
    sizes = done.clients
    failed = sum("error" in client for entry in done.history for client in entry.clients)
    still = [entry.number for entry in done.history[1:] if not entry.moved]
    lines = [
        f"federation: {len(done.history) - 1} rounds with {len(sizes)} clients of {min(sizes)} to "
        f"{max(sizes)} samples, the weights are those of round {done.chosen}; {failed} failures, "
        f"{len(done.quarantine)} replies in quarantine"
        + (f", rounds {still} left the model as it was" if still else "")
    ]
    for what, spent in done.privacy.items():
        if spent is not None:
            epsilon = spent["epsilon"]
            said = "no finite epsilon: not private" if epsilon is None else f"epsilon {epsilon:.2f}"
            whose = f", spent by client {spent['client']}" if "client" in spent else ""
            lines.append(f"privacy of {what}: {said} at delta {spent['delta']:g}{whose}")
    return lines
