"""What processing does to a picture: contrast, warping, and the loss of detail when it is stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...pictures import stored_as_jpeg
from ...registry import corruption
from ...sampling import Streams
from .filters import sample, smooth, spread
from .sizes import amount, length

__all__ = ["contrast", "elastic", "jpeg", "pixelate", "saturate"]

_REFERENCE = "Hendrycks and Dietterich 2019, section 3.1"


@corruption("contrast", group="digital", reference=_REFERENCE)
def contrast(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Every value moves towards the mean of its channel."""
    kept = amount(x, severity, (0.75, 0.50, 0.40, 0.30, 0.15), (0.40, 0.30, 0.20, 0.10, 0.05))
    # One image at a time: a sum over many chooses its order by their number.
    mean = torch.stack([image.mean((1, 2), keepdim=True) for image in x])
    return mean + kept * (x - mean)


@corruption("elastic", group="digital", reference=_REFERENCE)
def elastic(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """The image is stretched and squeezed in small regions."""
    reach = length(x, severity, (0.3, 0.45, 0.6, 0.8, 1.0), (2.0, 3.0, 4.0, 5.0, 6.5))
    width = length(x, severity, *[(2.0,) * 5, (9.0,) * 5])
    field = smooth(streams.normal(2, *x.shape[2:], dtype=x.dtype), width)
    # White noise of unit variance keeps 1 / (2 width sqrt(pi)) of its deviation under this filter.
    shift = field * (2 * width * math.sqrt(math.pi) * reach)
    rows, columns = spread(x)
    return sample(x, rows + shift[:, 0], columns + shift[:, 1], outside="reflection")


@corruption("pixelate", group="digital", reference=_REFERENCE)
def pixelate(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """The image is stored with fewer pixels, and enlarged without smoothing."""
    block = amount(x, severity, (1.3, 1.45, 1.6, 1.8, 2.0), (5 / 3, 2.0, 2.5, 10 / 3, 4.0))
    block *= max(min(x.shape[-2:]) / 224, 1.0)
    # Between powers of two the two neighbors are mixed. Boxes of a broken width would alias, and a mild
    # severity could then change more than a strong one.
    exponent = math.log2(block)
    size, share = 2 ** int(exponent), exponent % 1
    coarse = _blocks(x, size)
    return coarse + share * (_blocks(x, 2 * size) - coarse)


def _blocks(x: Tensor, size: int) -> Tensor:
    """Replace each square of `size` pixels by its mean; at the far edges they may be cut off."""
    if size == 1:
        return x
    for axis in (2, 3):
        side = x.shape[axis]
        pixels = torch.arange(side, device=x.device)
        corner = pixels // size * size
        total = torch.zeros_like(x)
        for step in range(size):
            inside = (corner + step < side).to(x.dtype)
            shape = [side if place == axis else 1 for place in range(x.ndim)]
            total += inside.view(shape) * x.index_select(axis, (corner + step).clamp_max(side - 1))
        count = (side - corner).clamp_max(size).to(x.dtype)
        x = total / count.view(shape)
    return x


@corruption("jpeg", group="digital", reference=_REFERENCE)
def jpeg(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """JPEG compression; three channels are taken as colors, any other number as so many grey images."""
    quality = round(amount(x, severity, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)))
    levels = (x * 255).round().to(torch.uint8).cpu().numpy()
    stored = stored_as_jpeg(levels, quality)
    return torch.from_numpy(stored).to(x.device, x.dtype) / 255


@corruption("saturate", group="digital", reference="Hendrycks and Dietterich 2019, appendix B", channels={3})
def saturate(x: Tensor, severity: int, streams: Streams) -> Tensor:
    """Colors become stronger: each value moves away from the grey of its pixel."""
    factor = amount(x, severity, (1.3, 1.5, 1.75, 2.0, 2.5), (1.5, 2.0, 3.0, 5.0, 10.0))
    grey = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]  # the weights of ITU-R BT.601
    return grey + factor * (x - grey)
