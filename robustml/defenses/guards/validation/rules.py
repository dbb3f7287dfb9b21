"""The rules that every input has to keep, as arithmetic on batches: limits, whole numbers, levels, groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ....inputs import InputSpec
from .reasons import CODES, Code

__all__ = ["Rules"]

# By how much of a step a value may miss its level: float32 rounds by up to a 64th where levels are finest.
_LEVEL_SLACK = 0.02


@dataclass(frozen=True)
class Rules:
    """What `inputs` and the training data allow.

    Attributes:
        inputs: The space of inputs.
        floor, ceiling: The bounds of the inputs, float64: (1,) or (features,) each.
        low, high: Limits learned from training data, float64: one per feature, or one per channel; empty
            where nothing was learned.
        discrete: Whether whole numbers, levels and one-hot groups are checked.
    """

    inputs: InputSpec
    floor: Tensor
    ceiling: Tensor
    low: Tensor
    high: Tensor
    discrete: bool

    @classmethod
    def of(cls, inputs: InputSpec, low: Tensor, high: Tensor, *, discrete: bool) -> Rules:
        """The rules of a space of inputs, and of limits that were learned."""
        floor, ceiling = (torch.tensor(side, dtype=torch.float64).view(-1) for side in inputs.bounds)
        size = max(len(floor), len(ceiling))
        return cls(inputs, floor.expand(size), ceiling.expand(size), low, high, discrete)

    def limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tightest limits in the precision of x: (g,) each, where g divides the number of features."""
        low, high = self._stated(x)
        if not len(self.low):
            return low, high
        learned = (self.low.to(x), self.high.to(x))
        if len(low) > 1:
            repeats = self.inputs.size // len(self.low)
            learned = (learned[0].repeat_interleave(repeats), learned[1].repeat_interleave(repeats))
        return torch.maximum(low, learned[0]), torch.minimum(high, learned[1])

    def _stated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds of the inputs: (1,) or (features,) each."""
        return self.floor.to(x), self.ceiling.to(x)

    def hard(self, x: Tensor) -> Tensor:
        """By how much a batch (n, *shape) breaks the rules: (n,), at most 0 where it does not; NaN for NaN.

        Beyond a limit it is the distance to it as a share of the feature's bounds, between the values that
        are allowed the distance to the nearest.
        """
        flat = x.flatten(1)
        low, high = self.limits(x)
        width = self._width(x)
        groups = len(low)
        if groups == flat.shape[1]:
            worst = (torch.maximum(low - flat, flat - high) / width).amax(1)
        else:
            # One limit for many features: the extremes say it all; aminmax is ten times slower.
            grouped = flat.view(len(flat), groups, flat.shape[1] // groups)
            least, most = grouped.amin(2), grouped.amax(2)
            worst = (torch.maximum(low - least, most - high) / width).amax(1)
        for _, excess in self._discrete(flat):
            worst = torch.maximum(worst, excess.amax(1))
        return worst

    def _width(self, x: Tensor) -> Tensor:
        low, high = self._stated(x)
        return high - low

    def _discrete(self, flat: Tensor) -> Iterator[tuple[Code, Tensor]]:
        """The distance of each value to the nearest that is allowed (n, k), above 0 where it is not one."""
        if not self.discrete:
            return
        if self.inputs.integer:
            chosen = flat[:, list(self.inputs.integer)]
            yield "integer", (chosen - chosen.round()).abs()
        if self.inputs.levels is not None:
            number = self.inputs.level_of(flat.view(len(flat), *self.inputs.shape)).flatten(1)
            yield "levels", (number - number.round()).abs() - _LEVEL_SLACK
        for group in self.inputs.one_hot:
            chosen = flat[:, list(group)]
            yield "one-hot", (chosen - _one_hot(chosen)).abs()

    def broken(self, x: Tensor, infinite: Tensor) -> Iterator[tuple[Code, Tensor]]:
        """Every rule in the order in which it is named: by how much each feature breaks it (n, features)."""
        flat = x.flatten(1)
        yield "not-finite", (flat.isnan() | infinite).to(flat.dtype)
        width = self._width(x)
        low, high = self._stated(x)
        yield "bounds", torch.maximum(low - flat, flat - high) / width
        if len(self.low):
            repeats = flat.shape[1] // len(self.low)
            low, high = (side.to(x).repeat_interleave(repeats) for side in (self.low, self.high))
            yield "training-range", torch.maximum(low - flat, flat - high) / width
        places = {"integer": [self.inputs.integer], "one-hot": list(self.inputs.one_hot)}
        for code, excess in self._discrete(flat):
            if code == "levels":
                yield code, excess
            else:
                spread = torch.zeros_like(flat)
                spread[:, list(places[code].pop(0))] = excess
                yield code, spread

    def reasons(
        self, x: Tensor, infinite: Tensor, spread: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The first rule that each row breaks, and the feature that breaks it the most.

        Args:
            x: A batch (n, *shape).
            infinite: Which values were infinite before they came to this precision, bool (n, features).
            spread: Gives the score (n,) of the distribution check, if there is one.

        Returns:
            Positions in `CODES`, -1 where no rule is broken, and flattened indices, -1 where it is none:
            int64 (n,) each.
        """
        codes = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
        features = codes.clone()
        for code, excess in self.broken(x, infinite):
            most, where = excess.nan_to_num(nan=-torch.inf, posinf=torch.inf).max(1)
            new = (codes < 0) & (most > 0)
            codes[new], features[new] = CODES.index(code), where[new]
        if spread is not None:
            codes[(codes < 0) & ~(spread(x) <= 0)] = CODES.index("spread")
        return codes, features

    def clipped(self, x: Tensor) -> Tensor:
        """Every value at its nearest limit: (n, *shape), differentiable; NaN stays NaN."""
        low, high = self.limits(x)
        grouped = x.reshape(len(x), len(low), self.inputs.size // len(low))
        return torch.minimum(torch.maximum(grouped, low[:, None]), high[:, None]).view_as(x)

    def repaired(self, x: Tensor) -> Tensor:
        """Clipped, and every value and group at the nearest that is allowed."""
        point = self.clipped(x)
        if not self.discrete or not self.inputs.is_discrete:
            return point
        if self.inputs.levels is not None:
            return self.inputs.at_level(self.inputs.level_of(point).round())
        flat = point.flatten(1).clone()
        if self.inputs.integer:
            index = list(self.inputs.integer)
            low, high = (side[index] for side in self._per_feature(x))
            # The nearest whole number may lie beyond a limit that is none.
            whole = flat[:, index].round()
            flat[:, index] = torch.where(
                whole > high, high.floor(), torch.where(whole < low, low.ceil(), whole)
            )
        for group in self.inputs.one_hot:
            flat[:, list(group)] = _one_hot(flat[:, list(group)])
        return flat.view_as(x)

    def _per_feature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.limits(x)
        repeats = self.inputs.size // len(low)
        return low.repeat_interleave(repeats), high.repeat_interleave(repeats)


def _one_hot(values: Tensor) -> Tensor:
    """The group of which the largest is chosen."""
    chosen = values.detach().argmax(1)
    return torch.nn.functional.one_hot(chosen, values.shape[1]).to(values.dtype)
