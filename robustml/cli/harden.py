"""`robustml harden`: train a target's model by a recipe, and show what that bought and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .before_after import beginning, compared, target_to_train, with_tests, with_tests_options
from .options import confidence_option, device_option, json_option, set_threads, threads_option

if TYPE_CHECKING:
    from ..defenses.privacy import Guarantee
    from ..defenses.training import Hardened
    from ..defenses.training.recipe import Recipe
    from ..report.compare import Comparison
    from ..targets import Target

__all__ = ["harden"]


@click.command()
@click.argument("target", default=".")
@click.option("--recipe", required=True, help="How: see `robustml list recipes`, or the path of a TOML file.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of what the recipe says.")
@with_tests_options
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

    set_threads(options["threads"])
    recipe = load_recipe(options["recipe"])
    chosen = target_to_train(target, options)
    before, hardened, after = with_tests(
        chosen,
        options,
        lambda: _trained(chosen, recipe, options),
        doing=f"training by the recipe {recipe.name}",
        command=f"robustml harden {target} --recipe {options['recipe']}",
    )
    cost = {
        "epochs": len(hardened.history),
        "kept": hardened.chosen,
        "seconds": round(sum(epoch.seconds for epoch in hardened.history), 3),
    }
    facts = {
        "training": cost,
        "privacy": hardened.privacy and hardened.privacy.to_dict(),
        "provenance": hardened.provenance,
    }
    return compared(before, after, options, facts, lambda rows: _in_words(rows, cost, hardened.privacy))


def _trained(target: Target, recipe: Recipe, options: dict[str, Any]) -> Hardened:
    from ..defenses.training.recipe import follow

    return follow(
        recipe,
        beginning(target, recipe, options["start"]),
        target.train,
        threat=target.threats[0] if target.threats else None,
        seed=target.seed,
        device=options["device"],
        out=options["out"] / "training",
        resume=options["resume"],
        progress=True,
        **({"epochs": options["epochs"]} if options["epochs"] else {}),
    )


def _in_words(rows: list[Comparison], cost: dict[str, Any], privacy: Guarantee | None) -> list[str]:
    given = f"clean accuracy {100 * rows[0].difference.value:+.1f} points"
    paid = (
        f"cost: {given}; {cost['epochs']} epochs in {cost['seconds']:.1f} s of training, "
        f"the weights are those of epoch {cost['kept']}"
    )
    return [paid] if privacy is None else [paid, _guaranteed(privacy)]


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
