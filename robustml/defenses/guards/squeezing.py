"""Squeezing the values of features: fewer levels, fewer decimals.

Rounding has no derivative that an attack could follow: it is 0 almost everywhere. The surrogate of both
guards is the identity. That is what rounding does on average over the width of a step, and such a step is
what an attack has to cross (straight-through; BPDA of Athalye, Carlini and Wagner 2018, section 4.1).
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ...checks import whole
from ...errors import InputError
from ...guards import Guard, guard
from ...inputs import InputSpec

__all__ = ["BitDepth", "Decimals", "needs_images"]

_MOST_BITS = 16
_MOST_PLACES = 6


def needs_images(name: str, inputs: InputSpec) -> None:
    """Refuse inputs that have no height and width.

    Raises:
        InputError: for inputs of another shape than (channels, height, width).
    """
    if len(inputs.shape) != 3:
        raise InputError(
            f"guard {name} works on images (channels, height, width); inputs.shape is {inputs.shape}"
        )


@guard("bit-depth", reference="Xu, Evans and Qi 2018, section 3.1")
class BitDepth(Guard):
    """Round every feature to 2**bits levels, evenly spaced over its bounds.

    Features that hold whole numbers are rounded on to one, and members of one-hot groups stay what they are.

    Args:
        bits: How many bits are left of each feature.

    Raises:
        InputError: for an unacceptable number of bits.
    """

    def __init__(self, bits: Annotated[int, Ge(1), Le(_MOST_BITS)]) -> None:
        super().__init__()
        self.bits = whole("bits", bits, 1, _MOST_BITS)

    def forward(self, x: Tensor) -> Tensor:
        assert self.inputs is not None
        low, high = (self.inputs.like(side, x) for side in self.inputs.bounds)
        last = 2**self.bits - 1
        step = ((x - low) * (last / (high - low))).round().clamp(0, last)
        # In this order k / 255 comes out as the nearest float, as it does where images are loaded.
        return _kept(self.inputs, x, torch.minimum(low + step * (high - low) / last, high))


@guard("decimals", reference="Xu, Evans and Qi 2018, section 3.1, for decimal numbers")
class Decimals(Guard):
    """Round every feature to a number of decimal places, in input units.

    What would be rounded out of its bounds becomes the bound. Features that hold whole numbers stay whole,
    and members of one-hot groups stay what they are.

    Args:
        places: How many decimals are left; -1 rounds to tens, -2 to hundreds.

    Raises:
        InputError: for an unacceptable number of places.
    """

    def __init__(self, places: Annotated[int, Ge(-_MOST_PLACES), Le(_MOST_PLACES)]) -> None:
        super().__init__()
        self.places = whole("places", places, -_MOST_PLACES, _MOST_PLACES)

    def attach(self, inputs: InputSpec) -> None:
        super().attach(inputs)
        low, high = (torch.tensor(side, dtype=torch.float64) for side in inputs.bounds)
        if float((high - low).max()) < 10.0**-self.places:
            raise InputError(
                f"guard decimals: places={self.places} rounds to steps of {10.0**-self.places:g}, "
                f"which is more than the range of every feature"
            )

    def forward(self, x: Tensor) -> Tensor:
        assert self.inputs is not None
        low, high = (self.inputs.like(side, x) for side in self.inputs.bounds)
        rounded = torch.round(x, decimals=self.places)
        return _kept(self.inputs, x, torch.minimum(torch.maximum(rounded, low), high))


def _kept(inputs: InputSpec, x: Tensor, squeezed: Tensor) -> Tensor:
    """Squeezed inputs in which whole numbers are whole and one-hot groups are as they came."""
    groups = [index for group in inputs.one_hot for index in group]
    if not (groups or inputs.integer):
        return squeezed
    flat = squeezed.flatten(1).clone()
    numbers = list(inputs.integer)
    flat[:, numbers] = flat[:, numbers].round()
    flat[:, groups] = x.flatten(1)[:, groups]
    return flat.view_as(x)
