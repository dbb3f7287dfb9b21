"""Evasion attacks, one file each; naming a file here registers its attack."""

from . import apgd, fgsm, noise, pgd, square

__all__ = ["apgd", "fgsm", "noise", "pgd", "square"]
