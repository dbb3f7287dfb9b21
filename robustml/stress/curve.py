"""The security curve from one run: the nearest adversarial point of each sample that can be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Dataset
from .folder import Evidence, RunFolder
from .ledger import Ledger
from .plan import Stage

__all__ = ["Known", "known_points", "nearer"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Known:
    """What earlier stages found for the samples of a unit.

    Attributes:
        position: Positions in the plan, int64 (n,).
        x: The nearest adversarial input of each, the input itself where there is none (n, *shape).
        distance: Its distance, infinite where there is none: float64 (n,).
    """

    position: Array
    x: Array
    distance: Array


def known_points(ledger: Ledger, folder: RunFolder, data: Dataset, stage: Stage, chunk: int) -> Known | None:
    """Collect from the evidence what a search for the nearest points starts with; None for other stages.

    Raises:
        InputError: if the evidence cannot be read.
    """
    if not (stage.nearest or stage.kind == "contradiction") or stage.threat is None:
        return None
    positions = ledger.rows(stage, chunk).standing
    x = data.x[np.asarray(ledger.plan.ids)[positions]].copy()
    found: dict[str, Evidence] = {}
    for row, position in enumerate(positions.tolist()):
        record = ledger.source[stage.threat.norm][position]
        if record is None:
            continue
        name = str(record.evidence)
        if name not in found:
            found[name] = folder.read_evidence(record)
        x[row] = found[name].x[record.broken.index(position)]
    return Known(positions, x, ledger.eps[stage.threat.norm][positions])


def nearer(evidence: Evidence, known: Known) -> Evidence:
    """The part of what a search found that improves on what was known."""
    before = known.distance[np.searchsorted(known.position, evidence.position)]
    better = evidence.distance < before
    return Evidence(**{name: column[better] for name, column in vars(evidence).items()})
