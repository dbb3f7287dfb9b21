"""Evasion attacks, one file each; naming a file here registers its attack."""

from . import apgd, apgd_targeted, fgsm, noise, pgd, relay, square

__all__ = ["apgd", "apgd_targeted", "fgsm", "noise", "pgd", "relay", "square"]
