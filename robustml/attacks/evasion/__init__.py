"""Evasion attacks, one file each; naming a file here registers its attack."""

from . import (
    apgd,
    apgd_targeted,
    boundary,
    carlini_wagner,
    fab,
    fgsm,
    fmn,
    hop_skip_jump,
    noise,
    pgd,
    rays,
    relay,
    sigma_zero,
    square,
)

__all__ = [
    "apgd",
    "apgd_targeted",
    "boundary",
    "carlini_wagner",
    "fab",
    "fgsm",
    "fmn",
    "hop_skip_jump",
    "noise",
    "pgd",
    "rays",
    "relay",
    "sigma_zero",
    "square",
]
