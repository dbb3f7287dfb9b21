"""Hardening by training: one loop, objectives that compose, terms that add to any of them."""

from .adversarial import PGD
from .distillation import AdversarialDistillation, Distillation, Tempered, distill
from .hardening import Hardened, harden
from .loop import Epoch
from .objective import Answers, Batch, Objective, Standard, Term, ascend
from .settings import Settings

__all__ = [
    "PGD",
    "AdversarialDistillation",
    "Answers",
    "Batch",
    "Distillation",
    "Epoch",
    "Hardened",
    "Objective",
    "Settings",
    "Standard",
    "Tempered",
    "Term",
    "ascend",
    "distill",
    "harden",
]
