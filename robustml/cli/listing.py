"""`robustml list` and `robustml describe`: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, suggest
from .options import Choice, emit, json_option, write_json

if TYPE_CHECKING:
    from ..stress.suite import CorruptionSettings

__all__ = ["describe", "list_"]

_KINDS = ("attacks", "corruptions", "guards", "recipes", "suites", "targets", "diagnostics")


@click.command("list")
@click.argument("kind", type=Choice(_KINDS), required=False)
@json_option
def list_(kind: str | None, json: bool) -> None:
    """List what there is of one KIND, or of all of them if it is not given."""
    tables = {name: _table(name) for name in ([kind] if kind else _KINDS)}
    if json:
        write_json(tables)
        return
    for name, rows in tables.items():
        if len(tables) > 1:
            emit(f"{name}:")
        width = max(len(row["name"]) for row in rows)
        emit(*(f"  {row['name']:<{width}}  {row['summary']}" for row in rows))


def _table(kind: str) -> list[dict[str, Any]]:
    if kind == "targets":
        from ..targets import BUILTIN_TARGETS

        return [{"name": name, "summary": text} for name, text in BUILTIN_TARGETS.items()]
    if kind == "suites":
        from ..stress.suite import load_suite, suite_names

        return [{"name": name, "summary": load_suite(name).description} for name in suite_names()]
    if kind == "corruptions":
        return _corruptions()
    if kind == "guards":
        from ..guards import all_guards, reference_of, summary_of

        return [
            {"name": name, "summary": summary_of(found), "reference": reference_of(found)}
            for name, found in all_guards().items()
        ]
    if kind == "recipes":
        from ..defenses.training.recipe import load_recipe, recipe_names

        return [{"name": name, "summary": load_recipe(name).description} for name in recipe_names()]
    if kind == "diagnostics":
        from ..stress.diagnostics import CODES

        return [{"name": code, "summary": about.title} for code, about in CODES.items()]
    from ..registry import all_attacks

    rows: list[dict[str, Any]] = [
        {
            "name": attack.name,
            "summary": attack.summary,
            "access": attack.access.label,
            "norms": sorted(attack.norms),
            "reference": attack.reference,
        }
        for attack in all_attacks().values()
    ]
    rows.append({"name": "art:NAME", "summary": "Any evasion attack of the Adversarial Robustness Toolbox."})
    return rows


def _corruptions() -> list[dict[str, Any]]:
    from ..registry import all_corruptions, all_transformations

    rows: list[dict[str, Any]] = [
        {"name": c.name, "summary": c.summary, "group": c.group, "reference": c.reference}
        for c in all_corruptions().values()
    ]
    return rows + [
        {"name": t.name, "summary": t.summary, "group": "worst of a set", "reference": t.reference}
        for t in all_transformations().values()
    ]


@click.command()
@click.argument("name")
@json_option
def describe(name: str, json: bool) -> None:
    """Explain an attack, a corruption, a guard, a suite, a built-in target or a diagnostic by NAME.

    A recipe is called recipe:NAME, since it is named like the objective that it uses.
    """
    facts = _facts(name)
    if json:
        write_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, list):
            emit(f"{key}:", *(f"  {line}" for line in value))
        else:
            emit(f"{key}: {value}")


def _facts(name: str) -> dict[str, Any]:
    from ..registry import all_attacks, find_attack
    from ..stress.diagnostics import CODES
    from ..stress.suite import load_suite, suite_names
    from ..targets import BUILTIN_TARGETS

    kind, colon, rest = name.partition(":")
    if colon and kind == "recipe":
        return _recipe(rest)
    if name.upper() in CODES:
        return {"diagnostic": name.upper(), **vars(CODES[name.upper()])}
    if name in BUILTIN_TARGETS:
        return {"target": name, "summary": BUILTIN_TARGETS[name]}
    if name in suite_names() or name.endswith(".toml"):
        suite = load_suite(name)
        attacks = [f"{entry.id}: {entry.use} {_options(entry.options)}".rstrip() for entry in suite.attack]
        facts = {"suite": suite.name, "summary": suite.description, "attacks": attacks}
        return facts if suite.corruptions is None else {**facts, "corruptions": _asked(suite.corruptions)}
    if (found := _corruption(name) or _guard(name)) is not None:
        return found
    attacks_known = all_attacks()
    if name not in attacks_known and ":" not in name:
        known = [
            *attacks_known,
            *(row["name"] for row in [*_corruptions(), *_table("guards")]),
            *suite_names(),
            *BUILTIN_TARGETS,
            *CODES,
        ]
        raise InputError(f"{name!r} is not known{suggest(name, known)}")
    attack = find_attack(name)
    return {
        "attack": attack.name,
        "summary": attack.summary,
        "access": attack.access.label,
        "norms": ", ".join(sorted(attack.norms)),
        "reference": attack.reference,
        "options": [f"{option}: {kind} = {default!r}" for option, kind, default in attack.parameters()],
    }


def _corruption(name: str) -> dict[str, Any] | None:
    from ..registry import SEVERITIES, all_corruptions, all_transformations

    if (entry := all_corruptions().get(name)) is not None:
        channels = " or ".join(map(str, sorted(entry.channels))) or "any number"
        facts = {"corruption": name, "summary": entry.summary, "group": entry.group, "channels": channels}
        return {**facts, "severities": ", ".join(map(str, SEVERITIES)), "reference": entry.reference}
    if (found := all_transformations().get(name)) is not None:
        options = [f"{option}: {kind} = {default!r}" for option, kind, default in found.parameters()]
        facts = {"transformations": name, "summary": found.summary, "reference": found.reference}
        return {**facts, "options": options}
    return None


def _guard(name: str) -> dict[str, Any] | None:
    from ..guards import all_guards, reference_of, summary_of
    from ..registry import parameters_of

    if (kind := all_guards().get(name)) is None:
        return None
    does = [
        text
        for holds, text in (
            (kind.fits, "is fitted on clean data"),
            (kind.rejects, "may reject an input"),
            (kind.random, "draws random numbers"),
            (kind.certifies, "certifies"),
        )
        if holds
    ]
    options = [f"{option}: {type_} = {default!r}" for option, type_, default in parameters_of(kind)]
    facts = {"guard": name, "summary": summary_of(kind), "reference": reference_of(kind)}
    return {**facts, **({"it": ", ".join(does)} if does else {}), "options": options}


def _recipe(name: str) -> dict[str, Any]:
    from ..defenses.training.recipe import load_recipe

    recipe = load_recipe(name)
    facts: dict[str, Any] = {"recipe": recipe.name, "summary": recipe.description}
    facts["objective"] = _options(recipe.objective)
    if recipe.term:
        facts["terms"] = [_options(entry) for entry in recipe.term]
    if recipe.teacher is not None:
        facts["teacher"] = f"{recipe.teacher.recipe} {_options(recipe.teacher.settings)}".rstrip()
    return {**facts, "settings": _options(recipe.settings)}


def _asked(settings: CorruptionSettings) -> list[str]:
    """The corruptions of a suite, one line each for what is measured."""
    kinds = "all" if settings.kinds == "all" else ", ".join(settings.kinds)
    severities = ", ".join(map(str, settings.severities))
    lines = [f"kinds: {kinds}", f"severities: {severities}", f"samples: {settings.samples or 'all'}"]
    return lines + [f"worst: {entry.use} {_options(entry.options)}".rstrip() for entry in settings.worst]


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
