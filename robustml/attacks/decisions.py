"""What attacks on labels alone share: questions, starting points, random directions at little cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import is_wrong
from ..registry import Logits
from ..sampling import Streams
from ..threats import Ball, Threat, per_row
from .active import Columns
from .nearest import Nearest
from .windows import Grid

__all__ = ["WINDOWS", "Questions", "first_points", "noise_row", "noise_window", "reduced"]

_PRECISION = 0.01  # how well the distance of a starting point is determined before another one is tried
_NEARER = 0.95  # how much nearer another one has to be
_SPARE = 1 << 30  # the restart whose streams the starting points come from
WINDOWS = 32  # directions that share a row of random numbers
_GOLDEN = 0.6180339887498949


class Questions(Nearest):
    """A search that sees labels alone: it asks `queries` questions about each sample, and never more.

    Every call asks one question about every active sample, so one count holds for all of them. The first
    one goes to the known adversarial points, and to the input itself where there is none.

    Attributes:
        left: The questions that may still be asked about each active sample.
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
        start: Tensor | None,
        queries: int,
    ) -> None:
        self.left = queries
        self._asked = 0
        self._guesses = 0
        self._lost: Tensor | None = None
        super().__init__(model, x, y, threat, streams, nearest=nearest)
        self.ask(x if start is None else start)

    def _activate(self, rows: Tensor, restart: int | None = None) -> None:
        super()._activate(rows, restart)
        self._spare = self.streams.restart(_SPARE)

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self._spare = self._spare.select(rows)
        if self._lost is not None:
            self._lost = self._lost[rows]

    def ask(self, z: Tensor) -> Tensor:
        """Whether the model is wrong at a point per active sample: bool (n,).

        Samples that are lost spend the question on another random point; the answer for them is no.
        """
        self.left -= 1
        self._asked += 1
        lost = self._lost
        if lost is None:
            return is_wrong(self.look(z), self.y)
        return is_wrong(self.look(torch.where(per_row(lost, z), self.guess(), z)), self.y) & ~lost

    def rejoin(self, z: Tensor) -> Tensor:
        """Note which samples are lost: those without any adversarial point to go on from.

        Args:
            z: The points that the attack works on (n, *shape).

        Returns:
            The same, but for samples that are no longer lost, what was found.
        """
        if self._lost is not None:
            z = torch.where(per_row(self._lost, z), self.best, z)
        lost = self.reached == torch.inf
        self._lost = lost if bool(lost.any()) else None
        return z

    def leave(self, state: Columns) -> bool:
        """Let samples that need no more leave; False once none is left, or no question."""
        return self.prune(self._asked, state) and self.left > 0

    def middle(self, low: Tensor, high: Tensor) -> Tensor:
        """Where to look between a length that is too short and one that is not: (n,).

        The budget itself comes first where it lies between them: nothing else is of interest then.
        """
        until = self._until * (1 - 1e-5)
        return torch.where((low < until) & (until < high), until, (low + high) / 2)

    def guess(self) -> Tensor:
        """A random point of the input range for each active sample: (n, *shape).

        In turn noise, a constant, corners of the range, coarse blocks and stripes; all of them from the
        sample's own stream, so that other samples of the batch are no help.
        """
        kind, turn = self._guesses % 5, self._guesses // 5
        self._guesses += 1
        x, grid = self.x, Grid.of(self.x)
        shape = (grid.channels, grid.height, grid.width)
        if kind == 1:
            share = self._spare.uniform(1, 1, 1, dtype=x.dtype).expand(-1, *shape)
        elif kind == 3:
            share = _blocks(self._spare, grid, min(2 + turn % 6, grid.height), 2 + turn % 6, x)
        elif kind == 4:
            share = _blocks(self._spare, grid, 1, 2 + turn % 6, x).round()
        else:
            share = self._spare.uniform(*shape, dtype=x.dtype)
            share = share.round() if kind == 2 else share
        low, high = self.ball.lower, self.ball.upper
        if self.ball.threat.inputs is None:
            # There is no range to draw from; look further and further away.
            reach = 4 * self.budget * 2.0**turn
            low, high = x - reach, x + reach
        return torch.lerp(low, high, share.reshape(x.shape))


def _blocks(streams: Streams, grid: Grid, down: int, across: int, like: Tensor) -> Tensor:
    """Random shares that are the same within each block: (n, channels, height, width)."""
    across = min(across, grid.width)
    coarse = streams.uniform(grid.channels, down, across, dtype=like.dtype)
    rows = torch.arange(grid.height, device=like.device) * down // grid.height
    columns = torch.arange(grid.width, device=like.device) * across // grid.width
    return coarse[:, :, rows][:, :, :, columns]


def reduced(ball: Ball, z: Tensor, length: Tensor) -> Tensor:
    """The point towards z (n, *shape) where the perturbation has a length (n,); for Linf it is clipped."""
    if ball.threat.norm == "linf":
        return ball.resized(length).project(z)
    # A shorter perturbation of the same direction is in range if the longer one is; nothing to project.
    share = (length / ball.length(z).clamp_min(1e-30)).clamp_max(1)
    return ball.point(ball.delta(z) * share[:, None])


@dataclass
class _Rays(Columns):
    tip: Tensor
    """The adversarial point that is being drawn towards the input (n, *shape)."""
    low: Tensor
    """A length of the perturbation that is too short (n,)."""
    high: Tensor
    """One that is not (n,); 0 where there is no such point."""


def first_points(search: Questions, questions: int) -> bool:
    """Find adversarial points to start from: random ones, each drawn towards the input if it is the nearest.

    What is found is in `search.best`. False if the search is over.
    """
    near = torch.where(search.reached < torch.inf, search.reached, 0)
    state = _Rays(tip=search.best.clone(), low=torch.zeros_like(near), high=near)
    for _ in range(min(questions, search.left)):
        drawing = state.high - state.low > _PRECISION * state.high
        length = search.middle(state.low, state.high)
        tip = torch.where(per_row(drawing, state.tip), state.tip, search.guess())
        new = torch.minimum(search.ball.length(tip), _NEARER * search.reached)
        length = torch.where(drawing, length, new)
        wrong = search.ask(reduced(search.ball, tip, length))
        state.tip = tip
        state.low = torch.where(drawing & ~wrong, length, torch.where(drawing, state.low, 0))
        state.high = torch.where(wrong, length, torch.where(drawing, state.high, 0))
        if not search.leave(state):
            return False
    return True


@functools.cache
def _quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    middles = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    quantiles: Tensor = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).to(device, dtype)


def noise_row(search: Questions) -> Tensor:
    """Random numbers for the directions of the next 32 questions, one long row per active sample.

    Normal numbers are dear beside a pass through a small model. These are the normal quantiles of random
    bytes, and the directions are windows of the row, which overlap: shifted against each other they are as
    good as uncorrelated, and each on its own is normal, so an average over them is not biased.
    """
    features = search.x[0].numel()
    size = features + max(3 * features, 8 * WINDOWS)
    places = search.streams.bits(-(-size // 8)).view(torch.uint8)
    table = _quantiles(search.x.dtype, search.x.device)
    return table.index_select(0, places.int().flatten()).view(places.shape)


def noise_window(row: Tensor, number: int, features: int) -> Tensor:
    """Direction `number` of a row, counted from 0: (n, features), with a variance of 1 in each feature."""
    # Multiples of the golden ratio leave gaps between each other that are all about as wide.
    offset = int(number * _GOLDEN % 1 * (row.shape[1] - features))
    return row[:, offset : offset + features]
