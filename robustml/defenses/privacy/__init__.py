"""Differentially private training: on Opacus, within the loop of `harden`."""

from .engine import Guarantee
from .ledger import Ledger, Spent
from .prepare import prepare
from .settings import DifferentialPrivacy

__all__ = ["DifferentialPrivacy", "Guarantee", "Ledger", "Spent", "prepare"]
