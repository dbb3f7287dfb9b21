"""The search of a minimum-norm attack: for the nearest adversarial point, wherever it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import is_wrong
from ..registry import Logits
from ..sampling import Streams
from ..threats import Threat, overwrite_, per_row
from .active import Search

__all__ = ["Nearest"]


class Nearest(Search):
    """A `Search` that may look anywhere in the range of the inputs and keeps the nearest success.

    `ball` is as wide as the range. Unless `nearest` is set, a sample leaves the batch once it has a success
    within the budget of the threat, since a stress test asks no more of it.

    Args:
        model, x, y, threat, streams: As for `Search`.
        nearest: Go on within the budget, for the smallest perturbation that can be found.
        start: Adversarial points to begin with (n, *shape), the input itself where none is known.

    Attributes:
        budget: The eps of the threat.
        best: The nearest adversarial point of each active sample, the input itself where there is none.
        reached: Its distance (n,), infinite where there is none.
        visited: The distance of the last point that was looked at (n,).
    """

    def __init__(
        self,
        model: Logits,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        streams: Streams,
        *,
        nearest: bool,
        start: Tensor | None = None,
    ) -> None:
        self.budget = threat.eps
        self._until = -1.0 if nearest else threat.eps
        self._distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        super().__init__(model, x, y, _everywhere(threat, x), streams)
        if start is not None:
            self.look(start)

    def _activate(self, rows: Tensor, restart: int | None = None) -> None:
        super()._activate(rows, restart)
        self._point = self.found[rows].clone()
        self._near = self._distance[rows].clone()
        self.visited = torch.zeros_like(self._near)

    @property
    def best(self) -> Tensor:
        return self._point

    @property
    def reached(self) -> Tensor:
        return self._near

    def _record(self, point: Tensor, logits: Tensor) -> None:
        distance = self.visited = self.ball.length(point)
        # A sample that has what it needs may stay for a while, by how many others do; that must not show.
        nearer = is_wrong(logits, self.y) & (distance < self._near) & ~self._hit
        overwrite_(self._point, nearer, point)
        self._near = torch.where(nearer, distance, self._near)
        self._hit |= self._near <= self._until

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self._near, self.visited = self._near[rows], self.visited[rows]

    def _merge(self) -> None:
        known = per_row(self._near < torch.inf, self._point)
        self.found[self.rows] = torch.where(known, self._point, self.found[self.rows])
        self._distance[self.rows] = self._near
        self.broken[self.rows] |= self._hit

    def finish(self, last: Tensor | None = None) -> Tensor:
        """The nearest adversarial point of each sample; `last`, or the input, where there is none."""
        self._merge()
        if last is not None and len(self):
            known = per_row(self._near < torch.inf, last)
            self.found[self.rows] = torch.where(known, self.found[self.rows], self.ball.snap(last))
        return self.found


def _everywhere(threat: Threat, x: Tensor) -> Threat:
    """The same norm with a budget that reaches every valid input."""
    if threat.inputs is not None:
        return threat.unbounded()
    return threat.at(float(x[0].numel()) if threat.norm == "l0" else 1e12)
