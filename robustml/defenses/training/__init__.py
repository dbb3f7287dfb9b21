"""Hardening by training: one loop, objectives that compose, terms that add to any of them."""

from .adversarial import PGD
from .awp import AWP
from .distillation import AdversarialDistillation, Distillation, Tempered, distill
from .fast import Fast
from .free import Free
from .hardening import Hardened, harden
from .loop import Epoch
from .mart import MART
from .noisy import Noisy
from .objective import Answers, Batch, Objective, Standard, Term, ascend
from .settings import Settings
from .several import Several
from .terms import InputGradient, Jacobian, L1Weights, L2Weights, LabelSmoothing, SpectralNorm
from .trades import TRADES

__all__ = [
    "AWP",
    "MART",
    "PGD",
    "TRADES",
    "AdversarialDistillation",
    "Answers",
    "Batch",
    "Distillation",
    "Epoch",
    "Fast",
    "Free",
    "Hardened",
    "InputGradient",
    "Jacobian",
    "L1Weights",
    "L2Weights",
    "LabelSmoothing",
    "Noisy",
    "Objective",
    "Settings",
    "Several",
    "SpectralNorm",
    "Standard",
    "Tempered",
    "Term",
    "ascend",
    "distill",
    "harden",
]
