"""The geometry of threat models: the valid perturbations around a batch of inputs, one class per norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError
from .sampling import Streams

if TYPE_CHECKING:
    from .inputs import InputSpec
    from .threats import Threat

__all__ = ["TOLERANCE", "Ball", "L0Ball", "L1Ball", "L2Ball", "LinfBall", "overwrite_", "per_row"]

# A perturbation is inside its ball when it exceeds the budget by no more than this relative slack.
TOLERANCE = 1e-6
# Attacks aim this far inside, so that rounding x + delta to float32 cannot push the sum out of the ball.
_INSET = 1e-5


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

    def project_(self, z: Tensor) -> Tensor:
        """As `project`, for a tensor that is the caller's to overwrite; saves a copy where it can."""
        return self.project(z)

    def advance(self, z: Tensor, direction: Tensor, length: float | Tensor) -> Tensor:
        """Go from z (n, *shape) in a direction, by one length or one per sample (n,), and project."""
        if isinstance(length, Tensor):
            return self.project_(torch.addcmul(z, direction, per_row(length, z)))
        return self.project_(torch.add(z, direction, alpha=length))

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
        Rounding to the nearest valid point may leave the ball; then whole numbers are rounded towards the
        input, and if that is not enough the groups stay as they are, too, which never leaves it.
        """
        inputs = self._inputs
        if inputs is None or not inputs.is_discrete:
            return z
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

    def project_(self, z: Tensor) -> Tensor:
        return z.clamp_(self.lower, self.upper)

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


def overwrite_(target: Tensor, mask: Tensor, source: Tensor) -> None:
    """Copy the rows that a mask (n,) chooses from one tensor to another of the same shape, in place."""
    if target.device.type != "cpu":
        # Asking which rows they are would stall the device.
        torch.where(per_row(mask, target), source, target, out=target)
    elif len(places := mask.nonzero()[:, 0]):
        target.index_copy_(0, places, source.index_select(0, places))


def per_row(values: Tensor, reference: Tensor) -> Tensor:
    """View one value per sample so that it broadcasts over a batch like `reference`."""
    return values.view(-1, *[1] * (reference.ndim - 1))


def _l2(delta: Tensor) -> Tensor:
    """The Euclidean norm of each row: (n, 1)."""
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return norm
