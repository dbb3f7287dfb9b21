"""The samples that an attack is still working on, and what it has found for the others.

Every iterative attack works on a `Search`: samples that are already broken leave the batch while the
attack runs, so that a weak model costs a handful of passes instead of the full budget. The test for that
reads one number from the device, so it is made every few steps and not at each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..kernels import lean
from ..losses import Loss, is_wrong
from ..registry import Logits
from ..sampling import Streams
from ..surrogates import smoothed
from ..threats import Threat, overwrite_, per_row, reads_freely

__all__ = ["Columns", "Search", "Watched"]

_CALM = 9  # checks as from this step on for samples that are not new; the first comes after four steps
_RARELY = 8  # where asking makes a device wait; the first comes after one step, and then every fourth


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
        rows: Positions in the batch of the active samples; `x`, `y`, `ball`, `streams` and `target` hold
            just those.
        target: The class that each sample is aimed at by `aim`, its own label if it is not.
    """

    def __init__(self, model: Logits, x: Tensor, y: Tensor, threat: Threat, streams: Streams) -> None:
        self.model = model
        self.found = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._all = (x, y, threat.around(x), streams)
        self._aims: Tensor | None = None
        self.target = y
        self._delay = self._new = 0 if reads_freely(x) else _RARELY
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
        aims = y if self._aims is None else self._aims
        self.target = aims if everything else aims[rows]
        # What this stretch of the search has broken, and where; merged into the batch when rows leave.
        self._hit = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        self._point = self.x.clone()
        self._refocus()

    def _refocus(self) -> None:
        if isinstance(self.model, Watched):
            self.model.focus(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def restart(self, number: int, among: Tensor | None = None) -> bool:
        """Make active every sample that is not broken yet, with fresh streams; False if there is none.

        Args:
            number: Of the restart; each has its own random numbers.
            among: Leave out the samples of the batch where this is False, bool (n,).
        """
        self._merge()
        self._delay = _CALM if number else self._new
        chosen = ~self.broken if among is None else ~self.broken & among
        self._activate(chosen.nonzero()[:, 0], number)
        return len(self) > 0

    def aim(self, targets: Tensor) -> None:
        """Aim each sample of the batch at a class int64 (n,), for losses that read `target`."""
        self._aims = targets
        self.target = targets[self.rows]

    def look(self, z: Tensor) -> Tensor:
        """Evaluate the model at a point per active sample without derivatives: logits (n, classes)."""
        point = self.ball.snap(z)
        with torch.no_grad():
            logits = self.model(point)
        self._record(point, logits)
        return logits

    def climb(
        self, z: Tensor, loss: Loss, *, record: bool = True, smooth: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Evaluate a loss and its gradient with respect to the input: values (n,), gradient (n, *shape).

        Where features are discrete the model sees the snapped point and its gradient is passed straight
        through. A model that cuts the graph has a gradient of zero, as has one whose gradient is not finite.

        Args:
            z: Where, (n, *shape).
            loss: The objective.
            record: If off, z may lie outside the ball: what it does to the model is not held against it.
            smooth: Take the gradient of the surrogates (`robustml.surrogates`) instead of the true one.
        """
        point = self.ball.snap(z).detach().requires_grad_()
        logits = self._graph(point, smooth=smooth)
        values = loss(logits, self.y)
        if record:
            self._record(point.detach(), logits.detach())
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
        if gradient is None:
            return values.detach(), torch.zeros_like(z)
        return values.detach(), _finite(gradient)

    def slopes(
        self, z: Tensor, targets: Tensor | Callable[[Tensor], Tensor], *, smooth: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The logits at a point, and the gradients of each target's logit minus the label's.

        One forward pass, and one backward pass per target.

        Args:
            z: Where, (n, *shape).
            targets: Class indices int64 (n, k), or a function that chooses them by the logits.
            smooth: Take the gradients of the surrogates.

        Returns:
            The logits (n, classes) and the gradients (n, k, *shape).
        """
        point = self.ball.snap(z).detach().requires_grad_()
        logits = self._graph(point, smooth=smooth)
        self._record(point.detach(), logits.detach())
        targets = targets if isinstance(targets, Tensor) else targets(logits.detach())
        count = targets.shape[1]
        if not logits.requires_grad:
            return logits, z.new_zeros(len(z), count, *z.shape[1:])
        label = logits.gather(1, self.y[:, None])
        gaps = logits.gather(1, targets) - label
        gradients = []
        for index in range(count):
            (gradient,) = torch.autograd.grad(
                gaps[:, index].sum(), point, retain_graph=index < count - 1, allow_unused=True
            )
            gradients.append(torch.zeros_like(z) if gradient is None else _finite(gradient))
        return logits.detach(), torch.stack(gradients, dim=1)

    def _graph(self, point: Tensor, *, smooth: bool) -> Tensor:
        with lean(), smoothed() if smooth else contextlib.nullcontext():
            return self.model(point)

    def _record(self, point: Tensor, logits: Tensor) -> None:
        new = is_wrong(logits, self.y) & ~self._hit
        overwrite_(self._point, new, point)
        self._hit |= new

    def prune(self, step: int, state: Columns, done: Tensor | None = None) -> bool:
        """At some steps, let samples that need no more leave the active set; False once none is left.

        Args:
            step: The step just finished, from 0. The checks come at every step at first, where most of
                the breaking happens, and further and further apart later; in a restart after the first, of
                samples that have stood already, and on a device at no more than every fourth step.
            state: The attack's own per-sample state, cut down alongside.
            done: Samples that the attack has finished with beside the broken ones, bool (n,). They can stay
                for a while, so their state must remain harmless.
        """
        if not _is_check(step + self._delay):
            return True
        leaving = self._hit if done is None else self._hit | done
        size = _rung(int((~leaving).sum()))
        if size >= len(self):
            return True
        # The standing ones come first; what is left of the rung is filled up with others.
        kept = leaving.int().sort(stable=True).indices[:size].sort().values
        self._merge()
        self._keep(kept)
        state.keep(kept)
        self._refocus()
        return len(self) > 0

    def _keep(self, rows: Tensor) -> None:
        self.rows, self.x, self.y = self.rows[rows], self.x[rows], self.y[rows]
        self.target = self.target[rows]
        self.ball, self.streams = self.ball.select(rows), self.streams.select(rows)
        self._hit, self._point = self._hit[rows], self._point[rows]

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


def _finite(gradient: Tensor) -> Tensor:
    """A gradient with 0 for what is no finite number; it is overwritten where that is possible."""
    # Some gradients are one number expanded, which cannot be written to.
    gradient = gradient if gradient.is_contiguous() else gradient.contiguous()
    return gradient.nan_to_num_(0.0, 0.0, 0.0)


def _rung(count: int) -> int:
    """The batch size to use for so many samples: one of eight per octave.

    A convolution is compiled anew for every batch size, which costs time and memory that is never given
    back; a few idle rows cost less.
    """
    step = 1 << max((count - 1).bit_length() - 4, 0) if count else 1
    return -(-count // step) * step


def _is_check(step: int) -> bool:
    return step < 8 or step % (4 if step < 32 else 8) == 0
