"""The geometry of threat models: the valid perturbations around a batch of inputs, one class per norm."""

from .base import TOLERANCE, Ball, overwrite_, per_row
from .norms import L0Ball, L1Ball, L2Ball, LinfBall
from .waiting import reads_freely

__all__ = [
    "TOLERANCE",
    "Ball",
    "L0Ball",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "overwrite_",
    "per_row",
    "reads_freely",
]
