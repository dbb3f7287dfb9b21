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

import torch
from torch import Tensor

from .errors import InputError, brief, suggest
from .inputs import InputSpec
from .sampling import Streams

__all__ = [
    "L0",
    "L1",
    "L2",
    "THREATS",
    "Ball",
    "Linf",
    "Threat",
    "format_eps",
    "parse_eps",
    "parse_threat",
    "per_row",
]

_EPS = re.compile(r"\s*\d*\.?\d+(e[+-]?\d{1,3})?(\s*/\s*\d+)?\s*", re.IGNORECASE)
# A perturbation is inside its ball when it exceeds the budget by no more than this relative slack.
TOLERANCE = 1e-6
# Attacks aim this far inside, so that rounding x + delta to float32 cannot push the sum out of the ball.
_INSET = 1e-5


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


class Ball(ABC):
    """The valid inputs within the budget of a batch of inputs.

    Attributes:
        x: The centres (n, *shape).
        lower, upper: The bounding box of the ball: (n, *shape) each.
    """

    def __init__(self, threat: Threat, x: Tensor) -> None:
        self.threat = threat
        self.x = x
        self.eps = threat.eps * (1 - _INSET)
        inputs = threat.inputs
        self._inputs = inputs
        self._scale: Tensor | None = None
        self._movable: Tensor | None = None
        if inputs is None:
            self.lower = torch.full_like(x, -torch.inf)
            self.upper = torch.full_like(x, torch.inf)
            return
        if inputs.scale != 1.0:
            self._scale = inputs.like(inputs.scale, x)
        low, high = (inputs.like(side, x) for side in inputs.bounds)
        # An input that is itself out of range must not be pulled away from its own ball's centre.
        self.lower = torch.minimum(low.expand_as(x), x)
        self.upper = torch.maximum(high.expand_as(x), x)
        if inputs.immutable:
            frozen = torch.zeros(inputs.size, dtype=torch.bool, device=x.device)
            frozen[list(inputs.immutable)] = True
            frozen = frozen.view(inputs.shape)
            self._movable = ~frozen
            self.lower = torch.where(frozen, x, self.lower)
            self.upper = torch.where(frozen, x, self.upper)

    def select(self, rows: Tensor) -> Ball:
        """The ball around some of the inputs."""
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone.x, clone.lower, clone.upper = self.x[rows], self.lower[rows], self.upper[rows]
        return clone

    @property
    def _features(self) -> int:
        return math.prod(self.x.shape[1:])

    def _scaled(self, z: Tensor) -> Tensor:
        """Perturbation in units of the scale, flattened: (n, features)."""
        delta = z - self.x
        return (delta if self._scale is None else delta / self._scale).flatten(1)

    def _unscaled(self, delta: Tensor) -> Tensor:
        delta = delta.view(-1, *self.x.shape[1:])
        return delta if self._scale is None else delta * self._scale

    def _headroom(self, delta: Tensor) -> Tensor:
        """How far each coordinate may go in the direction that it already has, in units of the scale."""
        return torch.where(delta > 0, self._scaled(self.upper), -self._scaled(self.lower))

    def project(self, z: Tensor) -> Tensor:
        """The points of the ball nearest to (n, *shape), in units of the scale."""
        step = self._unscaled(self._shrink(self._scaled(z)))
        point = self.x + step
        # The sum is rounded; roundings away from x in many features would together leave the ball.
        too_far = (point - self.x).abs() > step.abs()
        return torch.where(too_far, torch.nextafter(point, self.x), point).clamp_(self.lower, self.upper)

    def random(self, streams: Streams) -> Tensor:
        """A random point of the ball for each input, drawn from its own stream."""
        return self.project(self.x + self._unscaled(self._draw(streams)))

    def ascent(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which the loss rises fastest, given its gradient (n, *shape).

        Features that cannot change get no part of it; for L0 it moves as many features as the budget allows.
        """
        if self._movable is not None:
            gradient = torch.where(self._movable, gradient, 0)
        scaled = gradient if self._scale is None else gradient * self._scale
        return self._unscaled(self._steepest(scaled.flatten(1)))

    def distance(self, z: Tensor) -> Tensor:
        """The size of each perturbation, computed in float64: (n,)."""
        delta = z.double() - self.x.double()
        if self._scale is not None:
            delta = delta / self._scale.double()
        return self._length(delta.flatten(1))

    def contains(self, z: Tensor) -> Tensor:
        """Whether each point is a number, within the budget, in range and otherwise valid: bool (n,)."""
        inside = self.distance(z) <= self.threat.eps * (1 + TOLERANCE)
        # NaN compares false, so it is never inside.
        inside &= ((z >= self.lower) & (z <= self.upper)).flatten(1).all(1)
        return inside & self._is_valid(z)

    def snap(self, z: Tensor) -> Tensor:
        """The point that a perturbation stands for, where features are whole numbers or one-hot groups.

        Gradient attacks move in the continuous relaxation and evaluate the model only on snapped points.
        Rounding to the nearest valid point may leave the ball; then rounding is towards the input and the
        groups stay as they are, which never does.
        """
        inputs = self._inputs
        if inputs is None or not inputs.is_discrete:
            return z
        near = self._round(z, towards_input=False)
        fits = self.contains(near)
        return torch.where(per_row(fits, near), near, self._round(z, towards_input=True))

    def _round(self, z: Tensor, *, towards_input: bool) -> Tensor:
        assert self._inputs is not None
        flat, origin = z.flatten(1).clone(), self.x.flatten(1)
        if self._inputs.integer:
            index = list(self._inputs.integer)
            moved = flat[:, index] - origin[:, index]
            flat[:, index] = origin[:, index] + (moved.trunc() if towards_input else moved.round())
        for group in self._inputs.one_hot:
            index = list(group)
            if towards_input:
                flat[:, index] = origin[:, index]
            else:
                chosen = flat[:, index].argmax(1)
                flat[:, index] = torch.nn.functional.one_hot(chosen, len(index)).to(flat.dtype)
        return flat.view_as(z)

    def _is_valid(self, z: Tensor) -> Tensor:
        inputs = self._inputs
        valid = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if inputs is None or not inputs.is_discrete:
            return valid
        flat, origin = z.flatten(1), self.x.flatten(1)
        if inputs.integer:
            moved = flat[:, list(inputs.integer)] - origin[:, list(inputs.integer)]
            valid &= (moved == moved.round()).all(1)
        for group in inputs.one_hot:
            members = flat[:, list(group)]
            same = (members == origin[:, list(group)]).all(1)
            hot = ((members == 0) | (members == 1)).all(1) & (members.sum(1) == 1)
            valid &= same | hot
        return valid

    @abstractmethod
    def _shrink(self, delta: Tensor) -> Tensor:
        """Project scaled perturbations (n, features) onto the norm ball intersected with the box."""

    @abstractmethod
    def _draw(self, streams: Streams) -> Tensor:
        """Random scaled perturbations (n, features) within the norm ball."""

    @abstractmethod
    def _steepest(self, gradient: Tensor) -> Tensor:
        """The maximiser of the inner product with the gradient over the unit norm ball."""

    @abstractmethod
    def _length(self, delta: Tensor) -> Tensor:
        """The norm of scaled perturbations."""


class LinfBall(Ball):
    """A box: the projection is a clamp, and it is exact to the last bit."""

    def __init__(self, threat: Threat, x: Tensor) -> None:
        super().__init__(threat, x)
        reach = threat.eps if self._scale is None else threat.eps * self._scale.double()
        self.lower = torch.maximum(self.lower, self._no_further(x.double() - reach, reach))
        self.upper = torch.minimum(self.upper, self._no_further(x.double() + reach, reach))
        self.eps = threat.eps

    def _no_further(self, exact: Tensor, reach: Tensor | float) -> Tensor:
        # x + eps is rounded; where it was rounded outwards, step one float back towards x.
        edge = exact.to(self.x.dtype)
        too_far = (edge.double() - self.x.double()).abs() > reach
        return torch.where(too_far, torch.nextafter(edge, self.x), edge)

    def project(self, z: Tensor) -> Tensor:
        return torch.clamp(z, self.lower, self.upper)

    def _shrink(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def _draw(self, streams: Streams) -> Tensor:
        unit = streams.uniform(self._features, dtype=self.x.dtype)
        return (2 * unit - 1) * self.eps

    def _steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def _length(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(1)


class L2Ball(Ball):
    """A Euclidean ball."""

    def _shrink(self, delta: Tensor) -> Tensor:
        # The projection onto ball and box is clip(t * delta) with the t that makes its norm eps. Solving
        # for t on the coordinates that the box does not clip only ever raises t, so a few rounds approach
        # it from below and each of them is feasible.
        room = self._headroom(delta)
        size = delta.abs()
        norm = _l2(torch.minimum(size, room))
        factor = self.eps / _l2(delta).clamp_min(1e-30)
        for _ in range(3):
            free = size * factor < room
            clipped = torch.where(free, 0, room).square().sum(1, keepdim=True)
            open_ = torch.where(free, size, 0).square().sum(1, keepdim=True)
            better = ((self.eps**2 - clipped).clamp_min(0) / open_.clamp_min(1e-30)).sqrt()
            factor = torch.maximum(factor, torch.where(open_ > 0, better, factor))
        factor = torch.where(norm <= self.eps, 1.0, factor.clamp_max(1.0))
        moved = torch.minimum(size * factor, room)
        # Rounding may leave the sum of squares a hair above the budget.
        moved = moved * (self.eps / _l2(moved).clamp_min(1e-30)).clamp_max(1.0)
        return moved.copysign(delta)

    def _draw(self, streams: Streams) -> Tensor:
        size = self._features
        direction = streams.normal(size, dtype=self.x.dtype)
        radius = streams.uniform(1, dtype=self.x.dtype).pow(1 / size)
        return direction / _l2(direction) * radius * self.eps

    def _steepest(self, gradient: Tensor) -> Tensor:
        # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
        peak = gradient.abs().amax(1, keepdim=True)
        gradient = gradient / torch.where(peak > 0, peak, 1.0)
        return gradient / _l2(gradient).clamp_min(1e-12)

    def _length(self, delta: Tensor) -> Tensor:
        return _l2(delta)[:, 0]


class L1Ball(Ball):
    """A cross-polytope; the projection takes the box into account (Croce & Hein 2021)."""

    def _shrink(self, delta: Tensor) -> Tensor:
        # The projection is min(max(|delta| - t, 0), room) with the t that makes its sum eps; the sum falls
        # as t grows, so bisection finds it. `high` always keeps the sum within the budget.
        room = self._headroom(delta)
        size = delta.abs()
        low = torch.zeros_like(size[:, :1])
        high = size.amax(1, keepdim=True)
        fits = torch.minimum(size, room).sum(1, keepdim=True) <= self.eps
        for _ in range(30):
            middle = (low + high) / 2
            within = torch.minimum((size - middle).clamp_min(0), room).sum(1, keepdim=True) <= self.eps
            low, high = torch.where(within, low, middle), torch.where(within, middle, high)
        threshold = torch.where(fits, torch.zeros_like(high), high)
        return torch.minimum((size - threshold).clamp_min(0), room).copysign(delta)

    def _draw(self, streams: Streams) -> Tensor:
        # Normalised exponentials are uniform on the simplex; one more of them gives the radius.
        size = self._features
        unit = streams.uniform(size + 1, dtype=torch.float64)
        parts = -torch.log1p(-unit)
        parts = (parts[:, :-1] / parts.sum(1, keepdim=True)).to(self.x.dtype)
        return parts * streams.signs(size, dtype=self.x.dtype) * self.eps

    def _steepest(self, gradient: Tensor) -> Tensor:
        best = gradient.abs().argmax(1, keepdim=True)
        return torch.zeros_like(gradient).scatter(1, best, gradient.gather(1, best).sign())

    def _length(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(1)


class L0Ball(Ball):
    """At most `eps` features change, each by any amount that keeps the input in range."""

    def __init__(self, threat: Threat, x: Tensor) -> None:
        super().__init__(threat, x)
        self.eps = threat.eps

    @property
    def _count(self) -> int:
        return min(int(self.threat.eps), self._features)

    def _shrink(self, delta: Tensor) -> Tensor:
        # Keep the features that would be missed most: by how much each lowers the squared distance.
        size = delta.abs()
        reachable = torch.minimum(size, self._headroom(delta))
        kept = (reachable * (2 * size - reachable)).topk(self._count, dim=1).indices
        return torch.zeros_like(delta).scatter(1, kept, delta.gather(1, kept))

    def _draw(self, streams: Streams) -> Tensor:
        if self._inputs is None:
            raise InputError("an L0 threat has random points only within bounds; bind it to inputs first")
        size = self._features
        chosen = streams.uniform(size, dtype=torch.float64).topk(self._count, dim=1).indices
        low, high = self._scaled(self.lower), self._scaled(self.upper)
        point = low + (high - low) * streams.uniform(size, dtype=self.x.dtype)
        return torch.zeros_like(point).scatter(1, chosen, point.gather(1, chosen))

    def _steepest(self, gradient: Tensor) -> Tensor:
        kept = gradient.abs().topk(self._count, dim=1).indices
        return torch.zeros_like(gradient).scatter(1, kept, gradient.gather(1, kept).sign())

    def _length(self, delta: Tensor) -> Tensor:
        return (delta != 0).sum(1).to(delta.dtype)


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


def _l2(delta: Tensor) -> Tensor:
    """The Euclidean norm of each row: (n, 1)."""
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return norm


def per_row(values: Tensor, reference: Tensor) -> Tensor:
    """View one value per sample so that it broadcasts over a batch like `reference`."""
    return values.view(-1, *[1] * (reference.ndim - 1))
