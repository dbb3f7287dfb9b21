"""What an attacker wants the model to say: target classes, for inputs of one class or of any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data import choose
from .errors import InputError, brief, suggest

__all__ = ["Goals", "choose_rows", "parse_goals"]

_ARROW = "->"
_ANY = "*"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Goals:
    """Goals in the order in which they were given.

    Attributes:
        pairs: Source class (None for any) and target class of each.
        classes: How many classes there are.
    """

    pairs: tuple[tuple[int | None, int], ...]
    classes: int

    def __bool__(self) -> bool:
        return bool(self.pairs)

    @property
    def texts(self) -> tuple[str, ...]:
        """Each goal with class numbers, as in "3->8" or "*->0"."""
        return tuple(f"{_ANY if source is None else source}{_ARROW}{target}" for source, target in self.pairs)

    def named(self, names: Sequence[str]) -> list[str]:
        """Each goal with the names of its classes."""
        return [
            f"{_ANY if source is None else names[source]}{_ARROW}{names[target]}"
            for source, target in self.pairs
        ]

    @property
    def table(self) -> Array:
        """For each label, the classes that an input of it may be turned into: bool (classes, classes)."""
        table = np.zeros((self.classes, self.classes), dtype=np.bool_)
        for source, target in self.pairs:
            table[slice(None) if source is None else source, target] = True
        # An input that has the target's label already has nowhere to go.
        np.fill_diagonal(table, False)
        return table

    def concern(self, y: Array) -> Array:
        """Whether there is a goal for an input of each label: bool (n,)."""
        return np.isin(y, np.nonzero(self.table)[0])


def parse_goals(given: Any, names: Sequence[str]) -> Goals:
    """Read goals such as "3->8", "*->0" or "stop->speed limit 30".

    Args:
        given: One goal or several. Classes are named, or numbered from 0 where no class has that name.
        names: The name of each class.

    Raises:
        InputError: one line that says what is wrong with a goal.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Iterable):
        raise InputError(f"goals={brief(given)} is not a list of goals, as in ['3->8', '*->0']")
    pairs: list[tuple[int | None, int]] = []
    for text in texts:
        pair = _pair(text, names)
        if pair in pairs:
            raise InputError(f"goals names {brief(text)} twice")
        pairs.append(pair)
    return Goals(tuple(pairs), len(names))


def _pair(text: Any, names: Sequence[str]) -> tuple[int | None, int]:
    if not isinstance(text, str) or _ARROW not in text:
        raise InputError(f"goal {brief(text)} is not of the form SOURCE->TARGET, as in '3->8' or '*->0'")
    # A name may hold an arrow; the first place where both sides are classes is the one that is meant.
    cuts = [i for i in range(len(text)) if text.startswith(_ARROW, i)]
    sides = [(text[:cut].strip(), text[cut + len(_ARROW) :].strip()) for cut in cuts]
    left, right = next((s for s in sides if s[0] in {_ANY, *names} and s[1] in names), sides[0])
    if right == _ANY and _ANY not in names:
        raise InputError(f"goal {brief(text)} needs one class as its target; only the source can be any, '*'")
    target = _class(right, text, names)
    source = None if left == _ANY and _ANY not in names else _class(left, text, names)
    if source == target:
        raise InputError(f"goal {brief(text)} turns a class into itself")
    return source, target


def _class(name: str, text: str, names: Sequence[str]) -> int:
    if list(names).count(name) == 1:
        return list(names).index(name)
    if name.isascii() and name.isdecimal() and int(name[:10]) < len(names):
        return int(name)
    if name in names:
        raise InputError(f"goal {brief(text)}: several classes are called {brief(name)}; use a number")
    known = f"a class from 0 to {len(names) - 1}" if name.lstrip("-").isdecimal() else "the name of a class"
    hint = suggest(name, names)
    # A thousand names help nobody.
    raise InputError(f"goal {brief(text)}: {brief(name)} is not {known}{hint if len(hint) < 200 else ''}")


def choose_rows(y: Array, samples: int | None, how: str, seed: int, goals: Goals | None = None) -> Array:
    """Choose the samples of a stress test among those that the goals concern; see `robustml.data.choose`.

    Raises:
        InputError: as `choose`, and if the goals concern no sample or fewer than are asked for.
    """
    if not goals:
        return choose(y, samples, how, seed)
    rows = np.flatnonzero(goals.concern(y))
    stated = ", ".join(goals.texts)
    if not len(rows):
        raise InputError(f"goals={stated} concern none of the {len(y)} samples: none has a source's label")
    if isinstance(samples, int) and samples > len(rows):
        raise InputError(f"samples={samples} is more than the {len(rows)} samples that the goals concern")
    chosen: Array = rows[choose(y[rows], samples, how, seed)]
    return chosen
