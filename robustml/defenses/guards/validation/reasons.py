"""Why an input is refused: a code that machines read, where, what came, what is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, overload

import numpy as np
from torch import Tensor

from ....errors import InputError, brief

__all__ = ["CODES", "Checked", "Code", "Refusal", "Refusals", "RefusedInput", "shown"]

Code = Literal[
    "kind",
    "shape",
    "dtype",
    "rows",
    "missing-column",
    "extra-column",
    "column-length",
    "category",
    "bytes",
    "not-an-image",
    "format",
    "frames",
    "pixels",
    "size",
    "channels",
    "truncated",
    "not-finite",
    "bounds",
    "training-range",
    "integer",
    "levels",
    "one-hot",
    "spread",
]
CODES: tuple[Code, ...] = get_args(Code)


@dataclass(frozen=True)
class Refusal:
    """Why one input, or all that came together, cannot be used.

    Attributes:
        code: The rule that it broke.
        row: Its position in what came; None where the whole is refused, as without a column.
        feature: Flattened index of the feature that breaks the rule the most; None where it is not one.
        name: The name of the feature or column, if it has one.
        value: What came there, text cut to a line; None where there is nothing to show.
        accepted: What would have been accepted.
    """

    code: Code
    row: int | None
    feature: int | None
    name: str | None
    value: float | str | None
    accepted: str

    def __str__(self) -> str:
        where = "all rows" if self.row is None else f"row {self.row}"
        if self.name is not None:
            where += f", {brief(self.name)}"
        elif self.feature is not None:
            where += f", feature {self.feature}"
        value = f"{self.value:.9g}" if isinstance(self.value, float) else self.value
        came = "" if value is None else f"{value} came; "
        # The text may be logged line by line, and parts of it were written by a stranger.
        text = f"{where}: {self.code}: {came}{self.accepted}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """What a stranger sent, as text that is short."""
    plain = value.item() if isinstance(value, np.generic) else value
    # The repr of all of it could be larger than memory.
    return brief(plain[:80] if isinstance(plain, (str, bytes)) else plain)


class RefusedInput(InputError):
    """Inputs that `Validate(mode="raise")` refuses; `refusals` says why for each of them."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        super().__init__(f"{refusals[0]}{more}")
        self.refusals = refusals


@dataclass(frozen=True)
class Labels:
    """How rules and features are called in refusals.

    Attributes:
        names: A name for each feature, or nothing.
        accepted: What a rule accepts, by its code and the feature.
    """

    names: tuple[str, ...] = ()
    accepted: Mapping[Code, Any] = field(default_factory=dict)

    def text(self, code: Code, feature: int) -> str:
        """What is accepted for a feature."""
        given = self.accepted.get(code, "")
        return str(given(feature)) if callable(given) else str(given)


@dataclass(frozen=True)
class Columnar:
    """One refusal per refused row, as columns: a million of them are four arrays until someone looks.

    Attributes:
        rows, codes, features: int64 (k,), codes as positions in `CODES`; -1 where no feature is meant.
        values: float64 (k,); NaN is shown as such.
        labels: What they are called.
    """

    rows: np.ndarray[Any, Any]
    codes: np.ndarray[Any, Any]
    features: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    labels: Labels

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> Refusal:
        """One of them."""
        code, feature = CODES[int(self.codes[index])], int(self.features[index])
        named = feature >= 0 and self.labels.names
        return Refusal(
            code,
            int(self.rows[index]),
            None if feature < 0 else feature,
            self.labels.names[feature] if named else None,
            float(self.values[index]),
            self.labels.text(code, feature),
        )


class Refusals(Sequence[Refusal]):
    """All refusals of one check: first what is no input at all, then what breaks a rule, each by row."""

    def __init__(self, single: Sequence[Refusal] = (), columnar: Columnar | None = None) -> None:
        self._single, self._columnar = tuple(single), columnar

    def __len__(self) -> int:
        return len(self._single) + (len(self._columnar) if self._columnar else 0)

    @overload
    def __getitem__(self, index: int) -> Refusal: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Refusal]: ...
    def __getitem__(self, index: int | slice) -> Refusal | Sequence[Refusal]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        if place < len(self._single):
            return self._single[place]
        assert self._columnar is not None
        return self._columnar.at(place - len(self._single))

    def __iter__(self) -> Iterator[Refusal]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Refusals({dict(self.counts)})"

    @property
    def counts(self) -> Counter[Code]:
        """How many there are of each code, without looking at each."""
        found: Counter[Code] = Counter(refusal.code for refusal in self._single)
        if self._columnar is not None:
            numbers = np.bincount(self._columnar.codes, minlength=len(CODES))
            found.update({code: int(n) for code, n in zip(CODES, numbers, strict=True) if n})
        return found


@dataclass(frozen=True)
class Checked:
    """What became of raw inputs.

    Attributes:
        x: Those that were accepted, in input units (k, *shape), of the precision that the model computes in.
        rows: Their positions in what came, int64 (k,).
        total: How many came; 0 where that could not be told.
        refusals: Why the others were not.
    """

    x: Tensor
    rows: np.ndarray[Any, Any]
    total: int
    refusals: Refusals

    @property
    def ok(self) -> bool:
        """Whether everything was accepted."""
        return not self.refusals
