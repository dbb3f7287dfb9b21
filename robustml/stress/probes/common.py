"""What probes share: attacks whose evidence is put together, and what they put around the model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...losses import margin
from ...surrogates import exact, smoothed
from ..attacking import Around, Outcome
from ..folder import Evidence, Record
from ..meter import Meter
from ..plan import Stage

__all__ = ["Positions", "Recorder", "joined", "record_of", "smoothing"]

Positions = np.ndarray[Any, np.dtype[np.int64]]


class _Passing:
    """Stands between an attack and its meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def focus(self, rows: Tensor) -> None:
        """Announce which rows of the batch the next calls hold."""
        self.meter.focus(rows)


class _Smooth(_Passing):
    def __init__(self, meter: Meter, kinds: frozenset[str] | None, seen: Counter[str] | None) -> None:
        super().__init__(meter)
        self._kinds, self._seen = kinds, seen

    def __call__(self, x: Tensor, /) -> Tensor:
        with smoothed(self._kinds, self._seen):
            return self.meter(x)


def smoothing(kinds: frozenset[str] | None = None, seen: Counter[str] | None = None) -> Around:
    """Let any attack follow the gradient of the surrogates; see `robustml.surrogates.smoothed`."""
    return lambda meter, _: _Smooth(meter, kinds, seen)


class Recorder(_Passing):
    """Keep the margin of each sample at every call.

    Attributes:
        calls: For each call the rows of the batch that it held and their margins.
    """

    def __init__(self, meter: Meter, y: Tensor) -> None:
        super().__init__(meter)
        self._y = y
        self._rows = torch.arange(len(y), device=y.device)
        self.calls: list[tuple[Tensor, Tensor]] = []

    def focus(self, rows: Tensor) -> None:
        super().focus(rows)
        self._rows = rows

    def __call__(self, x: Tensor, /) -> Tensor:
        logits = self.meter(x)
        if len(x) == len(self._rows):
            with exact(), torch.no_grad():
                self.calls.append((self._rows, margin(logits.detach(), self._y[self._rows])))
        return logits

    def progress(self) -> list[list[float]]:
        """The margins of each sample in the order of its calls."""
        found: list[list[float]] = [[] for _ in range(len(self._y))]
        for rows, values in self.calls:
            for row, value in zip(rows.tolist(), values.tolist(), strict=True):
                found[row].append(value)
        return found


def joined(outcomes: list[Outcome], among: Positions) -> Evidence:
    """One counterexample for each of the positions `among` that an attack broke; earlier attacks first."""
    columns = {
        name: np.concatenate([getattr(outcome.evidence, name) for outcome in outcomes])
        for name in vars(outcomes[0].evidence)
    }
    positions, first = np.unique(columns["position"], return_index=True)
    kept = first[np.isin(positions, among)]
    return Evidence(**{name: column[kept] for name, column in columns.items()})


def record_of(
    stage: Stage, chunk: int, outcomes: list[Outcome], among: Positions, facts: dict[str, float]
) -> tuple[Record, Evidence | None]:
    """The record of a probe that attacked; what it broke `among` the standing samples counts as broken."""
    evidence = joined(outcomes, among) if outcomes else None
    record = Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(among),
        broken=evidence.position.tolist() if evidence is not None else [],
        forward=sum(outcome.meter.forward for outcome in outcomes),
        backward=sum(outcome.meter.backward for outcome in outcomes),
        checks=sum(outcome.checks for outcome in outcomes),
        facts=facts,
    )
    return record, evidence
