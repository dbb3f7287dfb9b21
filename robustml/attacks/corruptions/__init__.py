"""Common corruptions and spatial transformations; naming a file here registers what is in it.

A corruption maps float64 images (n, channels, height, width) in [0, 1] to images of the same shape; the
registry takes care of other bounds, of whole numbers and of clipping. The same random numbers serve all five
severities of a sample, so that severity changes nothing but the strength.
"""

from . import noise, blur, weather, digital, spatial  # isort: skip - the order in which they are listed

__all__ = ["blur", "digital", "noise", "spatial", "weather"]
