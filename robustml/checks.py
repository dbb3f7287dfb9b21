"""What arguments must be, in the words of every error about one."""

from __future__ import annotations

import math
import numbers
from typing import Any

from .errors import InputError, brief

__all__ = ["real", "share", "whole"]


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """An argument that is a whole number within limits.

    Raises:
        InputError: for anything else, truth values included.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    limits = ""
    if low is not None:
        limits = f" of at least {low}" if high is None else f" from {low} to {high}"
    raise InputError(f"{name}={brief(value)} is not a whole number{limits}")


def real(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    closed: bool = False,
    top: bool = False,
) -> float:
    """An argument that is a finite number within limits.

    Args:
        name: What the argument is called.
        value: What was given.
        low, high: The limits; infinite ones are none.
        closed, top: Whether the limits themselves are accepted.

    Raises:
        InputError: for anything else, truth values included.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        inside = low < number < high or (closed and number == low) or (top and number == high)
        if math.isfinite(number) and inside:
            return number
    least = f" {'of at least' if closed else 'above'} {low:g}" if low > -math.inf else ""
    most = f" and {'at most' if top else 'below'} {high:g}" if high < math.inf else ""
    raise InputError(f"{name}={brief(value)} is not a finite number{least}{most}")


def share(name: str, value: Any, *, zero: bool = True, one: bool = True) -> float:
    """An argument that is a share of a whole, with or without its ends.

    Raises:
        InputError: for anything else, truth values included.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if 0 < number < 1 or (zero and number == 0) or (one and number == 1):
            return number
    ends = {
        (True, True): "from 0 to 1",
        (False, True): "above 0 and at most 1",
        (True, False): "of at least 0 and below 1",
        (False, False): "between 0 and 1",
    }
    raise InputError(f"{name}={brief(value)} is not a share {ends[zero, one]}")
