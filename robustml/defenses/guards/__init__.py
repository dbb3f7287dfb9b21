"""Guards, one file each; importing this registers them all."""

from . import density, filters, jpeg, smoothing, squeeze_detector, squeezing
from .validation import Validate

__all__ = ["Validate", "density", "filters", "jpeg", "smoothing", "squeeze_detector", "squeezing"]
