"""Which probes a run makes for its diagnostics, and what they borrow from the suite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

from ..registry import Access, find_attack
from .suite import AttackEntry, CurveAttack, Suite, unusable

__all__ = ["PROBED", "can_be_followed", "doubled", "effort_of", "follows_surrogates", "is_wanted"]

PROBED: dict[str, frozenset[str]] = {
    "ordering": frozenset({"D10", "D18", "D22"}),
    "black-box": frozenset({"D11"}),
    "effort": frozenset({"D08", "D09"}),
    "transfer": frozenset({"D14"}),
    "gradients": frozenset({"D01", "D02", "D20"}),
    "binary": frozenset({"D17"}),
    "unbounded": frozenset({"D13"}),
    "before": frozenset({"D06"}),
    "state": frozenset({"D06"}),
    "randomness": frozenset({"D15"}),
    "components": frozenset({"D16"}),
    "contradiction": frozenset({"D23"}),
}
"""The kinds of stages that are there for diagnostics alone, and the codes that each of them serves."""

# What makes an attack of the suite stronger, by the name of its option, and how often it does so.
_EFFORT = ("steps", "queries")
_RUNS = ("restarts", "legs")


def is_wanted(suite: Suite, kind: str) -> bool:
    """Whether the suite leaves on any of the diagnostics that a probe serves."""
    return not PROBED[kind] <= set(suite.diagnostics.skip)


def follows_surrogates(suite: Suite, access: Access, norm: str) -> bool:
    """Whether an attack of the suite goes around masked gradients (`robustml.surrogates`)."""
    return any(
        entry.use == "relay" or entry.options.get("gradient") == "smooth"
        for entry in _usable(suite, access, norm)
    )


def can_be_followed(access: Access, norm: str) -> bool:
    """Whether there is an attack that follows the derivative that a guard declares."""
    return access is Access.GRADIENT and norm in find_attack("apgd").norms


def doubled(suite: Suite, access: Access, norm: str) -> AttackEntry | None:
    """The strongest attack of the suite with twice the steps or queries; None if no attack has them.

    An attack that sees more is the stronger one, then one that does more. One that begins anew several times
    does so half as often, since its runs are twice as long.
    """
    found: tuple[tuple[int, int], AttackEntry] | None = None
    for entry in _usable(suite, access, norm):
        name = next((name for name in _EFFORT if _is_whole(entry.options.get(name))), None)
        if name is None:
            continue
        rank = (int(find_attack(entry.use).access), effort_of(entry))
        if found is None or rank > found[0]:
            runs = {run: -(-entry.options[run] // 2) for run in _RUNS if _is_whole(entry.options.get(run))}
            options = {**entry.options, name: 2 * entry.options[name], **runs}
            found = rank, entry.model_copy(update={"options": options})
    return None if found is None else found[1]


def effort_of(entry: CurveAttack) -> int:
    """Steps or queries of an attack, over all of its runs."""
    numbers = (entry.options.get(name) for name in (*_EFFORT, *_RUNS))
    return math.prod(int(number) for number in numbers if _is_whole(number))


def _usable(suite: Suite, access: Access, norm: str) -> Iterator[AttackEntry]:
    return (entry for entry in suite.attack if unusable(entry, access, norm) is None)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
