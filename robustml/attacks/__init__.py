"""The attacking wing: importing it registers every attack."""

from . import art, evasion

__all__ = ["art", "evasion"]
