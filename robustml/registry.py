"""Where attacks are announced and found; the trunk knows no attack by name.

A wing registers its functions with `@attack` (or a whole family of them with `@family`) when it is
imported, and it is imported here, by name, on the first look-up.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from torch import Tensor

from .errors import InputError, suggest
from .sampling import Streams
from .threats import THREATS, Threat

if TYPE_CHECKING:
    import pydantic

__all__ = ["Access", "AccessName", "Attack", "Logits", "all_attacks", "attack", "family", "find_attack"]


AccessName = Literal["decision", "score", "gradient"]


class Access(enum.IntEnum):
    """What a model gives away, and what an attack needs; a higher level includes the lower ones."""

    DECISION = 1
    """Labels only."""
    SCORE = 2
    """One score per class."""
    GRADIENT = 3
    """The model itself, with its derivatives."""

    @property
    def label(self) -> AccessName:
        return cast(AccessName, self.name.lower())


class Logits(Protocol):
    """Any callable from inputs (n, *shape) to logits (n, classes)."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class AttackFunction(Protocol):
    """What an attack is: `(model, x, y, *, threat, streams, **options) -> candidates (n, *shape)`."""

    def __call__(
        self, model: Logits, x: Tensor, y: Tensor, /, *, threat: Threat, streams: Streams, **options: Any
    ) -> Tensor: ...


@dataclass(frozen=True)
class Attack:
    """An attack and what the harness must know about it."""

    name: str
    function: AttackFunction
    access: Access
    norms: frozenset[str]
    reference: str
    summary: str
    minimum: bool = False
    """Whether it looks for the nearest adversarial point; `nearest=True` makes it go on within the budget."""

    @property
    def takes_start(self) -> bool:
        """Whether it can begin with adversarial points that are known: the argument `start`."""
        return "start" in inspect.signature(self.function).parameters

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Validate options against the function's signature and fill in the defaults.

        Raises:
            InputError: listing every unknown option (with the nearest known one) and unacceptable value.
        """
        from .schema import validated

        return validated(self._options, options, where=self.name).model_dump()

    @functools.cached_property
    def _options(self) -> type[pydantic.BaseModel]:
        return _options_model(self.function, self.name)

    def parameters(self) -> list[tuple[str, str, Any]]:
        """Each option as (name, type, default), for people."""
        return [
            (name, _type_name(hint), parameter.default)
            for name, (hint, parameter) in _option_parameters(self.function).items()
        ]


_ATTACKS: dict[str, Attack] = {}
_FAMILIES: dict[str, Callable[[str], Attack]] = {}
_WINGS = ("robustml.attacks",)


def attack(
    name: str, *, access: Access, norms: set[str], reference: str, minimum: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register an attack; the first line of its docstring is what `robustml list attacks` shows.

    Args:
        name: What suites call it.
        access: What it needs of a model.
        norms: The threat models that it has a version for.
        reference: Author, year, and the equation or algorithm.
        minimum: It is a minimum-norm attack and has an option `nearest`.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in _ATTACKS:
            raise ValueError(f"attack {name!r} is registered twice")
        if unknown := norms - THREATS.keys():
            raise ValueError(f"attack {name!r} names unknown norms {sorted(unknown)}")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _ATTACKS[name] = Attack(name, function, access, frozenset(norms), reference, summary, minimum)
        return function

    return register


def family(prefix: str) -> Callable[[Callable[[str], Attack]], Callable[[str], Attack]]:
    """Register a function that makes the attack for every name of the form "prefix:NAME"."""

    def register(make: Callable[[str], Attack]) -> Callable[[str], Attack]:
        _FAMILIES[prefix] = make
        return make

    return register


def all_attacks() -> dict[str, Attack]:
    """Every registered attack by name; families are not enumerated."""
    _load_wings()
    return dict(sorted(_ATTACKS.items()))


def find_attack(name: str) -> Attack:
    """Look up an attack, or a member of a family such as "art:HopSkipJump".

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    _load_wings()
    prefix, colon, member = name.partition(":")
    if colon and prefix in _FAMILIES:
        return _FAMILIES[prefix](member)
    if name not in _ATTACKS:
        known = [*_ATTACKS, *(f"{prefix}:NAME" for prefix in _FAMILIES)]
        raise InputError(f"attack {name!r} is not known{suggest(name, known)}")
    return _ATTACKS[name]


@functools.cache
def _load_wings() -> None:
    for wing in _WINGS:
        importlib.import_module(wing)


def _option_parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, inspect.Parameter]]:
    """The type and the parameter of each option."""
    shared = {"model", "x", "y", "threat", "streams", "start"}
    options = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in shared and parameter.kind is not parameter.VAR_KEYWORD
    }
    # Only these are resolved: the shared ones may be written with names that exist for type checkers alone.
    written = types.SimpleNamespace(__annotations__={name: p.annotation for name, p in options.items()})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    hints = typing.get_type_hints(written, globalns=names, include_extras=True)
    return {name: (hints[name], parameter) for name, parameter in options.items()}


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return " | ".join(_type_name(argument) for argument in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _options_model(function: Callable[..., Any], name: str) -> type[pydantic.BaseModel]:
    import pydantic

    options: dict[str, Any] = {
        option: (hint, ... if parameter.default is parameter.empty else parameter.default)
        for option, (hint, parameter) in _option_parameters(function).items()
    }
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    config = pydantic.ConfigDict(extra="allow" if takes_more else "forbid", strict=True, allow_inf_nan=False)
    model: type[pydantic.BaseModel] = pydantic.create_model(name, __config__=config, **options)
    return model
