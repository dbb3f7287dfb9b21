"""Squeezing images in space: median filter and non-local means, batched and differentiable.

Both pass gradients as they are, so that each is its own surrogate.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...checks import whole
from ...errors import InputError, brief
from ...guards import Guard, guard
from ...inputs import InputSpec
from .squeezing import needs_images

__all__ = ["MedianSmoothing", "NonLocalMeans"]

_MOST_PIXELS = 31
_NOTHING = -80.0  # the logarithm of a weight that changes no sum


def _mirrored(x: Tensor, before: int, after: int) -> Tensor:
    """Images continued beyond their sides by their mirror image (d c b a | a b c d | d c b a)."""
    for axis in (-2, -1):
        side = x.shape[axis]
        place = torch.arange(-before, side + after, device=x.device) % (2 * side)
        x = x.index_select(axis, torch.minimum(place, 2 * side - 1 - place))
    return x


@guard("median", reference="Xu, Evans and Qi 2018, section 3.2")
class MedianSmoothing(Guard):
    """Replace every pixel by the median of the window around it, each channel on its own.

    A window of 2 by 2 pixels holds a pixel, those to the left and above, and the one between these; of its
    four values it takes the third smallest. Beyond its sides an image goes on as its mirror image. All of
    this is as in the paper's code, which is `scipy.ndimage.median_filter(mode="reflect")`.

    Args:
        size: Width and height of the window.

    Raises:
        InputError: for another size.
    """

    differentiable = True

    def __init__(self, size: Literal[2, 3] = 2) -> None:
        super().__init__()
        if not isinstance(size, int) or size not in {2, 3}:
            raise InputError(f"size={brief(size)} is not 2 or 3")
        self.size = size

    def attach(self, inputs: InputSpec) -> None:
        needs_images(self.name, inputs)
        super().attach(inputs)

    def forward(self, x: Tensor) -> Tensor:
        # Minima and maxima instead of sorting: many times as fast, and equal values share the gradient.
        padded = _mirrored(x, 1, self.size - 2)
        rows = [padded[..., i : i + x.shape[-2], :] for i in range(self.size)]
        if self.size == 2:
            lows, highs = _columns(torch.minimum(*rows), 2), _columns(torch.maximum(*rows), 2)
            # The second largest of four is the lesser of the pairs' maxima or the greater of their minima.
            return torch.maximum(torch.minimum(*highs), torch.maximum(*lows))
        low, middle, high = (_columns(part, 3) for part in _sorted(*rows))
        return _median(reduce(torch.maximum, low), _median(*middle), reduce(torch.minimum, high))


def _columns(z: Tensor, count: int) -> list[Tensor]:
    """Neighboring columns side by side."""
    width = z.shape[-1] - count + 1
    return [z[..., j : j + width] for j in range(count)]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    rest = torch.minimum(high, c)
    return torch.minimum(low, rest), torch.maximum(low, rest), torch.maximum(high, c)


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


@guard("non-local-means", reference="Buades, Coll and Morel 2005; Xu, Evans and Qi 2018, section 3.2")
class NonLocalMeans(Guard):
    """Replace every pixel by a mean of those around it, weighted by how alike their surroundings are.

    The weight of a pixel is exp(-d / strength**2), d being the mean squared difference of the patches around
    the two pixels over all channels, which are taken together as they are; the paper's filter treats the
    brightness and the color of photographs apart. Beyond its sides an image goes on as its mirror image. For
    gradients the weights are computed twice, so that memory does not grow with the square of `search`.

    Args:
        search: Width and height of the window in which pixels are compared, odd.
        patch: Width and height of the patches, odd.
        strength: The larger, the smoother: the h of the paper, in 255ths of a feature's range.

    Raises:
        InputError: for unacceptable values.
    """

    differentiable = True

    def __init__(
        self,
        search: Annotated[int, Ge(3), Le(_MOST_PIXELS)] = 13,
        patch: Annotated[int, Ge(1), Le(_MOST_PIXELS)] = 3,
        strength: Annotated[float, Gt(0), Le(255)] = 2.0,
    ) -> None:
        super().__init__()
        self.search = whole("search", search, 3, _MOST_PIXELS)
        self.patch = whole("patch", patch, 1, _MOST_PIXELS)
        for name in ("search", "patch"):
            if getattr(self, name) % 2 == 0:
                raise InputError(f"{name}={getattr(self, name)} is even; the window needs a middle")
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 255:
            raise InputError(f"strength={brief(strength)} is not a number above 0 and up to 255")
        self.strength = float(strength)

    def attach(self, inputs: InputSpec) -> None:
        needs_images(self.name, inputs)
        super().attach(inputs)

    def forward(self, x: Tensor) -> Tensor:
        assert self.inputs is not None
        low, high = (self.inputs.like(side, x) for side in self.inputs.bounds)
        reach, rim = self.search // 2, self.patch // 2
        wide = _mirrored((x - low) / (high - low), reach + rim, reach + rim)
        total, weights = torch.zeros_like(x), x.new_zeros(len(x), 1, *x.shape[2:])
        for row in range(self.search):
            part: tuple[Tensor, Tensor]
            if torch.is_grad_enabled() and wide.requires_grad:
                part = checkpoint(self._row, wide, row, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._row(wide, row)
            total, weights = total + part[0], weights + part[1]
        return low + total / weights * (high - low)

    def _row(self, wide: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """Sums of weighted pixels (n, channels, h, w) and of weights (n, 1, h, w) over one row of offsets."""
        reach, rim = self.search // 2, self.patch // 2
        height, width = (side - 2 * reach for side in wide.shape[2:])
        center = wide[..., reach : reach + height, reach : reach + width]
        total, weights, floor = wide.new_zeros(()), wide.new_zeros(()), wide.new_tensor(_NOTHING)
        for column in range(self.search):
            other = wide[..., row : row + height, column : column + width]
            apart = (center - other).square().mean(1, keepdim=True)
            apart = _windows(apart, self.patch) * -math.pow(255 / self.strength, 2) / self.patch**2
            # Numbers too small to be normal would take ten times as long.
            weight = torch.maximum(apart, floor).exp()
            inner = other[..., rim : height - rim, rim : width - rim]
            total, weights = total + weight * inner, weights + weight
        return total, weights


def _windows(z: Tensor, size: int) -> Tensor:
    """Sums over windows, which for small ones are faster than torch's pooling."""
    height, width = (side - size + 1 for side in z.shape[2:])
    rows = reduce(torch.add, [z[..., i : i + height, :] for i in range(size)])
    return reduce(torch.add, [rows[..., j : j + width] for j in range(size)])
