"""Reading what people wrote: pydantic models whose every problem becomes one readable line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from .errors import InputError, brief, suggest

__all__ = ["Frozen", "validated"]

_SHOWN = 6  # problems listed in one message; a file of another kind altogether can have thousands

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Frozen(pydantic.BaseModel):
    """Base of all validated data: immutable, no unknown keys, no infinities."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def validated(model: type[Model], data: Mapping[str, Any], *, where: str) -> Model:
    """Build a model from plain data.

    Args:
        model: The pydantic model.
        data: What was read from a file or given as options.
        where: Named in front of each problem, as in the path of the file.

    Raises:
        InputError: one line with all problems, each naming its key, what came and what is accepted.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_describe(problem, model) for problem in found[:_SHOWN]]
        if len(found) > _SHOWN:
            problems.append(f"and {len(found) - _SHOWN} more")
        raise InputError(f"{where}: {'; '.join(problems)}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None


def _describe(problem: Any, model: type[pydantic.BaseModel]) -> str:
    path = _short(".".join(str(part) for part in problem["loc"]) or "the file")
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"{path} is not known{suggest(key, _known_keys(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{path} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}={brief(problem.get('input'), 80)} is not accepted: {message[:1].lower()}{message[1:]}"


def _known_keys(model: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that the innermost model along a path accepts."""
    current: Any = model
    for part in path:
        if isinstance(part, str) and part in current.model_fields:
            inner = _inner_model(current.model_fields[part].annotation)
            current = inner or current
    return [field.alias or name for name, field in current.model_fields.items()]


def _inner_model(annotation: Any) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner_model(argument)) is not None:
            return found
    return None


def _short(text: str, width: int = 80) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
