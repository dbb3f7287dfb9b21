"""Threat models: how far an attacker may move an input, and all the geometry that follows from it.

A `Threat` is a norm and a budget. `threat.around(x)` gives the `Ball` of perturbations that it allows
around a batch of inputs, already intersected with the valid range and with what the `InputSpec` says of
each feature. Attacks never compute a norm or a projection of their own.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from .balls import TOLERANCE, Ball, L0Ball, L1Ball, L2Ball, LinfBall, overwrite_, per_row, reads_freely
from .errors import InputError, brief, suggest
from .inputs import InputSpec

__all__ = [
    "L0",
    "L1",
    "L2",
    "THREATS",
    "Ball",
    "Linf",
    "Threat",
    "format_eps",
    "overwrite_",
    "parse_eps",
    "parse_threat",
    "per_row",
    "reads_freely",
]

_EPS = re.compile(r"\s*\d*\.?\d+(e[+-]?\d{1,3})?(\s*/\s*\d+)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Threat(ABC):
    """A norm and a perturbation budget `eps`, in input units (or in units of `InputSpec.scale`).

    Raises:
        InputError: if `eps` is not a finite number above 0, or, once bound to inputs by `within`, larger
            than any perturbation could be.
    """

    eps: float
    inputs: InputSpec | None = field(default=None, repr=False)

    norm: ClassVar[str]
    ball: ClassVar[type[Ball]]

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, numbers.Real):
            raise InputError(f"eps={brief(self.eps)} is not a number")
        try:
            eps = float(self.eps)
        except OverflowError:
            eps = math.inf
        if not (math.isfinite(eps) and eps > 0):
            raise InputError(f"eps={brief(self.eps)} is not a finite number above 0")
        object.__setattr__(self, "eps", eps)
        if self.inputs is not None:
            self._check_units(self.inputs)

    def _check_units(self, inputs: InputSpec) -> None:
        largest = self.widest(inputs)
        if self.eps > largest * (1 + TOLERANCE):
            low, high = inputs.bounds
            same = isinstance(low, float) and isinstance(high, float)
            where = f"inputs in [{low:g}, {high:g}]" if same else "these inputs"
            grey = self.norm == "linf" and same and largest <= 2 and self.eps <= 255
            hint = f"; did you mean {self.eps:g}/255?" if grey else ""
            raise InputError(f"eps={self.eps:g} is outside (0, {largest:g}] for {where}{hint}")
        if self.norm == "linf" and inputs.bounds == (0.0, 255.0) and inputs.scale == 1.0 and self.eps < 0.5:
            raise InputError(
                f"eps={self.eps:g} is less than half a grey level for inputs in [0, 255]; "
                f"did you mean {self.eps * 255:g}?"
            )
        if self.norm != "l0" and self.eps * (1 + TOLERANCE) < inputs.level:
            raise InputError(
                f"eps={self.eps:g} is less than one of the {inputs.levels} levels that a feature can have, "
                f"so nothing could change; one level is {inputs.level:g}"
            )

    @property
    def name(self) -> str:
        """The form that the command line and target files use, as in "linf:8/255"."""
        return f"{self.norm}:{format_eps(self.eps)}"

    def at(self, eps: float) -> Threat:
        """The same norm and inputs with another budget."""
        return dataclasses.replace(self, eps=eps)

    def within(self, inputs: InputSpec) -> Threat:
        """The same threat, bound to the inputs whose bounds, scale and constraints it respects."""
        return dataclasses.replace(self, inputs=inputs)

    def unbounded(self) -> Threat:
        """The same norm with a budget that reaches every valid input."""
        if self.inputs is None:
            raise InputError("an unbounded budget needs a threat that is bound to inputs")
        return self.at(self.widest(self.inputs))

    def around(self, x: Tensor) -> Ball:
        """The perturbations allowed around each of a batch of inputs (n, *shape)."""
        return self.ball(self, x)

    @abstractmethod
    def widest(self, inputs: InputSpec) -> float:
        """The largest distance between two valid inputs."""


@dataclass(frozen=True)
class Linf(Threat):
    """Every feature may change by at most `eps`."""

    norm: ClassVar[str] = "linf"
    ball: ClassVar[type[Ball]] = LinfBall

    def widest(self, inputs: InputSpec) -> float:
        return inputs.span


@dataclass(frozen=True)
class L2(Threat):
    """The Euclidean length of the change is at most `eps`."""

    norm: ClassVar[str] = "l2"
    ball: ClassVar[type[Ball]] = L2Ball

    def widest(self, inputs: InputSpec) -> float:
        return inputs.span * math.sqrt(inputs.size)


@dataclass(frozen=True)
class L1(Threat):
    """The absolute changes sum to at most `eps`."""

    norm: ClassVar[str] = "l1"
    ball: ClassVar[type[Ball]] = L1Ball

    def widest(self, inputs: InputSpec) -> float:
        return inputs.span * inputs.size


@dataclass(frozen=True)
class L0(Threat):
    """At most `eps` features (a whole number of them) change."""

    norm: ClassVar[str] = "l0"
    ball: ClassVar[type[Ball]] = L0Ball

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps < 1 or self.eps != int(self.eps):
            raise InputError(f"eps={self.eps:g} is not a whole number of features, as L0 counts them")

    def widest(self, inputs: InputSpec) -> float:
        return float(inputs.size)


THREATS: dict[str, type[Threat]] = {kind.norm: kind for kind in (Linf, L2, L1, L0)}


def parse_eps(text: str) -> float:
    """Read a budget such as "0.3" or "8/255".

    Raises:
        InputError: if it is neither a number nor a fraction.
    """
    # Fraction also reads exponents of any size, which would take forever to expand.
    if len(text) > 40 or not _EPS.fullmatch(text):
        raise InputError(f"eps={brief(text)} is not a number such as 0.3 or a fraction such as 8/255")
    top, _, bottom = text.partition("/")
    if bottom and int(bottom) == 0:
        raise InputError(f"eps={text!r} divides by zero")
    try:
        return float(Fraction(top.strip()) / Fraction(bottom.strip() or 1))
    except OverflowError:
        raise InputError(f"eps={text!r} is too large for a floating-point number") from None


def format_eps(eps: float) -> str:
    """Write a budget the way people do: as a number of grey levels where that is exact, else as it is."""
    short = f"{eps:g}"
    if float(short) == eps:
        return short
    levels = round(min(eps, 1.0) * 255)
    return f"{levels}/255" if levels / 255 == eps else repr(eps)


def parse_threat(text: str) -> Threat:
    """Read a threat model such as "linf:8/255", "l2:0.5", "l1:12" or "l0:10".

    Raises:
        InputError: for an unknown norm (with the nearest known one) or an unacceptable budget.
    """
    norm, colon, eps = text.partition(":")
    if not colon:
        raise InputError(f"threat {brief(text)} is not of the form NORM:EPS, as in linf:8/255")
    kind = THREATS.get(norm.strip().lower())
    if kind is None:
        raise InputError(f"norm {brief(norm)} is not known{suggest(norm, THREATS)}")
    return kind(parse_eps(eps))
