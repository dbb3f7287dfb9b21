"""The attacks and aggregators of a stress test of a federation: by name, and fit for its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..attacks.byzantine import BYZANTINE
from ..attacks.poisoning import Patch
from ..defenses.federated.aggregation import AGGREGATORS as KNOWN
from ..defenses.federated.aggregation import rule_of
from ..defenses.federated.rules import RULES, Tolerant
from ..errors import InputError, suggest
from ..inputs import InputSpec
from .federation import AGGREGATORS, ATTACKS

__all__ = ["aggregators_for", "attacks_for"]

Named = dict[str, tuple[str, dict[str, Any]]]

_FLOWER_HOSTILE = ("flower-krum", "flower-multi-krum", "flower-bulyan")
_PIXELS = 3


def attacks_for(names: Sequence[str], inputs: InputSpec) -> tuple[Named, list[str]]:
    """The attacks with these names, fit for a model's inputs.

    The trigger of a backdoor is a patch of the highest value that inputs may have.

    Args:
        names: As they are called in the matrix; all of them if there are none.
        inputs: Of the model.

    Returns:
        The attacks, and why others were left out, where no names were given.

    Raises:
        InputError: for a name that is not known, or a backdoor in what is no image.
    """
    known: Named = {name: (name, {}) for name in BYZANTINE}
    known |= {name: (kind, dict(options)) for name, (kind, options) in ATTACKS.items()}
    found, left_out = {}, []
    for name in _distinct("attack", names, known) or list(ATTACKS):
        kind, options = known[name]
        if kind == "backdoor":
            if len(inputs.shape) < 2:
                reason = f"{name} puts its trigger on images; inputs of shape {inputs.shape} are none"
                if names:
                    raise InputError(f"attack={name!r} cannot be used: {reason}")
                left_out.append(reason)
                continue
            options = {**options, "trigger": Patch(_PIXELS, float(np.max(inputs.bounds[1])))}
        found[name] = (kind, options)
    return found, left_out


def aggregators_for(names: Sequence[str], clients: int, hostile: int) -> tuple[Named, list[str]]:
    """The aggregators with these names, those made for a number of hostile clients for this one.

    Args:
        names: As they are called in the matrix, or as `aggregation` calls them; all those of the matrix if
            there are none.
        clients, hostile: How many there are.

    Returns:
        The aggregators, and why others were left out, where no names were given.

    Raises:
        InputError: for a name that is not known, or a rule that cannot bear so many hostile clients.
    """
    known: Named = {name: (name, {}) for name in KNOWN}
    known |= {name: (kind, dict(options)) for name, (kind, options) in AGGREGATORS.items()}
    found, left_out = {}, []
    for name in _distinct("aggregation", names, known) or list(AGGREGATORS):
        kind, options = known[name]
        if kind in _FLOWER_HOSTILE:
            options = {**options, "num_malicious_nodes": hostile}
        if kind in RULES and issubclass(RULES[kind], Tolerant):
            options = {**options, "hostile": hostile}
        if reason := _too_many(kind, options, clients, hostile):
            if names:
                raise InputError(f"aggregation={name!r} cannot be used: {reason}")
            left_out.append(f"{name}: {reason}")
            continue
        found[name] = (kind, options)
    return found, left_out


def _too_many(kind: str, options: Mapping[str, Any], clients: int, hostile: int) -> str | None:
    """Why a rule would be another one with so few clients; None if it is not, or is Flower's own."""
    if kind not in RULES:
        return None
    rule = rule_of(kind, **options)
    if rule.at(clients) == rule:
        return None
    return f"hostile={hostile} of clients={clients} are more than it bears"


def _distinct(what: str, names: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    for name in names:
        if name not in known:
            raise InputError(f"{what}={name!r} is not known{suggest(name, known)}")
    return list(dict.fromkeys(names))
