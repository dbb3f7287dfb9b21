"""What the balls of all norms share: range, scale, what can change, and points that stand for inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ..sampling import Streams
from .soft import headroom
from .waiting import reads_freely

if TYPE_CHECKING:
    from ..inputs import InputSpec
    from ..threats import Threat

__all__ = ["TOLERANCE", "Ball", "overwrite_", "per_row"]

# A perturbation is inside its ball when it exceeds the budget by no more than this relative slack.
TOLERANCE = 1e-6
# Attacks aim this far inside, so that rounding x + delta to float32 cannot push the sum out of the ball.
_INSET = 1e-5
_ROUNDED = 0.7  # the share of the inset that the rounding of points may use up; the rest is for lengths
# A value is at a level if it is off by no more than this share of the gap: rounding, not intent.
_ON_LEVEL = 1 / 32


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
        self._radius: float | Tensor = self.eps
        self._room: tuple[Tensor, Tensor] | None = None
        self._ends: tuple[Tensor, Tensor] | None = None
        self._absorbing: bool | None = None
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
        low, high = inputs.bounds
        # An input that is itself out of range must not be pulled away from its own ball's centre.
        if isinstance(low, float) and isinstance(high, float):
            self.lower, self.upper = x.clamp_max(low), x.clamp_min(high)
        else:
            self.lower = torch.minimum(inputs.like(low, x).expand_as(x), x)
            self.upper = torch.maximum(inputs.like(high, x).expand_as(x), x)
        if inputs.immutable:
            frozen = torch.zeros(inputs.size, dtype=torch.bool, device=x.device)
            frozen[list(inputs.immutable)] = True
            frozen = frozen.view(inputs.shape)
            self._movable = ~frozen
            self.lower = torch.where(frozen, x, self.lower)
            self.upper = torch.where(frozen, x, self.upper)

    def select(self, rows: Tensor) -> Ball:
        """The ball around some of the inputs."""
        clone = self._copy()
        clone.x, clone.lower, clone.upper = self.x[rows], self.lower[rows], self.upper[rows]
        clone._room = clone._ends = None
        if isinstance(self._radius, Tensor):
            clone._radius = self._radius[rows]
        return clone

    def resized(self, radius: Tensor) -> Ball:
        """The balls around the same inputs with a budget for each of them (n,), at most this one's."""
        clone = self._copy()
        clone._absorbing = None
        clone._radius = radius.view(-1, 1)
        return clone

    def _copy(self) -> Self:
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    @property
    def _features(self) -> int:
        return math.prod(self.x.shape[1:])

    def delta(self, z: Tensor) -> Tensor:
        """The perturbation that leads to a point, flattened, in the units of the norm: (n, features)."""
        delta = z - self.x
        return (delta if self._scale is None else delta / self._scale).flatten(1)

    def point(self, delta: Tensor) -> Tensor:
        """The valid input that a perturbation of this form leads to: (n, *shape)."""
        return torch.add(self.x, self._unscaled(delta)).clamp_(self.lower, self.upper)

    def room(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each entry of a `delta`, to be read only: (n, features)."""
        if self._room is None:
            self._room = self.delta(self.lower), self.delta(self.upper)
        return self._room

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to a `delta`, 0 for what cannot change: (n, features)."""
        if self._movable is not None:
            gradient = torch.where(self._movable, gradient, 0)
        return (gradient if self._scale is None else gradient * self._scale).flatten(1)

    def dual(self, gradient: Tensor) -> Tensor:
        """By how much the loss rises per unit of the norm, to first order (the dual norm): (n,)."""
        return self._dual(self.slope(gradient))

    def _unscaled(self, delta: Tensor) -> Tensor:
        delta = delta.view(-1, *self.x.shape[1:])
        return delta if self._scale is None else delta * self._scale

    def _headroom(self, delta: Tensor) -> Tensor:
        """How far each coordinate may go in the direction that it already has, in units of the scale."""
        if self._inputs is None:
            return torch.full_like(delta, torch.inf)
        if self._ends is None:
            low, high = self.room()
            self._ends = -low, high
        return headroom(delta, *self._ends)

    def _limit(self, delta: Tensor) -> Tensor:
        """The radius of each row, to compare with: (n, 1)."""
        radius = self._radius
        return radius if isinstance(radius, Tensor) else delta.new_full((len(delta), 1), radius)

    def _surely(self) -> float | Tensor:
        """A length that is within the budget, however it was computed: one or (n,)."""
        radius = self._radius
        return (radius[:, 0] if isinstance(radius, Tensor) else radius) * (1 + _INSET / 2)

    def project(self, z: Tensor) -> Tensor:
        """The points of the ball nearest to (n, *shape), in units of the scale."""
        return self._rounded(self._shrink(self.delta(z)))

    def _rounded(self, delta: Tensor) -> Tensor:
        """The point that a perturbation within the ball leads to, within it however the sum is rounded."""
        step = self._unscaled(delta)
        point = torch.add(self.x, step).clamp_(self.lower, self.upper)
        # Roundings away from x in many features would together leave the ball, where it is small. They do so
        # rarely, and on the CPU it is cheaper to ask than to mend.
        if self._absorbs_rounding() or (
            reads_freely(point) and bool((self.length(point) <= self._surely()).all())
        ):
            return point
        too_far = ((point - self.x).abs() > step.abs()).to(point.dtype)
        return torch.lerp(point, torch.nextafter(point, self.x), too_far)

    def _absorbs_rounding(self) -> bool:
        """Whether the inset of the radius is more than all roundings of a point can add to its length."""
        if self._absorbing is None:
            self._absorbing = False
            if (
                isinstance(self._radius, float)
                and self._scale is None
                and len(self.x)
                and reads_freely(self.x)
            ):
                largest = max(-float(self.lower.amin()), float(self.upper.amax()))
                rounding = torch.finfo(self.x.dtype).eps / 2 * largest
                self._absorbing = self._accumulated(rounding) <= self._radius * _INSET * _ROUNDED
        return self._absorbing

    def _accumulated(self, change: float) -> float:
        """How much longer a perturbation becomes, at most, if every feature changes by so much."""
        return change * self._features

    def project_(self, z: Tensor) -> Tensor:
        """As `project`, for a tensor that is the caller's to overwrite; saves a copy where it can."""
        return self.project(z)

    def advance(self, z: Tensor, direction: Tensor, length: float | Tensor) -> Tensor:
        """Go from z (n, *shape) in a direction, by one length or one per sample (n,), and project."""
        if isinstance(length, Tensor):
            return self.project_(torch.addcmul(z, direction, per_row(length, z)))
        return self.project_(torch.add(z, direction, alpha=length))

    def uphill(self, z: Tensor, gradient: Tensor, length: float | Tensor) -> Tensor:
        """As `advance` in the direction of `ascent`."""
        return self.advance(z, self.ascent(gradient), length)

    def swing(
        self, z: Tensor, previous: Tensor, gradient: Tensor, length: float | Tensor, momentum: float
    ) -> Tensor:
        """A step uphill that the last one carries on (Croce and Hein 2020, Algorithm 1, lines 6 and 7).

        Args:
            z: Where it starts (n, *shape).
            previous: Where the last step started.
            gradient: Of the loss at z.
            length: Of the step uphill; one, or one per sample (n,).
            momentum: The share of the step uphill; the rest repeats the last step.
        """
        further = torch.lerp(previous, z, 2.0)
        return self.project_(self.uphill(z, gradient, length).lerp_(further, 1 - momentum))

    def random(self, streams: Streams) -> Tensor:
        """A random point of the ball for each input, drawn from its own stream."""
        return self.project_(self.x + self._unscaled(self._draw(streams)))

    def ascent(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which the loss rises fastest, given its gradient (n, *shape).

        Features that cannot change get no part of it; for L0 it moves as many features as the budget allows.
        """
        return self._unscaled(self._steepest(self.slope(gradient)))

    def length(self, z: Tensor) -> Tensor:
        """The size of each perturbation, computed in the precision of the inputs: (n,)."""
        return self._length(self.delta(z))

    def distance(self, z: Tensor) -> Tensor:
        """The size of each perturbation, computed in float64: (n,)."""
        delta = self._exact(z) - self._exact(self.x)
        if self._scale is not None:
            delta = delta / self._scale.double()
        return self._length(delta.flatten(1))

    def _exact(self, z: Tensor) -> Tensor:
        """In float64, and where there are levels without the rounding that storing them as floats brings."""
        z = z.double()
        inputs = self._inputs
        if inputs is None or inputs.levels is None:
            return z
        number = inputs.level_of(z)
        nearest = number.round()
        return torch.where((number - nearest).abs() < _ON_LEVEL, inputs.at_level(nearest), z)

    def contains(self, z: Tensor) -> Tensor:
        """Whether each point is a number, within the budget, in range and otherwise valid: bool (n,)."""
        inside = self.distance(z) <= self.threat.eps * (1 + TOLERANCE)
        # NaN compares false, so it is never inside.
        inside &= ((z >= self.lower) & (z <= self.upper)).flatten(1).all(1)
        return inside & self._is_valid(z)

    def snap(self, z: Tensor) -> Tensor:
        """The point that a perturbation stands for, where features are whole, one-hot groups or have levels.

        Gradient attacks move in the continuous relaxation and evaluate the model only on snapped points.
        Rounding to the nearest valid point may leave the ball; then whole numbers are rounded towards the
        input, and if that is not enough the groups stay as they are, too, which never leaves it.
        """
        inputs = self._inputs
        if inputs is None or not inputs.is_discrete:
            return z
        if inputs.levels is not None:
            nearest = self._to_level(inputs, z, towards_input=False)
            fits = self.distance(nearest) <= self.threat.eps * (1 + TOLERANCE)
            return torch.where(per_row(fits, z), nearest, self._to_level(inputs, z, towards_input=True))
        point = self._round(inputs, z, towards_input=True, keep_groups=True)
        for towards_input in (True, False):
            nearer = self._round(inputs, z, towards_input=towards_input, keep_groups=False)
            point = torch.where(per_row(self.contains(nearer), z), nearer, point)
        return point

    def _round(self, inputs: InputSpec, z: Tensor, *, towards_input: bool, keep_groups: bool) -> Tensor:
        flat, origin = z.flatten(1).clone(), self.x.flatten(1)
        if inputs.integer:
            index = list(inputs.integer)
            moved = flat[:, index] - origin[:, index]
            flat[:, index] = origin[:, index] + (moved.trunc() if towards_input else moved.round())
        for group in inputs.one_hot:
            index = list(group)
            if keep_groups:
                flat[:, index] = origin[:, index]
            else:
                chosen = flat[:, index].argmax(1)
                flat[:, index] = torch.nn.functional.one_hot(chosen, len(index)).to(flat.dtype)
        return flat.view_as(z)

    def _to_level(self, inputs: InputSpec, z: Tensor, *, towards_input: bool) -> Tensor:
        """Each value at its nearest level, or at the input's own if that is as near; never across it.

        Args:
            inputs: What the levels are.
            z: Values, (n, *shape).
            towards_input: Never further from the input than z, instead of just within the box.
        """
        direction = (z - self.x).sign()
        number = inputs.level_of(z).round()
        point = inputs.at_level(number)
        outside = (
            (point - z) * direction > 0 if towards_input else (point > self.upper) | (point < self.lower)
        )
        point = torch.where(outside, inputs.at_level(number - direction), point)
        crossed = (point - self.x) * direction <= 0
        here, own, there = (inputs.level_of(value) for value in (z, self.x, point))
        keeps = crossed | ((here - own).abs() <= (here - there).abs() + _ON_LEVEL)
        return torch.where(keeps, self.x, point)

    def _is_valid(self, z: Tensor) -> Tensor:
        inputs = self._inputs
        valid = torch.ones(len(z), dtype=torch.bool, device=z.device)
        if inputs is None or not inputs.is_discrete:
            return valid
        if inputs.levels is not None:
            return ((z == self.x) | (z == inputs.at_level(inputs.level_of(z).round()))).flatten(1).all(1)
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
    def _dual(self, gradient: Tensor) -> Tensor:
        """The largest inner product with the gradient over the unit norm ball."""

    @abstractmethod
    def _length(self, delta: Tensor) -> Tensor:
        """The norm of scaled perturbations."""


def overwrite_(target: Tensor, mask: Tensor, source: Tensor) -> None:
    """Copy the rows that a mask (n,) chooses from one tensor to another of the same shape, in place."""
    if not reads_freely(target):
        # Asking which rows they are would stall the device.
        torch.where(per_row(mask, target), source, target, out=target)
    elif len(places := mask.nonzero()[:, 0]) == len(target):
        target.copy_(source)
    elif len(places):
        target.index_copy_(0, places, source.index_select(0, places))


def per_row(values: Tensor, reference: Tensor) -> Tensor:
    """View one value per sample so that it broadcasts over a batch like `reference`."""
    return values.view(-1, *[1] * (reference.ndim - 1))
