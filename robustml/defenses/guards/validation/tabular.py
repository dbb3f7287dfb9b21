"""From columns, a data frame or records, to rows of numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ....errors import suggest
from ....inputs import InputSpec
from .reasons import Code, Refusal, shown

__all__ = ["Columns", "Entry", "is_frame", "plain_numbers", "unmasked"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entry:
    """Raw inputs as numbers, before any rule about their values.

    Attributes:
        x: The rows that are numbers at all (k, *shape), of any numeric type.
        rows: Their positions in what came, int64 (k,).
        total: How many came; 0 where that could not be told.
        refusals: Why the others are none.
    """

    x: Array
    rows: Array
    total: int
    refusals: tuple[Refusal, ...] = ()

    @classmethod
    def nothing(cls, inputs: InputSpec, refusals: tuple[Refusal, ...], total: int = 0) -> Entry:
        """Of which nothing can be used."""
        return cls(np.zeros((0, *inputs.shape), inputs.dtype), np.zeros(0, np.int64), total, refusals)


def is_frame(raw: Any) -> bool:
    """Whether something is a table with named columns: a mapping, or a data frame of any library."""
    return isinstance(raw, Mapping) or (
        hasattr(raw, "columns") and hasattr(raw, "__getitem__") and not isinstance(raw, np.ndarray)
    )


@dataclass(frozen=True)
class Columns:
    """The columns that belong to `inputs`, by the names of its features.

    A one-hot group whose features are called "color=red", "color=blue" may also come as one column "color" of
    such values.

    Attributes:
        inputs: The space of inputs, with names for its features.
        extra: What to do about columns that no feature is called after.
    """

    inputs: InputSpec
    extra: Literal["refuse", "ignore"]

    def read(self, frame: Any, max_rows: int) -> Entry:
        """Bring a table to rows."""
        if not self.inputs.features:
            accepted = "inputs without names for their features come as arrays; name them in inputs.features"
            return self._nothing(_whole("kind", None, type(frame).__name__, accepted))
        given = list(frame.keys() if isinstance(frame, Mapping) else frame.columns)
        categories = self._categories(given)
        wrong = self._wrong_names(given, categories)
        if wrong:
            return self._nothing(*wrong)
        columns = {
            name: _column(frame[name]) for name in [*self.inputs.features, *categories] if name in given
        }
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        total = max(lengths.values(), default=0)
        wrong = [
            _whole("dtype", name, None, "a column of numbers is accepted")
            for name, column in columns.items()
            if column is None
        ] + [
            _whole(
                "column-length",
                name,
                float(length),
                f"{total} values, as in the longest column, are accepted",
            )
            for name, length in lengths.items()
            if length != total
        ]
        if not wrong and total > max_rows:
            wrong = [_whole("rows", None, float(total), f"at most {max_rows} rows are accepted")]
        if wrong:
            return self._nothing(*wrong, total=total)
        return self._rows({name: c for name, c in columns.items() if c is not None}, categories, total)

    def _categories(self, given: list[Any]) -> dict[str, dict[str, int]]:
        """The columns that stand for a whole one-hot group: the feature of each of their values."""
        found = {}
        for group in self.inputs.one_hot:
            parts = [self.inputs.features[index].partition("=") for index in group]
            heads = {head for head, mark, _ in parts if mark}
            if len(heads) == 1 and all(mark for _, mark, _ in parts) and (head := heads.pop()) in given:
                found[head] = {value: index for (_, _, value), index in zip(parts, group, strict=True)}
        return found

    def _wrong_names(self, given: list[Any], categories: dict[str, dict[str, int]]) -> list[Refusal]:
        covered = {self.inputs.features[index] for values in categories.values() for index in values.values()}
        wanted = {name for name in self.inputs.features if name not in covered} | set(categories)
        texts = [name for name in given if isinstance(name, str)]
        wrong = [
            _whole("missing-column", name, None, f"the column is needed{_meant(name, texts)}")
            for name in dict.fromkeys([*self.inputs.features, *categories])
            if name in wanted and name not in texts
        ]
        if self.extra == "refuse":
            wrong += [
                _whole(
                    "extra-column",
                    name if isinstance(name, str) else shown(name),
                    None,
                    "only the columns of the features are accepted",
                )
                for name in given
                if not isinstance(name, str) or name not in wanted
            ]
        twice = {name for name in texts if name in wanted and texts.count(name) > 1} if len(wanted) else set()
        return wrong + [
            _whole("extra-column", name, None, "each column is accepted once") for name in sorted(twice)
        ]

    def _rows(self, columns: dict[str, Array], categories: dict[str, dict[str, int]], total: int) -> Entry:
        x = np.zeros((total, self.inputs.size), np.float64)
        bad: dict[int, Refusal] = {}
        for index, name in enumerate(self.inputs.features):
            if name in columns and name not in categories:
                x[:, index] = self._numbers(columns[name], index, name, bad)
        for name, values in categories.items():
            accepted = f"one of {', '.join(values)} is accepted"
            for row, value in enumerate(columns[name].tolist()):
                place = values.get(value) if isinstance(value, str) else None
                if place is not None:
                    x[row, place] = 1
                else:
                    bad.setdefault(row, Refusal("category", row, None, name, shown(value), accepted))
        return _without(x.reshape(total, *self.inputs.shape), bad, total)

    def _numbers(self, column: Array, index: int, name: str, bad: dict[int, Refusal]) -> Array:
        values, wrong = plain_numbers(column)
        for row in np.flatnonzero(wrong).tolist():
            came = shown(column[row])
            bad.setdefault(row, Refusal("dtype", row, index, name, came, "a number is accepted"))
        return values

    def _nothing(self, *wrong: Refusal, total: int = 0) -> Entry:
        return Entry.nothing(self.inputs, wrong, total)


def from_objects(values: Array, inputs: InputSpec) -> Entry:
    """Rows (n, *shape) of Python objects, of which some may be no numbers."""
    x, wrong = plain_numbers(values.reshape(-1))
    total, size = len(values), inputs.size
    bad: dict[int, Refusal] = {}
    for place in np.flatnonzero(wrong).tolist():
        row, index = divmod(place, size)
        name = inputs.features[index] if inputs.features else None
        came = shown(values.reshape(-1)[place])
        bad.setdefault(row, Refusal("dtype", row, index, name, came, "a number is accepted"))
    return _without(x.reshape(total, *inputs.shape), bad, total)


def plain_numbers(values: Array) -> tuple[Array, Array]:
    """Bring an array (n,) of any type to numbers.

    Returns:
        float64 (n,), or the array itself where it holds numbers; and which values are none, bool (n,).
    """
    if values.dtype.kind in "fiub":
        return values, np.zeros(len(values), np.bool_)
    found = np.full(len(values), np.nan)
    wrong = np.ones(len(values), np.bool_)
    if values.dtype.kind == "O":
        for row, value in enumerate(values.tolist()):
            number = _number(value)
            if number is not None:
                found[row], wrong[row] = number, False
    return found, wrong


def _number(value: Any) -> float | None:
    """A number as such; text is none, even if it looks like one."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, 1 if value > 0 else -1)
    if isinstance(value, (bool, float, np.bool_, np.integer, np.floating)):
        return float(value)
    return None if not isinstance(value, numbers.Real) else _converted(value)


def _converted(value: numbers.Real) -> float | None:
    try:
        return float(value)
    except Exception:  # a stranger's number can do what it likes
        return None


def unmasked(values: Any) -> Array:
    """An array; where a masked one has nothing there is NaN, not what lies beneath the mask."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fiub":
        return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
    return np.asarray(values)


def _meant(name: str, given: list[str]) -> str:
    """The column that comes closest, if one does; a list of all would only hide what is wrong."""
    hint = suggest(name, given) if given else ""
    return hint if hint.startswith("; did you mean") else ""


def _column(values: Any) -> Array | None:
    """A column as an array (n,), a single value as one row; None for anything else."""
    try:
        array = unmasked(values)
        if array.ndim > 1 or (array.ndim == 1 and isinstance(values, (str, bytes))):
            return None
        # Text among numbers turns a list into text altogether, where only one row may be wrong.
        return (np.asarray(values, dtype=object) if array.dtype.kind in "US" else array).reshape(-1)
    except Exception:  # ragged lists, and whatever a foreign column raises
        return None


def _without(x: Array, bad: dict[int, Refusal], total: int) -> Entry:
    rows = np.arange(total, dtype=np.int64)
    if not bad:
        return Entry(x, rows, total)
    good = np.ones(total, np.bool_)
    good[list(bad)] = False
    return Entry(x[good], rows[good], total, tuple(bad[row] for row in sorted(bad)))


def _whole(code: Code, name: str | None, value: float | str | None, accepted: str) -> Refusal:
    return Refusal(code, None, None, name, value, accepted)
