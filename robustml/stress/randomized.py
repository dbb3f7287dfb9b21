"""Models that draw random numbers when they answer: reproducible, averaged for attacks, judged by a vote.

The random numbers of torch's global generator are taken over for each call and given back after it, so that
the same unit of a run meets the same numbers whether it is resumed, done in a shard or replayed, and the
state of the process stays as it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ..classifier import Model
from ..losses import is_wrong, margin
from ..registry import Access
from ..sampling import seeded
from ..schema import Frozen
from ..surrogates import exact
from .aiming import towards
from .rejecting import accepted

__all__ = ["CLEAN", "Averaged", "Randomness", "Seeded", "Votes", "take_vote"]

# The shares of draws that an attack has to fool before it may rest: of those of its step, and then of as many
# as vote outside. It tries often, so at the half that counts most of its successes would be luck.
_CONVINCING, _CONFIRMED = 0.75, 0.7


CLEAN = "clean"
"""The purpose of draws that no attacker has caused."""


class Randomness(Frozen):
    """How a model that answers at random is treated."""

    draws: Annotated[int, Ge(2), Le(10_000)] = 20
    """Fresh draws that decide whether a point is classified correctly."""
    eot: Annotated[int, Ge(1), Le(10_000)] = 10
    """Draws that each answer and each gradient is averaged over while an attack works."""
    shared: bool
    """Rows of one call share random numbers, so that copies of an input in one call are not fresh draws."""
    foreign: bool
    """Two calls with the same random numbers of torch differ: some come from elsewhere."""


class Seeded(Model):
    """A model whose random numbers are a function of the run's seed, the unit of work and the call in it."""

    def __init__(self, model: Model, seed: int) -> None:
        self.inner = model
        self.inputs, self.classes, self.outputs = model.inputs, model.classes, model.outputs
        self.rejects = model.rejects
        self._seed = seed
        self._unit = ""
        self._calls = 0

    def begin(self, unit: str) -> None:
        """Start on a unit of work: its calls are counted from here."""
        self._unit, self._calls = unit, 0

    def __call__(self, x: Tensor, /) -> Tensor:
        self._calls += 1
        return self.draw(x, "call", self._unit, self._calls)

    def draw(self, x: Tensor, *key: object) -> Tensor:
        """Answer with the random numbers of a key."""
        with seeded(x.device, self._seed, *key):
            return self.inner(x)

    @property
    def access(self) -> Access:
        return self.inner.access

    def ready(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return self.inner.ready(device)

    def fingerprint(self) -> str | None:
        return self.inner.fingerprint()

    @property
    def size(self) -> int | None:
        return self.inner.size


class Averaged:
    """What an attack meets in place of a randomized model: expectation over its draws (Athalye 2018).

    The answer is the mean of the logits over fresh draws, and so is its gradient. Averaging
    log-probabilities would change every logit of a sample by the same number, which no loss sees; averaging
    probabilities would let saturated draws hide the gradient of the others.

    The logit of the label is then raised or lowered, without a gradient, so that the margin is the one that
    three quarters of the draws reach, and where that fools the model the lesser of it and of what fresh draws
    reach. Otherwise the search would rest at the first lucky draws, and the vote outside would count its
    sample as robust.

    Args:
        model: The randomized model.
        y: Labels int64 (n,).
        settings: How many draws.
        targets: With goals, which classes the attack aims at, bool (classes,); `y` is then 0 everywhere.
    """

    def __init__(
        self, model: Seeded, y: Tensor, settings: Randomness, *, targets: Tensor | None = None
    ) -> None:
        self._model = model
        self._y = self._focused = y
        self._settings = settings
        self._targets = targets
        self.on_pass: Callable[[int], None] = lambda samples: None
        """Told of the passes beyond `count` per sample."""

    @property
    def count(self) -> int:
        """How many draws each answer takes."""
        return self._settings.eot

    def focus(self, rows: Tensor) -> None:
        """Announce which rows of the batch the next calls hold."""
        self._focused = self._y[rows]

    def __call__(self, x: Tensor, /) -> Tensor:
        drawn = self._draw(x, self.count)
        with exact():
            y = self._focused
            if len(y) != len(x):
                # A batch that cannot be matched has no labels; its rows are not believed anyway.
                return drawn.mean(0)[:, : self._width]
            drawn = self._worth(drawn, y)
            mean = drawn.mean(0)
            reached = _reached(drawn.detach(), y, _CONVINCING)
            fooled = (reached > 0).nonzero()[:, 0]
            if len(fooled):
                self.on_pass(len(fooled) * self._settings.draws)
                with torch.no_grad():
                    again = self._draw(x.detach()[fooled], self._settings.draws)
                second = _reached(self._worth(again, y[fooled]), y[fooled], _CONFIRMED)
                reached = reached.index_copy(0, fooled, torch.minimum(reached[fooled], second))
            shift = margin(mean.detach(), y) - reached
            return mean + torch.nn.functional.one_hot(y, mean.shape[1]) * shift[:, None]

    @property
    def _width(self) -> int:
        return self._model.classes if self._targets is None else 2

    def _worth(self, drawn: Tensor, y: Tensor) -> Tensor:
        """Draws (count, n, ...) of a model that rejects, in which only an accepted mistake is wrong."""
        if self._targets is not None or not self._model.rejects:
            return drawn
        return accepted(drawn.flatten(0, 1), y.repeat(len(drawn))).view(*drawn.shape[:2], self._width)

    def _draw(self, x: Tensor, count: int) -> Tensor:
        """Fresh answers (count, n, classes)."""
        if self._settings.shared:
            drawn = torch.stack([self._model(x) for _ in range(count)])
        else:
            drawn = self._model(_copies(x, count)).view(count, len(x), -1)
        if self._targets is None:
            return drawn
        with exact():
            return towards(drawn.flatten(0, 1), self._targets).view(count, len(x), 2)


def _reached(drawn: Tensor, y: Tensor, share: float) -> Tensor:
    """The margin over the label that a share of the draws (count, n, classes) reaches: (n,)."""
    count, n, _ = drawn.shape
    leads = margin(drawn.flatten(0, 1), y.repeat(count)).view(count, n)
    return leads.sort(0, descending=True).values[math.ceil(share * count) - 1]


def _copies(x: Tensor, count: int) -> Tensor:
    return x.repeat(count, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Votes:
    """What the draws of a randomized model decide.

    Attributes:
        logits: Shares of the draws (n, classes; one more for a model that rejects), such that the largest is
            the label's only if it wins in more than half of the draws; all wrong answers together count for
            the most frequent one of them.
        flips: The share of draws that differ from the most frequent answer (n,).
    """

    logits: Tensor
    flips: Tensor


def take_vote(
    model: Seeded,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    settings: Randomness,
    purpose: str,
    targets: Tensor | None = None,
) -> Votes:
    """Ask a randomized model often enough to decide on each input.

    The draws of a sample are those of its id and the purpose alone: no batch, order or attack changes them,
    so that two attacks, two budgets and a replay are decided alike. No attack sees them.

    Args:
        model: The randomized model.
        x: Inputs (n, *shape).
        y: Labels int64 (n,).
        ids: Sample ids int64 (n,).
        settings: How many draws.
        purpose: What they are for.
        targets: With goals, the classes that count as wrong for each sample, bool (n, classes).
    """
    logits, flips = x.new_zeros(len(x), model.classes + model.rejects), x.new_zeros(len(x))
    # Without an attacker a rejection is a mistake like others.
    safe = model.classes if model.rejects and purpose != CLEAN else None
    for row, sample in enumerate(ids.tolist()):
        with torch.no_grad():
            drawn = _fresh(model, x[row : row + 1], settings, purpose, sample)
        wanted = None if targets is None else targets[row]
        logits[row], flips[row] = _decide(drawn, y[row], wanted, safe)
    return Votes(logits, flips)


def _fresh(model: Seeded, x: Tensor, settings: Randomness, *key: object) -> Tensor:
    if settings.shared:
        return torch.cat([model.draw(x, "vote", *key, number) for number in range(settings.draws)])
    return model.draw(_copies(x, settings.draws), "vote", *key)


def _decide(drawn: Tensor, y: Tensor, targets: Tensor | None, safe: int | None) -> tuple[Tensor, Tensor]:
    """Shares (classes,) and flip rate of one sample from its draws (draws, classes)."""
    draws, classes = drawn.shape
    answers = drawn.argmax(1)
    flips = 1 - answers.bincount(minlength=classes).max() / draws
    unusable = drawn.isnan().any(1)
    wrong = is_wrong(drawn, y.expand(draws)) if targets is None else targets[answers] | unusable
    if safe is not None and targets is None:
        wrong &= (answers != safe) | unusable
    # Half is enough to be broken: half a vote decides ties.
    counts = answers[wrong & (answers != y)].bincount(minlength=classes).to(drawn.dtype)
    counts[y] = -1
    against = int(wrong.sum())
    counts[counts.argmax()] = against + 0.5
    counts[y] = draws - against
    return counts / draws, flips
