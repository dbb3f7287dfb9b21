"""A threshold that clean data exceeds at a chosen rate, and what is known of that rate afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...estimates import clopper_pearson
from ...inputs import InputSpec
from ...sampling import splitmix64

__all__ = ["Calibration", "batch_of", "calibrated", "needed", "shuffled"]


@dataclass(frozen=True)
class Calibration:
    """A threshold, and how often clean data exceeds it.

    Attributes:
        threshold: An order statistic of the scores of clean data.
        exceeded: How many of them lie above it.
        samples: How many there were.
    """

    threshold: float
    exceeded: int
    samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the false-positive rate on fresh data.

        If scores have no ties, the rate above the order statistic with `exceeded` scores above it follows
        Beta(exceeded + 1, samples - exceeded). Clopper and Pearson's interval for such a count contains the
        central interval of that distribution, and ends where it does above.
        """
        return clopper_pearson(self.exceeded, self.samples)


def needed(fpr: float) -> int:
    """The fewest clean scores of which one can be a threshold whose expected rate is at most `fpr`."""
    return math.ceil(1 / fpr - 1e-9) - 1


def calibrated(scores: np.ndarray[Any, Any], fpr: float) -> Calibration:
    """Take the lowest threshold that a new clean score exceeds with a probability of at most `fpr`.

    The new score is equally likely to fall between any two of the n scores: it exceeds all but the j - 1
    highest with a probability of at most j / (n + 1).

    Args:
        scores: Of clean data that was not used for anything else (n,).
        fpr: The false-positive rate.

    Raises:
        InputError: if there are too few scores, or one is no number.
    """
    if np.isnan(scores).any():
        raise InputError("a clean input has a score that is not a number; check the data and the model")
    allowed = math.floor((len(scores) + 1) * fpr + 1e-9)
    if allowed < 1:
        raise InputError(
            f"fpr={fpr:g} needs {needed(fpr)} inputs to set the threshold with; {len(scores)} are there"
        )
    threshold = float(np.sort(scores)[len(scores) - allowed])
    return Calibration(threshold, int((scores > threshold).sum()), len(scores))


def batch_of(x: object, inputs: InputSpec) -> torch.Tensor:
    """Inputs (n, *shape) as a tensor of the precision of `inputs`.

    Raises:
        InputError: for something else, or numbers that are not finite.
    """
    if not isinstance(x, (np.ndarray, torch.Tensor)):
        raise InputError(f"x is {type(x).__name__}; give an array or a tensor of inputs")
    if tuple(x.shape[1:]) != inputs.shape or x.ndim == 0:
        wanted = ", ".join(map(str, inputs.shape))
        raise InputError(f"x has shape {tuple(x.shape)}; (n, {wanted}) is wanted")
    if isinstance(x, np.ndarray) and x.dtype.kind not in "fiu":
        raise InputError(f"x holds {x.dtype}; numbers are wanted")
    batch = torch.as_tensor(x).detach().to(inputs.torch_dtype)
    if not torch.isfinite(batch).all():
        raise InputError("x holds numbers that are not finite")
    return batch


def shuffled(n: int) -> torch.Tensor:
    """An order of n samples that is always the same and has nothing to do with theirs: int64 (n,)."""
    return torch.argsort(splitmix64(torch.arange(n)), stable=True)
