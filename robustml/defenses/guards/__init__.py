"""Guards, one file each; importing this registers them all."""

from . import density, filters, jpeg, smoothing, squeeze_detector, squeezing
from .monitor import Monitor
from .validation import Validate

__all__ = ["Monitor", "Validate", "density", "filters", "jpeg", "smoothing", "squeeze_detector", "squeezing"]
