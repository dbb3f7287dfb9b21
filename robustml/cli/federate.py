"""`robustml federate`: train a target's model on clients that keep their data, and show what that came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, suggest
from .before_after import beginning, compared, target_to_train, with_tests, with_tests_options
from .options import Number, confidence_option, device_option, json_option, set_threads, threads_option

if TYPE_CHECKING:
    from ..defenses.federated import Federated
    from ..defenses.training.recipe import Recipe
    from ..report.model import Report
    from ..targets import Target

__all__ = ["federate", "local_settings"]

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
@with_tests_options
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

    set_threads(options["threads"])
    flower()
    recipe = load_recipe(options["recipe"] or "standard")
    _check(recipe, options)
    chosen = target_to_train(target, options)
    before, done, after = with_tests(
        chosen,
        options,
        lambda: _trained(chosen, recipe, options),
        doing=f"{options['rounds']} rounds with {options['clients']} clients",
        command=f"robustml federate {target} --clients {options['clients']} --rounds {options['rounds']}",
    )
    after = _told(after, done, options["out"] / "after", chosen)
    facts = {
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
    return compared(before, after, options, facts, lambda _: _in_words(done))


def _check(recipe: Recipe, options: dict[str, Any]) -> None:
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
    _refuse_teacher(recipe)


def _refuse_teacher(recipe: Recipe) -> None:
    if recipe.teacher is not None:
        raise InputError(f"recipe {recipe.name!r} trains a teacher first, for which no client has the data")


def local_settings(target: Target, recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """What clients train by: a recipe, and what was given instead.

    Raises:
        InputError: for a recipe that clients cannot follow.
    """
    from ..defenses.training.recipe import arguments_of

    _refuse_teacher(recipe)
    more = arguments_of(recipe, threat=target.threats[0] if target.threats else None)
    more = {key: value for key, value in more.items() if key not in _NOT_LOCAL}
    given = {key: options[key] for key in ("batch_size", "learning_rate") if options[key] is not None}
    return {**more, **given, "epochs": options["epochs"]}


def _trained(target: Target, recipe: Recipe, options: dict[str, Any]) -> Federated:
    from ..defenses.federated import federate

    return federate(
        beginning(target, recipe, options["start"]),
        target.train,
        **local_settings(target, recipe, options),
        rounds=options["rounds"],
        clients=options["clients"],
        partition=options["partition"],
        aggregation=options["aggregation"],
        runtime=options["runtime"],
        seed=target.seed,
        device=options["device"],
        out=options["out"] / "federation",
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
