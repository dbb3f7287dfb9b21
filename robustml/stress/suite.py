"""A suite: the ordered list of attacks that a stress test runs, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, field_validator, model_validator

from ..errors import InputError, suggest
from ..registry import Access, all_corruptions, find_attack, find_corruption, find_transformations
from ..schema import Frozen, validated

__all__ = [
    "AttackEntry",
    "CertificateSettings",
    "CorruptionSettings",
    "Curve",
    "DiagnosticSettings",
    "Suite",
    "complete",
    "kept_for",
    "load_suite",
    "suite_names",
    "unusable",
]

_BUILT_IN = resources.files("robustml.stress") / "suites"


class CurveAttack(Frozen):
    """An attack that may draw the security curve."""

    use: str
    options: dict[str, Any] = {}


class AttackEntry(CurveAttack):
    """One attack of a suite."""

    id: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    only: list[Literal["decision", "score", "gradient"]] = []
    """Run only against models that give exactly this access; any that gives enough, if empty."""
    norms: list[Literal["linf", "l2", "l1", "l0"]] = []
    """Run only under these norms; under all that the attack has, if empty."""
    precision: Literal["full", "bfloat16"] = "full"
    """What a gradient attack computes in while it searches; what it finds is judged in full precision."""


class Curve(Frozen):
    """How the security curve is drawn: budgets as multiples of the threat's, and with which attack.

    The first attack that the model's access and the norm allow is used.
    """

    points: list[Annotated[float, Gt(0), Le(10)]] = []
    attack: list[CurveAttack] = []

    @field_validator("points")
    @classmethod
    def _distinct(cls, points: list[float]) -> list[float]:
        if 1.0 in points:
            raise ValueError("1.0 is the threat itself; leave it out")
        return sorted(set(points))


class DiagnosticSettings(Frozen):
    """How much the diagnostics that need passes of their own may look at."""

    samples: Annotated[int, Ge(1)] = 128
    """The first so many samples of the plan."""
    noise_draws: Annotated[int, Ge(1)] = 100
    """Random points per surviving one of those samples."""
    skip: list[Annotated[str, Field(pattern=r"^D[0-9]{2}$")]] = []
    """Codes of diagnostics to leave out, with the passes that they alone need."""


class WorstCase(CurveAttack):
    """A set of transformations, of which the worst one counts for each sample."""


class CorruptionSettings(Frozen):
    """Which corruptions the model is shown, on images."""

    kinds: list[str] | Literal["all"] = "all"
    """Names, or "all" that the number of channels allows."""
    severities: Annotated[list[Annotated[int, Ge(1), Le(5)]], Field(min_length=1)] = [1, 2, 3, 4, 5]
    samples: Annotated[int, Ge(1)] | None = None
    """So many of the samples, drawn at random; all of them, if not given."""
    worst: list[WorstCase] = []

    @field_validator("severities", "kinds", "worst")
    @classmethod
    def _each_once(cls, values: Any) -> Any:
        names = [entry.use if isinstance(entry, WorstCase) else entry for entry in values]
        if isinstance(values, list) and len(set(names)) < len(names):
            raise ValueError("it names something twice")
        return values

    @model_validator(mode="after")
    def _something(self) -> CorruptionSettings:
        if not self.kinds and not self.worst:
            raise ValueError("it names neither a corruption nor transformations")
        return self


class CertificateSettings(Frozen):
    """How much a certificate costs, for a model that has one."""

    draws: Annotated[int, Ge(0), Le(1_000_000)] = 1000
    """Draws that bound the probability of a sample's class; 0 for no certificates."""
    select: Annotated[int, Ge(1), Le(1_000_000)] = 100
    """Draws before them that choose the class."""

    @property
    def cost(self) -> int:
        """Forward passes per sample."""
        return self.select + self.draws


class Suite(Frozen):
    """An ordered list of attacks, from cheap to strong, and what is measured beside them."""

    schema_: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(min_length=1, max_length=60)]
    description: str = ""
    attack: Annotated[list[AttackEntry], Field(min_length=1)]
    curve: Curve = Curve()
    diagnostics: DiagnosticSettings = DiagnosticSettings()
    corruptions: CorruptionSettings | None = None
    certificates: CertificateSettings = CertificateSettings()

    @field_validator("attack")
    @classmethod
    def _unique(cls, entries: list[AttackEntry]) -> list[AttackEntry]:
        ids = [entry.id for entry in entries]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"id {name!r} is used twice")
        return entries


def suite_names() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(
        file.name.removesuffix(".toml") for file in _BUILT_IN.iterdir() if file.name.endswith(".toml")
    )


def load_suite(name: str) -> Suite:
    """Load a built-in suite by name, or one of the user's by the path of its TOML file.

    Raises:
        InputError: for an unknown suite, attack or key, each with the nearest known one.
    """
    if name in suite_names():
        text = (_BUILT_IN / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"suite {name!r} cannot be read: it is not UTF-8 text") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"suite {name!r} cannot be read: {reason}") from None
    else:
        raise InputError(f"suite {name!r} is neither built in nor a .toml file{suggest(name, suite_names())}")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"suite {name!r} is not valid TOML: {error}") from None
    suite = validated(Suite, data, where=f"suite {name}")
    for entry in (*suite.attack, *suite.curve.attack):
        # A family may be slow to import, so its members are looked up only when they will run.
        if ":" not in entry.use:
            find_attack(entry.use)
    _name_corruptions(suite.corruptions)
    return suite


def _name_corruptions(settings: CorruptionSettings | None) -> CorruptionSettings | None:
    """Write every name and option out, so that a plan says what is done whatever is registered later."""
    if settings is None:
        return None
    kinds = list(all_corruptions()) if settings.kinds == "all" else settings.kinds
    for name in kinds:
        find_corruption(name)
    worst = [
        entry.model_copy(update={"options": find_transformations(entry.use).check(entry.options)})
        for entry in settings.worst
    ]
    return settings.model_copy(update={"kinds": kinds, "worst": worst})


def complete(suite: Suite, access: Access, norms: Iterable[str]) -> Suite:
    """Fill in the default of every option of the attacks that can run against a model under some norms.

    Raises:
        InputError: for an unknown attack or option, or an unacceptable value.
    """
    suite = suite.model_copy(update={"corruptions": _name_corruptions(suite.corruptions)})
    filled = suite.model_dump(by_alias=True)
    for raw, entry in zip(
        (*filled["attack"], *filled["curve"]["attack"]), (*suite.attack, *suite.curve.attack), strict=True
    ):
        if any(unusable(entry, access, norm) is None for norm in norms):
            raw["options"] = find_attack(entry.use).check(entry.options)
            _check_precision(entry)
    return Suite.model_validate(filled)


def _check_precision(entry: CurveAttack) -> None:
    lowered = isinstance(entry, AttackEntry) and entry.precision != "full"
    if lowered and find_attack(entry.use).access is not Access.GRADIENT:
        raise InputError(
            f'attack {entry.use!r} follows no gradient, so precision = "bfloat16" is not for it; leave it out'
        )


def unusable(entry: CurveAttack, access: Access, norm: str) -> str | None:
    """Why an attack of the suite cannot be used against a model under a norm, or None if it can."""
    reason = kept_for(entry, access, norm)
    if reason is not None:
        return reason
    attack = find_attack(entry.use)
    if attack.access > access:
        return f"it needs {attack.access.label} access and the model gives {access.label} access"
    if norm not in attack.norms:
        return f"it has no {norm} version"
    return None


def kept_for(entry: CurveAttack, access: Access, norm: str) -> str | None:
    """What the suite itself keeps an attack for, if it is not a model or a norm like this."""
    if isinstance(entry, AttackEntry) and entry.only and access.label not in entry.only:
        return f"the suite keeps it for models with {' or '.join(entry.only)} access"
    if isinstance(entry, AttackEntry) and entry.norms and norm not in entry.norms:
        return f"the suite keeps it for {' or '.join(entry.norms)}"
    return None
