"""Accuracy under common corruptions and under the worst of a grid of transformations.

Nothing here is attacked: the model only predicts, so every kind of access will do. A corruption looks at
all of its samples, also at those that are misclassified as they are; the search for the worst transformation
looks at those that are classified correctly, each until it is broken.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import InputSpec
from ..losses import is_wrong
from ..registry import Grid, find_corruption, find_transformations
from ..sampling import Streams
from .attacking import Bench, Limits, Rows
from .folder import Record
from .meter import BudgetSpent
from .plan import Plan, Stage

__all__ = ["CORRUPTING", "Corrupted", "corrupt", "distorted", "search", "transformed"]

CORRUPTING = frozenset({"corruption", "worst"})
"""The kinds of stages that are carried out here."""

_EVERY = 4  # places of a grid between looks at which samples are still standing
_NO_NUMBER = -1  # the label that stands for an answer that holds NaN

Positions = np.ndarray[Any, np.dtype[np.int64]]


def distorted(plan: Plan, stage: Stage, x: Tensor, ids: Tensor) -> Tensor:
    """The inputs (n, *shape) as the corruption and severity of a stage leave them."""
    streams = Streams.derive(plan.seed, f"corruption/{stage.of}", ids)
    return find_corruption(stage.of).apply(x, stage.severity, spec=plan.spec, streams=streams)


def transformed(plan: Plan, stage: Stage) -> Grid:
    """The transformations that a stage searches through."""
    assert stage.entry is not None
    return _grid(plan.spec, stage.entry.use, stage.entry.options)


def _grid(spec: InputSpec, name: str, options: dict[str, Any]) -> Grid:
    return find_transformations(name).function(spec, **options)


def corrupt(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> Record:
    """Predict the corrupted samples of a chunk; the record holds one label for each."""
    x, y, ids = bench.batch(rows.correct)
    labels = _labels(bench, distorted(bench.plan, stage, x, ids), y, ids, limits)
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(x),
        forward=len(x) * bench.price,
        labels=labels.tolist(),
    )


def search(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> Record:
    """Search the grid for a transformation that breaks each sample.

    The record holds for each the place of the first one that did, or -1, and what the model then answers.

    Raises:
        BudgetSpent: if the deadline passes.
    """
    x, y, ids = bench.batch(rows.correct)
    grid = transformed(bench.plan, stage)
    label, choice = y.clone(), torch.full_like(y, -1)
    active, forward = torch.arange(len(y), device=y.device), 0
    for place in range(len(grid)):
        if limits.deadline is not None and time.monotonic() >= limits.deadline:
            raise BudgetSpent("time")
        z = grid.apply(x[active], torch.full_like(active, place))
        said = _labels(bench, z, y[active], ids[active], limits)
        forward += len(z) * bench.price
        new = (said != y[active]) & (choice[active] < 0)
        label[active] = torch.where(new, said, label[active])
        choice[active] = torch.where(new, place, choice[active])
        if place % _EVERY == 0 or place == len(grid) - 1:
            active = active[choice[active] < 0]
            if not len(active):
                break
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(y),
        forward=forward,
        labels=label.tolist(),
        choices=choice.tolist(),
        facts={"places": float(len(grid))},
    )


def _labels(bench: Bench, z: Tensor, y: Tensor, ids: Tensor, limits: Limits) -> Tensor:
    logits = bench.answers(z, y, ids, aimed=False)
    if limits.on_pass is not None:
        limits.on_pass(len(z) * bench.price)
    said = logits.argmax(1)
    # An answer that is not a number is wrong, whatever its argmax.
    return torch.where(is_wrong(logits, y) & (said == y), _NO_NUMBER, said)


def _drawn(plan: Plan) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which samples of the plan the suite wants to see corrupted; the same ones however the run is cut."""
    settings, member = plan.suite.corruptions, np.zeros(plan.samples, dtype=np.bool_)
    if settings is not None:
        streams = Streams.derive(plan.seed, "corruption/samples", torch.tensor(plan.ids))
        place = streams.uniform(dtype=torch.float64).numpy()
        member[np.argsort(place, kind="stable")[: settings.samples or plan.samples]] = True
    return member


class Corrupted:
    """What the records of the stages of this kind add up to.

    Attributes:
        member: Which samples of the plan are looked at: bool (n,). A part of them is drawn at random, since
            the first ones may all be of one class.
        said: For each stage of a corruption, the labels under it: int64 (n,), -2 where there is none.
        broken: For each search, whether it broke each sample; bool (n,).
    """

    def __init__(self, plan: Plan, stages: list[Stage]) -> None:
        self.member = _drawn(plan)
        kinds = {kind: [stage.key for stage in stages if stage.kind == kind] for kind in CORRUPTING}
        self.said = {key: np.full(plan.samples, -2, dtype=np.int64) for key in kinds["corruption"]}
        self.broken = {key: np.zeros(plan.samples, dtype=np.bool_) for key in kinds["worst"]}

    def rows(self, stage: Stage, positions: Positions, correct: np.ndarray[Any, Any]) -> Rows:
        """The positions of a chunk that a stage looks at."""
        positions = positions[self.member[positions]]
        if stage.kind == "worst":
            positions = positions[correct[positions]]
        return Rows(positions, positions)

    def take(self, stage: Stage, rows: Rows, record: Record, labels: np.ndarray[Any, Any]) -> None:
        """Add one record.

        Raises:
            InputError: if it does not hold an answer for each of its samples.
        """
        where = f"{record.stage}, chunk {record.chunk}"
        if not len(record.labels) == record.attempted == len(rows.correct) or record.broken:
            raise InputError(f"{where} does not hold one label per sample")
        said = np.asarray(record.labels, dtype=np.int64)
        if stage.kind == "corruption":
            self.said[stage.key][rows.correct] = said
            return
        broken = np.asarray(record.choices, dtype=np.int64) >= 0
        if len(broken) != len(said) or ((said != labels[rows.correct]) != broken).any():
            raise InputError(f"{where} does not name a transformation for each broken sample and no other")
        self.broken[stage.key][rows.correct] = broken
