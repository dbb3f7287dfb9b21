"""Counting passes, holding attacks to their budget, and keeping every adversarial point they visit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..losses import is_wrong
from ..memory import give_back, hold_memory
from ..registry import Logits
from ..surrogates import exact
from ..threats import Ball, per_row, reads_freely

__all__ = ["BudgetSpent", "Meter"]

_SIMILAR = 0.75  # the share of the batch that must be left for its memory to be worth keeping
_ROUGHLY = 1.01  # far more than rounding can do to a length


class BudgetSpent(Exception):
    """Raised inside an attack, through its call of the model, when a budget has run out."""

    def __init__(self, kind: Literal["passes", "time"]) -> None:
        super().__init__(kind)
        self.kind = kind


class Meter:
    """The model as one attack sees it on one batch.

    It remembers for each sample the first point queried that was adversarial, within budget and valid, so
    that nothing an attack found is lost to its bookkeeping (or to a budget). An attack that drops samples
    from its batch says so through `focus`; calls whose batch cannot be matched are only counted.

    Args:
        model: The model.
        ball: What is allowed around each sample.
        y: Labels int64 (n,).
        max_passes, deadline: The budget.
        on_pass: Told of every forward pass.
        weight: How many samples go through the model for each one that a call holds.
        follow: Told of the rows that are announced.

    Attributes:
        forward, backward: Samples that went through the model, and gradients that came back.
        hit: Whether an adversarial point was visited, bool (n,).
        point: That point, the input itself where there is none (n, *shape).
        asked: Forward passes for each sample, int64 (n,), as far as calls can be matched.
        needed: How many until the adversarial point was visited, 0 where there is none: int64 (n,).
        matched: Whether every call could be matched, so that `asked` and `needed` are complete.
    """

    def __init__(
        self,
        model: Logits,
        ball: Ball,
        y: Tensor,
        *,
        max_passes: float | None = None,
        deadline: float | None = None,
        on_pass: Callable[[int], None] | None = None,
        weight: int = 1,
        follow: Callable[[Tensor], None] | None = None,
    ) -> None:
        hold_memory()
        self._model = model
        self._weight = weight
        self._follow = follow
        self._ball = ball
        self._y = y
        self._max_passes = max_passes
        self._deadline = deadline
        self._on_pass = on_pass
        self.forward = 0
        self.backward = 0
        self.hit = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self.point = ball.x.clone()
        self.asked = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        self.needed = self.asked.clone()
        self.matched = True
        self._rows: Tensor | None = None
        self._labels = y
        self._near: Ball | None = ball
        self._size = len(y)

    def focus(self, rows: Tensor) -> None:
        """Announce which rows of the batch the next calls hold."""
        everything = len(rows) == len(self._y) and bool((rows.diff() == 1).all())
        self._rows, self._labels = (None, self._y) if everything else (rows, self._y[rows])
        # Made when it is asked for: many short runs end before anything is found.
        self._near = self._ball if everything else None
        if self._follow is not None:
            self._follow(rows)
        if not _SIMILAR * self._size <= len(rows) <= self._size:
            # The blocks of batches of another size are of no use from here on.
            self._size = len(rows)
            give_back()

    def __call__(self, x: Tensor, /) -> Tensor:
        self._check_budget()
        logits = self._model(x)
        # The attack may have put surrogates around this call; they are for the model and not for the books.
        with exact():
            self.count(len(x) * self._weight)
            if logits.requires_grad:
                logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
            self._watch(x.detach(), logits.detach())
        return logits

    def count(self, samples: int) -> None:
        """Enter forward passes into the books."""
        self.forward += samples
        if self._on_pass is not None:
            self._on_pass(samples)

    def _check_budget(self) -> None:
        if self._max_passes is not None and self.forward + 2 * self.backward >= self._max_passes:
            raise BudgetSpent("passes")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise BudgetSpent("time")

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient) * self._weight

    def _watch(self, x: Tensor, logits: Tensor) -> None:
        rows = self._rows
        if len(x) != len(self._labels):
            self.matched = False
            return
        self.asked[slice(None) if rows is None else rows] += self._weight
        hit = is_wrong(logits, self._labels)
        new = hit & ~(self.hit if rows is None else self.hit[rows])
        if reads_freely(x):
            self._keep_few(rows, new, x)
            return
        ball = self._ball_here()
        # Elsewhere asking how many are new would stall the device; masked work on all rows does not.
        new &= ball.contains(x)
        if rows is None:
            self.point = torch.where(per_row(new, x), x, self.point)
            self.needed = torch.where(new, self.asked, self.needed)
            self.hit |= new
        else:
            self.point[rows] = torch.where(per_row(new, x), x, self.point[rows])
            self.needed[rows] = torch.where(new, self.asked[rows], self.needed[rows])
            self.hit[rows] |= new

    def _ball_here(self) -> Ball:
        """What is allowed around the samples in focus."""
        if self._near is None:
            assert self._rows is not None
            self._near = self._ball.select(self._rows)
        return self._near

    def _keep_few(self, rows: Tensor | None, new: Tensor, x: Tensor) -> None:
        if not bool(new.any()):
            return
        ball = self._ball_here()
        # A look at all rows in single precision is cheap beside the exact one, which many points never need:
        # attacks on labels ask about little else than adversarial points that are too far away.
        places = (new & (ball.length(x) <= _ROUGHLY * ball.threat.eps)).nonzero()[:, 0]
        if not len(places):
            return
        places = places[ball.select(places).contains(x[places])]
        here = places if rows is None else rows[places]
        self.point[here] = x[places]
        self.needed[here] = self.asked[here]
        self.hit[here] = True
