"""`robustml list` and `robustml describe`: what there is."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InputError, suggest
from .options import Choice, emit, json_option, write_json

__all__ = ["describe", "list_"]

_KINDS = ("attacks", "suites", "targets", "diagnostics")


@click.command("list")
@click.argument("kind", type=Choice(_KINDS), required=False)
@json_option
def list_(kind: str | None, json: bool) -> None:
    """List the attacks, suites, built-in targets or diagnostics; all of them if KIND is not given."""
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


@click.command()
@click.argument("name")
@json_option
def describe(name: str, json: bool) -> None:
    """Explain an attack, a suite, a built-in target or a diagnostic by NAME."""
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

    if name.upper() in CODES:
        return {"diagnostic": name.upper(), **vars(CODES[name.upper()])}
    if name in BUILTIN_TARGETS:
        return {"target": name, "summary": BUILTIN_TARGETS[name]}
    if name in suite_names() or name.endswith(".toml"):
        suite = load_suite(name)
        attacks = [f"{entry.id}: {entry.use} {_options(entry.options)}".rstrip() for entry in suite.attack]
        return {"suite": suite.name, "summary": suite.description, "attacks": attacks}
    attacks_known = all_attacks()
    if name not in attacks_known and ":" not in name:
        known = [*attacks_known, *suite_names(), *BUILTIN_TARGETS, *CODES]
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


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
