"""Guards, one file each; naming a file here registers its guard."""

from .density import DensityDetector
from .filters import MedianSmoothing, NonLocalMeans
from .jpeg import JPEG
from .monitor import Monitor
from .queries import QueryDetector
from .smoothing import Smoothing, certify, predict
from .squeeze_detector import SqueezeDetector
from .squeezing import BitDepth, Decimals
from .validation import Validate

__all__ = [
    "JPEG",
    "BitDepth",
    "Decimals",
    "DensityDetector",
    "MedianSmoothing",
    "Monitor",
    "NonLocalMeans",
    "QueryDetector",
    "Smoothing",
    "SqueezeDetector",
    "Validate",
    "certify",
    "predict",
]
