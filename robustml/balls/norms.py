"""One ball per norm: projection, random points, steepest ascent, length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..sampling import Streams
from .base import TOLERANCE, Ball, per_row
from .scaled import scaled
from .soft import softened
from .waiting import reads_freely

if TYPE_CHECKING:
    from ..threats import Threat

__all__ = ["L0Ball", "L1Ball", "L2Ball", "LinfBall"]

_SQUARES = 1e-15  # lengths above it, and below its inverse, have squares that neither under- nor overflow


class LinfBall(Ball):
    """A box: the projection is a clamp, and it is exact to the last bit."""

    def __init__(self, threat: Threat, x: Tensor) -> None:
        super().__init__(threat, x)
        reach = threat.eps if self._scale is None else threat.eps * self._scale.double()
        edge = self._no_further if self._inputs is None or self._inputs.levels is None else self._last_level
        centre = x.double()
        self.lower = torch.maximum(self.lower, edge(centre, reach, -1))
        self.upper = torch.minimum(self.upper, edge(centre, reach, 1))
        self.eps = self._radius = threat.eps

    def resized(self, radius: Tensor) -> Ball:
        ball = super().resized(radius)
        reach = per_row(radius, self.x)
        reach = reach if self._scale is None else reach * self._scale
        ball._room = ball._ends = None
        ball.lower = torch.maximum(self.lower, self.x - reach)
        ball.upper = torch.minimum(self.upper, self.x + reach)
        return ball

    def _no_further(self, centre: Tensor, reach: Tensor | float, side: int) -> Tensor:
        """The furthest float within reach, on one side of the centre in float64."""
        # x + eps is rounded; where it was rounded outwards, step one float back towards x.
        exact = torch.add(centre, reach, alpha=side)
        edge = exact.to(self.x.dtype, copy=True)
        away = exact.copy_(edge).sub_(centre)
        # A comparison that writes numbers: choosing by a mask costs many times as much.
        too_far = torch.gt(away, reach, out=away) if side > 0 else torch.lt(away, -reach, out=away)
        # More than half the gap to the next float and less than one and a half, whatever the gap: rounded, it
        # is that float (Rump et al. 2009, "Computing predecessor and successor in rounding to nearest").
        unit = torch.finfo(edge.dtype).eps / 2
        return torch.addcmul(edge, edge.abs(), too_far.to(edge.dtype), value=-side * unit * (1 + 2 * unit))

    def _last_level(self, centre: Tensor, reach: Tensor | float, side: int) -> Tensor:
        """The furthest level within reach, on one side; the input itself if there is none."""
        assert self._inputs is not None
        number = self._inputs.level_of(self._exact(self.x) + side * reach * (1 + TOLERANCE / 2))
        level = self._inputs.at_level((number * side).floor() * side).to(self.x.dtype)
        return torch.where((level - self.x) * side > 0, level, self.x)

    def project(self, z: Tensor) -> Tensor:
        return torch.clamp(z, self.lower, self.upper)

    def project_(self, z: Tensor) -> Tensor:
        return z.clamp_(self.lower, self.upper)

    def _shrink(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def _draw(self, streams: Streams) -> Tensor:
        unit = streams.uniform(self._features, dtype=self.x.dtype)
        return unit.mul_(2).sub_(1).mul_(self._radius)

    def _steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def _dual(self, gradient: Tensor) -> Tensor:
        return gradient.abs().sum(1)

    def _length(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(1)


class L2Ball(Ball):
    """A Euclidean ball."""

    def uphill(self, z: Tensor, gradient: Tensor, length: float | Tensor) -> Tensor:
        return self._rounded(self._shrink(self._climbed(z, gradient, length)))

    def swing(
        self, z: Tensor, previous: Tensor, gradient: Tensor, length: float | Tensor, momentum: float
    ) -> Tensor:
        low, high = self.room()
        # Halfway any point of the ball will do; the nearest one is found at the end.
        halfway = self._climbed(z, gradient, length).clamp_(low, high)
        halfway.mul_((self._radius / _l2(halfway)).clamp_max_(1))
        further = self.delta(torch.lerp(previous, z, 2.0))
        return self._rounded(self._shrink(halfway.lerp_(further, 1 - momentum)))

    def _climbed(self, z: Tensor, gradient: Tensor, length: float | Tensor) -> Tensor:
        """The perturbation that a step of some length along the gradient leads to, wherever that is."""
        slope, delta = self.slope(gradient), self.delta(z)
        length = length[:, None] if isinstance(length, Tensor) else length
        if reads_freely(slope):
            norm = _l2(slope)
            least, most = norm.aminmax()
            if least > _SQUARES and most * _SQUARES < 1:
                return delta.addcmul_(slope, length / norm)
        return delta.add_(self._steepest(slope) * length)

    def _shrink(self, delta: Tensor) -> Tensor:
        low, high = self.room()
        return scaled(delta, low, high, self._radius)

    def _accumulated(self, change: float) -> float:
        return change * math.sqrt(self._features)

    def _draw(self, streams: Streams) -> Tensor:
        size = self._features
        direction = streams.normal(size, dtype=self.x.dtype)
        radius = streams.uniform(1, dtype=self.x.dtype).pow(1 / size)
        return direction / _l2(direction) * radius * self._radius

    def _steepest(self, gradient: Tensor) -> Tensor:
        # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
        peak = gradient.abs().amax(1, keepdim=True)
        gradient = gradient / torch.where(peak > 0, peak, 1.0)
        return gradient / _l2(gradient).clamp_min(1e-12)

    def _dual(self, gradient: Tensor) -> Tensor:
        return _l2(gradient)[:, 0]

    def _length(self, delta: Tensor) -> Tensor:
        return _l2(delta)[:, 0]


class L1Ball(Ball):
    """A cross-polytope; the projection takes the box into account (Croce & Hein 2021)."""

    def _shrink(self, delta: Tensor) -> Tensor:
        return softened(delta, self._headroom(delta), self._limit(delta))

    def _draw(self, streams: Streams) -> Tensor:
        # Normalised exponentials are uniform on the simplex; one more of them gives the radius.
        size = self._features
        unit = streams.uniform(size + 1, dtype=torch.float64)
        parts = -torch.log1p(-unit)
        parts = (parts[:, :-1] / parts.sum(1, keepdim=True)).to(self.x.dtype)
        return parts * streams.signs(size, dtype=self.x.dtype) * self._radius

    def _steepest(self, gradient: Tensor) -> Tensor:
        best = gradient.abs().argmax(1, keepdim=True)
        return torch.zeros_like(gradient).scatter(1, best, gradient.gather(1, best).sign())

    def _dual(self, gradient: Tensor) -> Tensor:
        return gradient.abs().amax(1)

    def _length(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(1)


class L0Ball(Ball):
    """At most `eps` features change, each by any amount that keeps the input in range."""

    def __init__(self, threat: Threat, x: Tensor) -> None:
        super().__init__(threat, x)
        self.eps = self._radius = threat.eps

    @property
    def _count(self) -> int:
        return min(int(self.threat.eps), self._features)

    def _shrink(self, delta: Tensor) -> Tensor:
        # Keep the features that would be missed most: by how much each lowers the squared distance.
        size = delta.abs()
        reachable = torch.minimum(size, self._headroom(delta))
        order = (reachable * (2 * size - reachable)).topk(self._count, dim=1).indices
        values = delta.gather(1, order)
        if isinstance(self._radius, Tensor):
            rank = torch.arange(order.shape[1], device=order.device)
            values = torch.where(rank < self._radius, values, 0)
        return torch.zeros_like(delta).scatter(1, order, values)

    def _draw(self, streams: Streams) -> Tensor:
        if self._inputs is None:
            raise InputError("an L0 threat has random points only within bounds; bind it to inputs first")
        size = self._features
        chosen = streams.uniform(size, dtype=torch.float64).topk(self._count, dim=1).indices
        low, high = self.room()
        point = low + (high - low) * streams.uniform(size, dtype=self.x.dtype)
        return torch.zeros_like(point).scatter(1, chosen, point.gather(1, chosen))

    def _steepest(self, gradient: Tensor) -> Tensor:
        kept = gradient.abs().topk(self._count, dim=1).indices
        return torch.zeros_like(gradient).scatter(1, kept, gradient.gather(1, kept).sign())

    def _dual(self, gradient: Tensor) -> Tensor:
        # One feature may go to the end of its range, whichever pays best.
        low, high = self.room()
        return torch.maximum(gradient * low, gradient * high).amax(1)

    def _length(self, delta: Tensor) -> Tensor:
        # A comparison that writes numbers, which are then summed several times as fast.
        return torch.ne(delta, 0, out=torch.empty_like(delta)).sum(1)


def _l2(delta: Tensor) -> Tensor:
    """The Euclidean norm of each row: (n, 1)."""
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    return norm
