"""Windows that a random search moves over an input: their sizes, their places and their patterns."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling import Streams

__all__ = ["Grid", "Span", "bumps", "spans"]

# The window's share is halved after these moves of 10,000 (Andriushchenko et al. 2020, section 5).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_PAPER_QUERIES = 10_000
# Random numbers are drawn, and what lies in the windows is looked up, for this many moves at a time: enough
# to make their cost vanish, but for fewer moves where windows are large, which would take too much memory.
_AHEAD = 64
_AREA = 1024


@dataclass(frozen=True)
class Grid:
    """How an input is laid out: pictures are channels of rows and columns, a vector is one row."""

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, x: Tensor) -> Grid:
        """The layout of a batch (n, *shape); axes before the last two count as channels."""
        *lead, height, width = (1, *x.shape[1:])
        return cls(math.prod(lead), height, width)

    def window(self, share: float, *, smallest: int, odd: bool) -> tuple[int, int]:
        """Height and width of a window that covers a share of each channel: a square where one fits."""
        area = share * self.height * self.width
        side = max(round(math.sqrt(area)), smallest)
        if odd:
            side += 1 - side % 2
        height, width = min(side, self.height), min(side, self.width)
        if height < side:
            width = min(max(round(area / height), width), self.width)
        elif width < side:
            height = min(max(round(area / width), height), self.height)
        return height, width

    def corner(self, height: int, width: int, device: torch.device) -> Tensor:
        """Flat indices, in every channel, of the window in the top left corner."""
        channels = torch.arange(self.channels, device=device) * (self.height * self.width)
        rows = torch.arange(height, device=device) * self.width
        columns = torch.arange(width, device=device)
        return (channels[:, None, None] + rows[:, None] + columns).flatten()


@dataclass(frozen=True)
class Span:
    """A stretch of moves whose windows have the same size."""

    grid: Grid
    height: int
    width: int
    moves: int
    offsets: Tensor

    def draw(self, streams: Streams, *, windows: int, coins: int) -> Tensor:
        """Row and column of each window, then coins: int64 (n, moves, 2 * windows + coins)."""
        places = [self.grid.height - self.height + 1, self.grid.width - self.width + 1] * windows
        sides = torch.tensor(places + [2] * coins, device=self.offsets.device)
        return streams.integers(sides, self.moves, len(sides))

    def corner(self, row: Tensor, column: Tensor) -> Tensor:
        """The flat index, in the first channel, of windows whose row and column are given."""
        return row * self.grid.width + column

    def at(self, corner: Tensor) -> Tensor:
        """Flat indices of the windows at corners of any shape: (*shape, channels * height * width)."""
        return corner[..., None] + self.offsets

    def ahead(self, values: Tensor, corners: Tensor) -> Tensor:
        """What lies in the windows of all moves: (n, moves, ..., channels * height * width).

        It is laid out move by move, since each of them reads its own part.

        Args:
            values: Of the features (n, features).
            corners: Of the windows (n, moves, ...).
        """
        places = self.at(corners)
        found = values.gather(1, places.flatten(1)).view_as(places)
        return found.transpose(0, 1).contiguous().transpose(0, 1)


def spans(
    grid: Grid, queries: int, p: float, device: torch.device, *, smallest: int, odd: bool
) -> Iterator[Span]:
    """The moves of a search in order; the first query is spent on its start.

    Args:
        grid: The layout of the inputs.
        queries: Evaluations of the model; the schedule of the paper is rescaled to them.
        p: The share of a channel that the first windows cover.
        device: Where the indices live.
        smallest: The least side of a window.
        odd: Whether sides are odd numbers.
    """
    move = 0
    while move < queries - 1:
        halvings = _halvings(move, queries)
        height, width = grid.window(p / 2**halvings, smallest=smallest, odd=odd)
        corner = grid.corner(height, width, device)
        ahead = min(max(_AREA // len(corner), 1), _AHEAD)
        end = move + 1
        while end < min(queries - 1, move + ahead) and _halvings(end, queries) == halvings:
            end += 1
        yield Span(grid, height, width, end - move, corner)
        move = end


def _halvings(move: int, queries: int) -> int:
    return bisect.bisect_left(_HALVINGS, move * _PAPER_QUERIES // queries)


def bumps(height: int, width: int, like: Tensor, order: int = 2) -> Tensor:
    """A bump beside its negative, one above the other and side by side: (2, height * width), length 1.

    Equation 2 of Andriushchenko et al. 2020, and for L1 the steeper one of Croce & Hein 2021; where one row
    or column leaves no room for two bumps, both patterns are the one that fits.

    Args:
        height, width: The window.
        like: Gives the dtype and the device.
        order: Of the norm in which the length is 1: 1 or 2.
    """
    power = 2 if order == 2 else 4
    stacked = _pair(height, width, power) if height > 1 else _pair(width, height, power).T
    abreast = _pair(width, height, power).T if width > 1 else stacked
    patterns = torch.stack([stacked, abreast]).flatten(1)
    length: Tensor = patterns.norm(p=order, dim=1, keepdim=True)
    return (patterns / length).to(like)


def _pair(height: int, width: int, power: int) -> Tensor:
    upper = height // 2
    return torch.cat([_bump(upper, width, power), -_bump(height - upper, width, power)])


def _bump(height: int, width: int, power: int) -> Tensor:
    """Square rings around the middle; reaching ring k from outside adds 1 / k**power."""
    rings = max(height, width) // 2 + 1
    steps = 1 / torch.arange(1, rings + 1, dtype=torch.float64).pow(power)
    heights = steps.flip(0).cumsum(0).flip(0)
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    return heights[torch.maximum(rows[:, None], columns)]
