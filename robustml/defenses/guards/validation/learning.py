"""What is read off clean inputs: that they are such, and the range of each feature or channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import InputError, brief

__all__ = ["outside", "ranges_of", "training_data"]


def training_data(x: Any) -> Tensor:
    """Clean inputs as a tensor (n, *shape).

    Raises:
        InputError: for anything else than finite numbers.
    """
    if not isinstance(x, (np.ndarray, Tensor)):
        raise InputError(f"x={brief(x)} is not an array or a tensor of clean inputs")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            raise InputError(f"x holds {x.dtype}; clean inputs are numbers")
        x = torch.from_numpy(
            np.array(x, dtype=x.dtype if x.dtype in (np.float32, np.float64) else np.float64)
        )
    values: Tensor = x.detach().cpu()
    if values.ndim < 2 or 0 in values.shape[1:]:
        raise InputError(f"x has shape {tuple(values.shape)}; clean inputs are (n, *shape)")
    if not values.is_floating_point():
        values = values.double()
    if not bool(values.isfinite().all()):
        raise InputError("x holds values that are not finite; clean inputs are numbers")
    return values


def ranges_of(flat: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The lowest and highest value of each run of neighboring features: float64 (groups,) each."""
    grouped = flat.view(len(flat), groups, flat.shape[1] // groups)
    return grouped.amin((0, 2)).double(), grouped.amax((0, 2)).double()


def outside(flat: Tensor, limits: tuple[Tensor, Tensor], groups: int) -> Tensor:
    """Which inputs (n, features) have a value beyond the limits of its run: bool (n,)."""
    grouped = flat.view(len(flat), groups, flat.shape[1] // groups)
    low, high = limits
    return ((grouped.amin(2) < low) | (grouped.amax(2) > high)).any(1)
