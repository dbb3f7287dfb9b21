"""Leakage: what a model gives away of its classes, of attributes of its members, and of itself."""

from .attribute import AttributeInference, Side, attribute_test
from .extraction import Extracted, Extraction, Stolen, extraction_test, steal
from .inversion import ClassInversion, Inversion, inversion_test
from .inverting import Inverted, invert, scrambled

__all__ = [
    "AttributeInference",
    "ClassInversion",
    "Extracted",
    "Extraction",
    "Inversion",
    "Inverted",
    "Side",
    "Stolen",
    "attribute_test",
    "extraction_test",
    "inversion_test",
    "invert",
    "scrambled",
    "steal",
]
