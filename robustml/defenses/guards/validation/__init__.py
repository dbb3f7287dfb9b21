"""Input validation: what an input has to be before a model sees it."""

from .guard import Validate
from .reasons import CODES, Checked, Code, Refusal, Refusals, RefusedInput

__all__ = ["CODES", "Checked", "Code", "Refusal", "Refusals", "RefusedInput", "Validate"]
