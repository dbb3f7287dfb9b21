"""How the strength of a corruption follows from the severity and the size of the image."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["amount", "length"]

Row = tuple[float, float, float, float, float]

# The sides of the images for which Hendrycks and Dietterich (2019) published severities.
_SMALL, _LARGE = 32, 224


def amount(x: Tensor, severity: int, small: Row, large: Row) -> float:
    """A strength without a unit of length, such as the standard deviation of noise.

    Args:
        x: Images (n, channels, height, width); their shorter side counts.
        severity: 1 to 5.
        small: The values for images of 32 pixels, all above 0.
        large: Those for 224 pixels. In between, the value is interpolated on logarithmic scales; outside,
            the nearer row holds.
    """
    share = math.log(_side(x) / _SMALL) / math.log(_LARGE / _SMALL)
    share = min(max(share, 0.0), 1.0)
    low, high = small[severity - 1], large[severity - 1]
    return low * math.exp(share * math.log(high / low))


def length(x: Tensor, severity: int, small: Row, large: Row) -> float:
    """A length in pixels, such as the radius of a blur: as `amount`, but it goes on to change outside.

    Above 224 pixels it grows with the side. Below 32 it shrinks with the square root of the side only: a
    pixel of a small image shows more of the scene, but what is much shorter than one would change nothing.
    """
    side = _side(x)
    outside = max(side / _LARGE, 1.0) * min(math.sqrt(side / _SMALL), 1.0)
    return amount(x, severity, small, large) * outside


def _side(x: Tensor) -> int:
    return min(x.shape[-2:])
