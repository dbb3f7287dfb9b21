"""The attacking wing: importing it registers every attack and every corruption."""

from . import art, corruptions, evasion

__all__ = ["art", "corruptions", "evasion"]
