"""Pages that are written by the code they describe: a comment in a page is replaced by what it names."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
import pydantic
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

_MARK = re.compile(r"<!-- generated: (\w+) -->")


def quick(_gallery: dict[str, Any], _script: dict[str, Any]) -> list[str]:
    """The command line with which the gallery runs every example."""
    return ["--quick"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx know about the marks."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _escape, priority=900)
    return {"version": "1", "parallel_read_safe": True}


def _fill(_app: Sphinx, _docname: str, source: list[str]) -> None:
    source[0] = _MARK.sub(lambda mark: "\n".join(_WRITERS[mark[1]]()), source[0])


def _escape(_app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Shapes are written (n, *shape), which would otherwise begin an emphasis."""
    lines[:] = [re.sub(r"(?<=[ (])\*(?=\w)", r"\\*", line) for line in lines]


def _attacks() -> Iterator[str]:
    from robustml.registry import all_attacks

    for name, attack in all_attacks().items():
        yield from (f"## `{name}`", "", attack.summary, "")
        yield f"- Access: {attack.access.label}"
        yield f"- Norms: {', '.join(norm for norm in ('linf', 'l2', 'l1', 'l0') if norm in attack.norms)}"
        yield f"- Reference: {attack.reference}"
        yield ""
        meanings = _options_of(attack.function)
        rows = [
            (f"`{option}`", f"`{kind}`", f"`{default}`", meanings.get(option, ""))
            for option, kind, default in attack.parameters()
        ]
        if rows:
            yield from _table(("option", "type", "default", "meaning"), rows)


def _corruptions() -> Iterator[str]:
    from robustml.registry import all_corruptions, all_transformations

    rows = [
        (f"`{name}`", entry.group, entry.summary, entry.reference)
        for name, entry in all_corruptions().items()
    ]
    yield from _table(("corruption", "group", "what it is", "reference"), rows)
    for name, found in all_transformations().items():
        yield from (f"`{name}`: {found.summary} Reference: {found.reference}.", "")
        meanings = _options_of(found.function)
        options = [
            (f"`{option}`", f"`{kind}`", f"`{default}`", meanings.get(option, ""))
            for option, kind, default in found.parameters()
        ]
        yield from _table(("option", "type", "default", "meaning"), options)


def _guards() -> Iterator[str]:
    from robustml.guards import all_guards, reference_of, summary_of
    from robustml.registry import parameters_of

    for name, kind in all_guards().items():
        yield from (f"## `{name}`", "", summary_of(kind), "")
        yield f"- In Python: `robustml.defenses.guards.{kind.__name__}`"
        yield f"- Rejects inputs: {'yes' if kind.rejects else 'no'}"
        learns = "always" if kind.fits else "on request" if hasattr(kind, "fit") else "no"
        yield f"- Learns from clean data: {learns}"
        yield f"- Draws random numbers: {'yes' if kind.random else 'no'}"
        yield f"- Reference: {reference_of(kind)}"
        yield ""
        meanings = _options_of(kind)
        rows = [
            (
                f"`{option}`",
                f"`{kind_}`",
                "" if default is inspect.Parameter.empty else f"`{default}`",
                meanings.get(option, ""),
            )
            for option, kind_, default in parameters_of(kind)
        ]
        if rows:
            yield from _table(("option", "type", "default", "meaning"), rows)


def _options_of(function: Callable[..., Any]) -> dict[str, str]:
    """The Args section of a Google-style docstring."""
    text = (inspect.getdoc(function) or "").partition("Args:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _api() -> Iterator[str]:
    import robustml

    yield "```{eval-rst}"
    names = getattr(robustml, "__all__", robustml._HOMES)
    for name in sorted(names, key=str.lower):
        thing = getattr(robustml, name)
        if isinstance(thing, (str, types.ModuleType)):
            continue
        if isinstance(thing, type):
            members = "" if issubclass(thing, pydantic.BaseModel) else "   :members:\n"
            yield f".. autoclass:: robustml.{name}\n{members}"
        elif callable(thing):
            yield f".. autofunction:: robustml.{name}\n"
        else:
            yield f".. autodata:: robustml.{name}\n"
    yield "```"


def _cli() -> Iterator[str]:
    import robustml.cli

    groups = [name for name, thing in vars(robustml.cli).items() if isinstance(thing, click.Group)]
    if not groups:
        raise RuntimeError("robustml.cli holds no click group to describe")
    yield f"```{{eval-rst}}\n.. click:: robustml.cli:{groups[0]}\n   :prog: robustml\n   :nested: full\n```"


def _schema() -> Iterator[str]:
    from robustml.report.model import Report

    for model in _models(Report):
        meanings = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
        yield from (f"## {model.__name__}", "", inspect.getdoc(model) or "", "")
        rows = []
        for name, field in model.model_fields.items():
            meaning = " ".join(meanings.get((model.__name__, name), []))
            rows.append((f"`{field.alias or name}`", _type_name(field.annotation), meaning.strip()))
        yield from _table(("field", "type", "meaning"), rows)


def _diagnostics() -> Iterator[str]:
    from robustml.stress.diagnostics import CODES

    for code, about in CODES.items():
        yield f"{code}, {about.title}{' (critical)' if about.critical else ''}"
        threshold = f"{about.threshold[0].upper()}{about.threshold[1:]}"
        yield f": {about.meaning} *{threshold}.*\n\n  {about.remedy}\n"


def _models(start: type[pydantic.BaseModel]) -> list[type[pydantic.BaseModel]]:
    """A model and those that it is made of, each once, outer ones first."""
    found = [start]
    for model in found:
        for field in model.model_fields.values():
            found += [inner for inner in dict.fromkeys(_inner(field.annotation)) if inner not in found]
    return found


def _inner(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if (
        isinstance(annotation, type)
        and not typing.get_args(annotation)
        and issubclass(annotation, pydantic.BaseModel)
    ):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _inner(part)


def _type_name(annotation: Any) -> str:
    """A type as people write it, with links to the models that it names."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_type_name(part) for part in parts)
    if origin is typing.Literal:
        return " or ".join(f'`"{part}"`' if isinstance(part, str) else f"`{part}`" for part in parts)
    if origin in {list, tuple}:
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return f"object of {_type_name(parts[1])}"
    if origin is typing.Annotated:
        return _type_name(parts[0])
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "string", float: "number", int: "integer", bool: "boolean", Any: "any value"}
    return names.get(annotation, str(annotation))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


_WRITERS: dict[str, Callable[[], Iterator[str]]] = {
    "api": _api,
    "attacks": _attacks,
    "cli": _cli,
    "corruptions": _corruptions,
    "diagnostics": _diagnostics,
    "guards": _guards,
    "schema": _schema,
}
