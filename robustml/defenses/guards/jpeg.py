"""Squeezing images by JPEG: the real codec for what the model gets, a differentiable one for attacks."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional

from ...checks import whole
from ...guards import Guard, guard
from ...inputs import InputSpec
from ...pictures import stored_as_jpeg
from ...surrogates import graft
from .squeezing import needs_images

__all__ = ["JPEG", "table"]

# ITU-T T.81, annex K.1, rows from low to high vertical frequency: brightness, then color.
_TABLES = (
    (
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ),
    (
        *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
        *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
        *(99,) * 32,
    ),
)
# ITU-R BT.601 as in JFIF: brightness and two differences of color, from red, green and blue.
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@guard("jpeg", reference="Das et al. 2018; surrogate after Shin and Song 2017")
class JPEG(Guard):
    """Store every image as JPEG and read it back, after rounding to 8 bits.

    Three channels are colors, whose differences are stored at half the width and height (4:2:0); any other
    number of channels is as many grey images. The codec runs on the CPU, image by image.

    The surrogate has every step of the codec: rounding, colors, their half resolution, blocks of 8 by 8
    with the same quantization, interpolation, clipping. What rounds or clips passes gradients straight
    through. It leaves out how libjpeg rounds inside of its integer arithmetic, so that a value may differ
    where a coefficient lies in the middle between two steps.

    Args:
        quality: From 1 (smallest file) to 100, as libjpeg counts it.

    Raises:
        InputError: for an unacceptable quality.
    """

    def __init__(self, quality: Annotated[int, Ge(1), Le(100)] = 75) -> None:
        super().__init__()
        self.quality = whole("quality", quality, 1, 100)

    def attach(self, inputs: InputSpec) -> None:
        needs_images(self.name, inputs)
        super().attach(inputs)

    def forward(self, x: Tensor) -> Tensor:
        levels = self._levels(x.detach()).round().clamp(0, 255)
        # What is no number cannot be stored, and must not come out as one.
        pixels = levels.nan_to_num(0).to(torch.uint8).cpu().numpy()
        stored = stored_as_jpeg(pixels, self.quality)
        return torch.where(x.isnan(), x, self._values(torch.from_numpy(stored).to(x)))

    def surrogate(self, x: Tensor) -> Tensor:
        levels = _through(_clipped, self._levels(x))
        color = x.shape[1] == 3
        planes = _stored_colors(levels, self.quality) if color else _blocks(levels, table(self.quality, 0))
        return self._values(_through(_clipped, planes))

    def _levels(self, x: Tensor) -> Tensor:
        """Inputs as values from 0 to 255."""
        assert self.inputs is not None
        low, high = (self.inputs.like(side, x) for side in self.inputs.bounds)
        return (x - low) * (255 / (high - low))

    def _values(self, levels: Tensor) -> Tensor:
        """Values from 0 to 255 as inputs."""
        assert self.inputs is not None
        low, high = (self.inputs.like(side, levels) for side in self.inputs.bounds)
        return torch.minimum(low + levels * (high - low) / 255, high)


def table(quality: int, kind: int) -> Tensor:
    """The steps that libjpeg rounds coefficients to (8, 8), of brightness (0) or color (1)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor(_TABLES[kind], dtype=torch.int64).view(8, 8)
    return ((base * scale + 50) // 100).clamp(1, 255)


def _clipped(z: Tensor) -> Tensor:
    return z.round().clamp(0, 255)


def _rounded(z: Tensor) -> Tensor:
    """Round halves away from 0, as libjpeg does: coefficients often lie there."""
    return z.sign() * (z.abs() + 0.5).floor()


def _quantized(z: Tensor) -> Tensor:
    """Whole coefficients, with the mean of the derivatives of z and of r + 4 (z - r)**3.

    The cubic of Shin and Song, scaled so that its pieces meet halfway between whole numbers r, says which
    coefficients are about to change. Alone it gives up those that are 0. Both are 1 on average.
    """
    whole_numbers = _rounded(z.detach())
    return graft(whole_numbers, (z + whole_numbers + 4 * (z - whole_numbers) ** 3) / 2)


def _through(step: Any, z: Tensor) -> Tensor:
    """A step whose derivative is taken for that of the identity."""
    return graft(step(z.detach()), z)


def _stored_colors(levels: Tensor, quality: int) -> Tensor:
    """What the codec makes of colors (n, 3, h, w) from 0 to 255, before the last clipping."""
    height, width = levels.shape[2:]
    planes = _through(_clipped, _mixed(_YCC, levels) + _offset(levels))
    small = -(-height // 2), -(-width // 2)
    # The right edge goes on in full resolution, the lower one in half: that is how libjpeg fills its blocks.
    chroma = functional.pad(planes[:, 1:], (0, -width % 16, 0, height % 2), mode="replicate")
    chroma = functional.avg_pool2d(chroma, 2)
    # Halves are rounded down in one column and up in the next.
    down = 0.25 * (1 - torch.arange(chroma.shape[3], device=chroma.device) % 2)
    chroma = _through(lambda z: (z + 0.5 - down).floor(), chroma)
    chroma = _through(_clipped, _blocks(chroma, table(quality, 1)))[..., : small[0], : small[1]]
    # The triangle filter of libjpeg is bilinear interpolation; it leaves out the narrowest images.
    smooth: dict[str, Any] = (
        {"mode": "bilinear", "align_corners": False} if small[1] > 2 else {"mode": "nearest"}
    )
    chroma = functional.interpolate(chroma, scale_factor=2, **smooth)[..., :height, :width]
    luma = _through(_clipped, _blocks(planes[:, :1], table(quality, 0)))
    both = torch.cat([luma, _through(_clipped, chroma)], dim=1)
    return _mixed(_RGB, both - _offset(both))


def _mixed(matrix: tuple[tuple[float, ...], ...], planes: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", planes.new_tensor(matrix), planes)


def _offset(planes: Tensor) -> Tensor:
    """Differences of color are stored around 128."""
    return planes.new_tensor((0.0, 128.0, 128.0)).view(3, 1, 1)


def _blocks(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes (n, c, h, w) after their blocks of 8 by 8 have been transformed, rounded to steps, and back."""
    n, c, height, width = planes.shape
    whole_blocks = functional.pad(planes - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = (side // 8 for side in whole_blocks.shape[2:])
    cosines, steps = _cosines().to(planes), steps.to(planes)
    tiles = whole_blocks.view(n, c, rows, 8, columns, 8).transpose(3, 4)
    coefficients = cosines @ tiles @ cosines.T / steps
    tiles = cosines.T @ (_quantized(coefficients) * steps) @ cosines
    return tiles.transpose(3, 4).reshape(n, c, rows * 8, columns * 8)[..., :height, :width] + 128


def _cosines() -> Tensor:
    """The orthonormal cosine transform of eight values (8, 8)."""
    frequency, place = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    rows = torch.cos(math.pi / 8 * (place + 0.5) * frequency) / 2
    rows[0] /= math.sqrt(2)
    return rows
