"""Where attacks and corruptions are announced and found; the trunk knows none of them by name.

A wing registers its functions with `@attack` (or a whole family of them with `@family`), `@corruption` or
`@transformations` when it is imported, and it is imported here, by name, on the first look-up.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor

from .errors import InputError, suggest
from .inputs import InputSpec
from .sampling import Streams
from .threats import THREATS, Threat

if TYPE_CHECKING:
    import pydantic

__all__ = [
    "SEVERITIES",
    "Access",
    "AccessName",
    "Attack",
    "Corruption",
    "Grid",
    "Logits",
    "Transformations",
    "all_attacks",
    "all_corruptions",
    "all_transformations",
    "attack",
    "corruption",
    "family",
    "find_attack",
    "find_corruption",
    "find_transformations",
    "options_model",
    "parameters_of",
    "transformations",
]


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
        return options_model(self.function, self.name)

    def parameters(self) -> list[tuple[str, str, Any]]:
        """Each option as (name, type, default), for people."""
        return parameters_of(self.function)


SEVERITIES = (1, 2, 3, 4, 5)
_SLICE = 2**21  # features that a corruption holds at a time: several copies in float64

CorruptionFunction = Callable[[Tensor, int, Streams], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A change of images that no attacker chooses, in five severities.

    Attributes:
        function: `(x, severity, streams) -> z` for float64 images (n, channels, height, width) in [0, 1];
            what it returns is clipped. A row of the result depends on that row and its stream alone.
        channels: The numbers of channels that it has a meaning for; any, if empty.
    """

    name: str
    group: str
    function: CorruptionFunction
    channels: frozenset[int]
    reference: str
    summary: str

    def apply(self, x: Tensor, severity: int, *, spec: InputSpec, streams: Streams) -> Tensor:
        """Corrupt a batch (n, *shape) in input units; the result is valid input of the same precision.

        Raises:
            InputError: for a severity that there is not.
        """
        if severity not in SEVERITIES:
            raise InputError(f"severity={severity!r} is not a whole number from 1 to 5")
        rows = max(1, _SLICE // spec.size)
        parts = []
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            own = Streams(streams.keys[start : start + rows])
            parts.append(spec.from_unit(self.function(spec.to_unit(part), severity, own), part))
        return torch.cat(parts) if parts else x.clone()


class Grid(Protocol):
    """A finite set of transformations, the most drastic ones first."""

    def __len__(self) -> int: ...

    def apply(self, x: Tensor, place: Tensor) -> Tensor:
        """Transform each row of a batch (n, *shape) by the entry at its place, int64 (n,)."""

    def describe(self, place: int) -> str:
        """One entry in words."""


@dataclass(frozen=True)
class Transformations:
    """Transformations among which the worst one for each input is searched.

    Attributes:
        function: `(spec, **options) -> Grid`.
    """

    name: str
    function: Callable[..., Grid]
    reference: str
    summary: str

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """As `Attack.check`."""
        from .schema import validated

        return validated(options_model(self.function, self.name), options, where=self.name).model_dump()

    def parameters(self) -> list[tuple[str, str, Any]]:
        """As `Attack.parameters`."""
        return parameters_of(self.function)


_ATTACKS: dict[str, Attack] = {}
_FAMILIES: dict[str, Callable[[str], Attack]] = {}
_CORRUPTIONS: dict[str, Corruption] = {}
_TRANSFORMATIONS: dict[str, Transformations] = {}
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


def corruption(
    name: str, *, group: str, reference: str, channels: Collection[int] = ()
) -> Callable[[CorruptionFunction], CorruptionFunction]:
    """Register a corruption; the first line of its docstring is what `robustml list corruptions` shows."""

    def register(function: CorruptionFunction) -> CorruptionFunction:
        if name in _CORRUPTIONS:
            raise ValueError(f"corruption {name!r} is registered twice")
        _CORRUPTIONS[name] = Corruption(
            name, group, function, frozenset(channels), reference, _summary(function)
        )
        return function

    return register


def transformations(name: str, *, reference: str) -> Callable[[Callable[..., Grid]], Callable[..., Grid]]:
    """Register a function that lays out a grid of transformations for an input space."""

    def register(function: Callable[..., Grid]) -> Callable[..., Grid]:
        if name in _TRANSFORMATIONS:
            raise ValueError(f"transformations {name!r} are registered twice")
        _TRANSFORMATIONS[name] = Transformations(name, function, reference, _summary(function))
        return function

    return register


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


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


def all_corruptions() -> dict[str, Corruption]:
    """Every registered corruption by name, in the order of registration, which keeps groups together."""
    _load_wings()
    return dict(_CORRUPTIONS)


def find_corruption(name: str) -> Corruption:
    """Look up a corruption.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    known = all_corruptions()
    if name not in known:
        raise InputError(f"corruption {name!r} is not known{suggest(name, known)}")
    return known[name]


def all_transformations() -> dict[str, Transformations]:
    """Every registered set of transformations by name."""
    _load_wings()
    return dict(sorted(_TRANSFORMATIONS.items()))


def find_transformations(name: str) -> Transformations:
    """Look up a set of transformations.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    known = all_transformations()
    if name not in known:
        raise InputError(f"transformations {name!r} are not known{suggest(name, known)}")
    return known[name]


@functools.cache
def _load_wings() -> None:
    for wing in _WINGS:
        importlib.import_module(wing)


def _option_parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, inspect.Parameter]]:
    """The type and the parameter of each option."""
    shared = {"model", "x", "y", "threat", "streams", "start", "spec"}
    options = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in shared and parameter.kind is not parameter.VAR_KEYWORD
    }
    # Only these are resolved: the shared ones may be written with names that exist for type checkers alone.
    written = types.SimpleNamespace(__annotations__={name: p.annotation for name, p in options.items()})
    names = vars(sys.modules[inspect.unwrap(function).__module__])
    hints = typing.get_type_hints(written, globalns=names, include_extras=True)
    return {name: (hints[name], parameter) for name, parameter in options.items()}


def parameters_of(function: Callable[..., Any]) -> list[tuple[str, str, Any]]:
    """Each option of a function, or of the constructor of a class, as (name, type, default), for people."""
    return [
        (name, _type_name(hint), parameter.default)
        for name, (hint, parameter) in _option_parameters(function).items()
    ]


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        return _type_name(typing.get_args(hint)[0])
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return " | ".join(_type_name(argument) for argument in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def options_model(function: Callable[..., Any], name: str) -> type[pydantic.BaseModel]:
    """The options that a function, or the constructor of a class, takes beside what the harness passes."""
    import pydantic

    options: dict[str, Any] = {
        option: (hint, ... if parameter.default is parameter.empty else parameter.default)
        for option, (hint, parameter) in _option_parameters(function).items()
    }
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    config = pydantic.ConfigDict(
        extra="allow" if takes_more else "forbid",
        strict=True,
        allow_inf_nan=False,
        # Python users may pass objects where a file holds plain data.
        arbitrary_types_allowed=True,
    )
    model: type[pydantic.BaseModel] = pydantic.create_model(name, __config__=config, **options)
    return model
