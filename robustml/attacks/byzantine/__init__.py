"""Hostile clients of a federation: what they train on, what they send, and what they send instead.

Everything here is numbers, without Flower; `robustml.auditing` puts it to a federation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import InputError, brief, suggest
from .base import Answer, Byzantine, Failure, Scene
from .data import Backdoor, LabelFlip
from .protocol import ABUSES, DropOut, ProtocolAbuse
from .updates import Alie, Gaussian, InnerProduct, MinMax, MinSum, SignFlip

__all__ = [
    "ABUSES",
    "BYZANTINE",
    "Alie",
    "Answer",
    "Backdoor",
    "Byzantine",
    "DropOut",
    "Failure",
    "Gaussian",
    "InnerProduct",
    "LabelFlip",
    "MinMax",
    "MinSum",
    "ProtocolAbuse",
    "Scene",
    "SignFlip",
    "byzantine",
]

BYZANTINE: dict[str, type[Byzantine]] = {
    attack.name: attack
    for attack in (
        LabelFlip,
        SignFlip,
        InnerProduct,
        Gaussian,
        Alie,
        MinMax,
        MinSum,
        Backdoor,
        ProtocolAbuse,
        DropOut,
    )
}


def byzantine(name: str, **options: Any) -> Byzantine:
    """A hostile client by name.

    Raises:
        InputError: for a name or an option that is not known.
    """
    if name not in BYZANTINE:
        raise InputError(f"attack={brief(name)} is not known{suggest(str(name), BYZANTINE)}")
    kind = BYZANTINE[name]
    known = [field.name for field in dataclasses.fields(kind)]
    for key in options:
        if key not in known:
            raise InputError(f"{key} is not an option of {name}{suggest(key, known)}")
    return kind(**options)
