"""Recipes: an objective, terms and settings as a TOML file, shipped or the user's own."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import pydantic
from pydantic import Field

from ...classifier import Classifier
from ...errors import InputError, brief, suggest
from ...registry import options_model
from ...schema import Frozen, validated
from ...threats import Threat, parse_threat
from .hardening import Hardened, harden
from .objective import Objective, Term

if TYPE_CHECKING:
    from ..privacy import DifferentialPrivacy

__all__ = ["Recipe", "arguments_of", "follow", "load_recipe", "recipe_names"]


class Teacher(Frozen):
    """The [teacher] table: the recipe that the teacher of a distillation is trained by first."""

    recipe: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Recipe(Frozen):
    """A recipe, schema version 1."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    description: str
    objective: dict[str, Any]
    """`use` names it; the rest are its fields. A threat is text; without one, that of the target is taken."""
    term: list[dict[str, Any]] = Field(default_factory=list)
    """Terms that are added, in the same form."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of `robustml.defenses.training.Settings`."""
    privacy: dict[str, Any] | None = None
    """Of `robustml.defenses.privacy.DifferentialPrivacy`; None for training that is not private."""
    teacher: Teacher | None = None

    @pydantic.model_validator(mode="after")
    def _one_secret(self) -> Recipe:
        if self.privacy is not None and self.teacher is not None:
            raise ValueError(
                "privacy and teacher do not go together: the teacher is trained on the same data, and what "
                "it tells the student is not accounted for"
            )
        return self


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(
        path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml")
    )


def _folder() -> Any:
    return resources.files(__package__) / "recipes"


def load_recipe(name: str) -> Recipe:
    """Read a recipe by its name or its path.

    Raises:
        InputError: if there is none, or it is not one.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"recipe {name!r} does not exist")
        raw = path.read_bytes()
    elif name in recipe_names():
        raw = (_folder() / f"{name}.toml").read_bytes()
    else:
        raise InputError(f"recipe {name!r} is not known{suggest(name, recipe_names())}")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"recipe {name!r} is not TOML: {' '.join(str(error).split())}") from None
    return validated(Recipe, data, where=f"recipe {name}")


def follow(
    recipe: Recipe, model: Classifier, train: Any, *, threat: Threat | None = None, **given: Any
) -> Hardened:
    """Harden a model, in place, by a recipe.

    Args:
        recipe: The recipe.
        model: What is trained, from the weights that it has.
        train: As for `harden`.
        threat: Taken where the recipe names none.
        given: What overrides the settings of the recipe, and the other arguments of `harden`.

    Raises:
        InputError: naming what in the recipe cannot be used.
    """
    teacher, out = None, given.get("out")
    if recipe.teacher is not None:
        inner = load_recipe(recipe.teacher.recipe)
        inner = inner.model_copy(update={"settings": {**inner.settings, **recipe.teacher.settings}})
        folder = None if out is None else Path(out) / "teacher"
        # The teacher begins where the student begins.
        teacher = follow(inner, copy.deepcopy(model), train, threat=threat, **{**given, "out": folder}).model
        given["out"] = None if out is None else Path(out) / "student"
    return harden(model, train, **{**arguments_of(recipe, threat=threat, teacher=teacher), **given})


def arguments_of(
    recipe: Recipe, *, threat: Threat | None = None, teacher: Classifier | None = None
) -> dict[str, Any]:
    """What a recipe gives `harden`: objective, terms, privacy where it has any, and settings.

    Args:
        recipe: The recipe.
        threat: Taken where the recipe names none.
        teacher: For an objective that needs one.

    Raises:
        InputError: naming what in the recipe cannot be used.
    """
    where = f"recipe {recipe.name}"
    objective = _made(recipe.objective, Objective, where, threat, teacher)
    terms = [_made(entry, Term, where, threat, teacher) for entry in recipe.term]
    private = {} if recipe.privacy is None else {"privacy": _private(recipe.privacy, where)}
    return {**recipe.settings, **private, "objective": objective, "terms": terms}


def _private(table: dict[str, Any], where: str) -> DifferentialPrivacy:
    from ..privacy import DifferentialPrivacy

    known = [field.name for field in dataclasses.fields(DifferentialPrivacy) if field.name != "observer"]
    for name in table:
        if name not in known:
            raise InputError(f"{where}: privacy.{name} is not known{suggest(name, known)}")
    try:
        return DifferentialPrivacy(**table)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _kinds(base: Any) -> dict[str, Any]:
    """Every class of a family that has a name of its own."""
    from .. import training

    exported = (getattr(training, name) for name in training.__all__)
    return {
        found.name: found
        for found in exported
        if isinstance(found, type) and issubclass(found, base) and hasattr(found, "name")
    }


def _made(
    table: dict[str, Any], base: Any, where: str, threat: Threat | None, teacher: Classifier | None
) -> Any:
    known = _kinds(base)
    options = dict(table)
    use = options.pop("use", None)
    if use not in known:
        raise InputError(f"{where}: use={brief(use)} is not known{suggest(str(use), known)}")
    kind = known[use]
    ready = dict(_ready(kind, options, where, threat, teacher))
    # A threat model is what the harness passes to attacks, so it is not among the options.
    bound = {key: ready.pop(key) for key in ("threat",) if key in ready}
    plain = {key: value for key, value in options.items() if key not in {*ready, *bound}}
    checked = validated(options_model(kind, use), {**plain, **ready}, where=f"{where}: {use}")
    return kind(**bound, **{name: getattr(checked, name) for name in type(checked).model_fields})


def _ready(
    kind: type[Any], options: dict[str, Any], where: str, threat: Threat | None, teacher: Classifier | None
) -> Iterator[tuple[str, Any]]:
    """The fields that are more than plain data: threat models, teachers, objectives within."""
    for field in dataclasses.fields(kind):
        value = options.get(field.name)
        if field.name == "threat":
            chosen = threat if value is None else _threat(value, where)
            if chosen is None:
                raise InputError(f"{where}: its objective needs a threat model, and the target has none")
            yield field.name, chosen
        elif field.name == "teacher":
            if teacher is None:
                raise InputError(f"{where}: its objective needs a teacher; add the table [teacher]")
            yield field.name, teacher
        elif isinstance(value, dict):
            yield field.name, _made(value, Objective, where, threat, teacher)
        elif _tables(value):
            yield field.name, tuple(_made(item, Objective, where, threat, teacher) for item in value)


def _tables(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(item, dict) for item in value)


def _threat(value: Any, where: str) -> Threat:
    if not isinstance(value, str):
        raise InputError(f"{where}: threat={brief(value)} is not text, as in 'linf:8/255'")
    try:
        return parse_threat(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
