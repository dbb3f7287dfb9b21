"""The samples that an attack is still working on, and what it has found for the others.

Every iterative attack works on a `Search`: samples that are already broken leave the batch while the
attack runs, so that a weak model costs a handful of passes instead of the full budget. The test for that
reads one number from the device, so it is made every few steps and not at each.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..losses import Loss, is_wrong
from ..registry import Logits
from ..sampling import Streams
from ..threats import Threat, overwrite_, per_row

__all__ = ["Columns", "Search", "Watched"]


@runtime_checkable
class Watched(Protocol):
    """A model that wants to know which samples of the batch its next calls hold."""

    def focus(self, rows: Tensor) -> None: ...


class Columns:
    """Mutable per-sample state: every attribute is a tensor with one row per active sample."""

    def keep(self, rows: Tensor) -> None:
        """Keep only some rows of every attribute."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


State = TypeVar("State", bound=Columns)


class Search:
    """One attack on one batch.

    Args:
        model: The callable under attack.
        x: Inputs (n, *shape).
        y: Labels int64 (n,).
        threat: The threat model.
        streams: One random stream per sample.

    Attributes:
        found: The first adversarial point of each broken sample, the input itself for the others.
        broken: bool (n,), for the whole batch.
        rows: Positions in the batch of the active samples; `x`, `y`, `ball`, `streams` hold just those.
    """

    def __init__(self, model: Logits, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> None:
        self.model = model
        self.found = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._all = (x, y, threat.around(x), streams)
        self._activate(torch.arange(len(x), device=x.device))

    def _activate(self, rows: Tensor, restart: int | None = None) -> None:
        x, y, ball, streams = self._all
        everything = len(rows) == len(x)
        self.rows = rows
        self.x = x if everything else x[rows]
        self.y = y if everything else y[rows]
        self.ball = ball if everything else ball.select(rows)
        base = streams if restart is None else streams.restart(restart)
        self.streams = base if everything else base.select(rows)
        # What this stretch of the search has broken, and where; merged into the batch when rows leave.
        self._hit = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        self._point = self.x.clone()
        self._refocus()

    def _refocus(self) -> None:
        if isinstance(self.model, Watched):
            self.model.focus(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def restart(self, number: int) -> bool:
        """Make active every sample that is not broken yet, with fresh streams; False if there is none."""
        self._merge()
        self._activate((~self.broken).nonzero()[:, 0], number)
        return len(self) > 0

    def look(self, z: Tensor) -> Tensor:
        """Evaluate the model at a point per active sample without derivatives: logits (n, classes)."""
        point = self.ball.snap(z)
        with torch.no_grad():
            logits = self.model(point)
        self._record(point, logits)
        return logits

    def climb(self, z: Tensor, loss: Loss, *, record: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate a loss and its gradient with respect to the input: values (n,), gradient (n, *shape).

        Where features are discrete the model sees the snapped point and its gradient is passed straight
        through. A model that cuts the graph has a gradient of zero, as has one whose gradient is not finite.
        With `record` off, z may lie outside the ball: what it does to the model is not held against it.
        """
        point = self.ball.snap(z).detach().requires_grad_()
        logits = self.model(point)
        values = loss(logits, self.y)
        if record:
            self._record(point.detach(), logits.detach())
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
        if gradient is None:
            return values.detach(), torch.zeros_like(z)
        # Some gradients are one number expanded, which cannot be written to.
        gradient = gradient if gradient.is_contiguous() else gradient.contiguous()
        return values.detach(), gradient.nan_to_num_(0.0, 0.0, 0.0)

    def _record(self, point: Tensor, logits: Tensor) -> None:
        new = is_wrong(logits, self.y) & ~self._hit
        overwrite_(self._point, new, point)
        self._hit |= new

    def prune(self, step: int, state: Columns) -> bool:
        """At some steps, let broken samples leave the active set; False once all are broken.

        Args:
            step: The step just finished, from 0. The checks come at every step at first, where most of
                the breaking happens, and further and further apart later.
            state: The attack's own per-sample state, cut down alongside.
        """
        if not _is_check(step):
            return True
        size = _rung(int((~self._hit).sum()))
        if size >= len(self):
            return True
        # The standing ones come first; what is left of the rung is filled up with broken ones.
        kept = self._hit.int().sort(stable=True).indices[:size].sort().values
        self._merge()
        self.rows, self.x, self.y = self.rows[kept], self.x[kept], self.y[kept]
        self.ball, self.streams = self.ball.select(kept), self.streams.select(kept)
        self._hit, self._point = self._hit[kept], self._point[kept]
        state.keep(kept)
        self._refocus()
        return len(self) > 0

    def _merge(self) -> None:
        newly = per_row(self._hit, self._point)
        self.found[self.rows] = torch.where(newly, self._point, self.found[self.rows])
        self.broken[self.rows] |= self._hit

    def finish(self, last: Tensor | None = None) -> Tensor:
        """The candidates: the first adversarial point of each broken sample, `last` for the active rest."""
        self._merge()
        # With no sample left, `last` is what an earlier restart ended with.
        if last is not None and len(self):
            rest = per_row(self._hit, last)
            self.found[self.rows] = torch.where(rest, self.found[self.rows], self.ball.snap(last))
        return self.found


def _rung(count: int) -> int:
    """The batch size to use for so many samples: one of eight per octave.

    A convolution is compiled anew for every batch size, which costs time and memory that is never given
    back; a few idle rows cost less.
    """
    step = 1 << max((count - 1).bit_length() - 4, 0) if count else 1
    return -(-count // step) * step


def _is_check(step: int) -> bool:
    return step < 8 or step % (4 if step < 32 else 8) == 0
