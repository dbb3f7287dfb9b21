"""Replaying what a run says beside its attacks: certificates, corrupted and transformed samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..stress.attacking import Bench
from ..stress.certifying import certified
from ..stress.corrupting import Corrupted, distorted, transformed
from ..stress.folder import Record
from ..stress.plan import Stage, stages

__all__ = ["replay_unattacked", "replayed_predictions"]

_CERTIFIED = 8
_OFF = 0.05

Positions = np.ndarray[Any, np.dtype[np.int64]]


def replayed_predictions(record: Record) -> int:
    """How many predictions of a record of corrupted samples `replay_unattacked` makes again."""
    if record.stage == "certificate":
        return 0
    return sum(choice >= 0 for choice in record.choices) if record.choices else len(record.labels)


def replay_unattacked(
    bench: Bench, stage: Stage, record: Record, clean: Record | None, slack: float
) -> Iterator[str]:
    """Replay what a run says of certificates, or of corrupted samples; one line for each that differs.

    Args:
        bench: Plan, model and data.
        stage: What was done.
        record: What the run says of it.
        clean: The record of the clean pass on the same chunk.
        slack: By how much logits may differ.
    """
    if stage.kind == "certificate":
        return _replay_certificates(bench, record, clean)
    return _replay_corrupted(bench, stage, record, clean, slack)


def _replay_certificates(bench: Bench, record: Record, clean: Record | None) -> Iterator[str]:
    """Draw the certificates of a few samples of a record again; one line for each that differs.

    All of them would cost as much as they did in the run. Rounding may turn the odd draw, so that a radius
    is a little off.
    """
    where = f"{record.stage}, chunk {record.chunk}"
    everything = bench.plan.positions(record.chunk)
    if clean is None or len(clean.labels) != len(everything):
        yield f"{where}: the clean pass of the same samples is missing"
        return
    positions = everything[np.asarray(clean.labels) == bench.data.y[bench.plan.ids][everything]]
    if not len(record.labels) == len(record.radii) == len(positions):
        yield f"{where}: it does not hold one radius per sample"
        return
    rows = np.unique(np.linspace(0, len(positions) - 1, min(_CERTIFIED, len(positions))).round().astype(int))
    found = certified(bench, positions[rows])
    for row, label, radius in zip(rows.tolist(), found.label.tolist(), found.radius.tolist(), strict=True):
        said, stated = record.labels[row], record.radii[row]
        if said != label or abs(stated - radius) > _OFF * max(radius, stated):
            yield (
                f"sample {bench.plan.ids[positions[row]]}: certificate: "
                f"radius {radius:.4g} for class {label}, the run says {stated:.4g} for {said}"
            )


def _replay_corrupted(
    bench: Bench, stage: Stage, record: Record, clean: Record | None, slack: float
) -> Iterator[str]:
    """Corrupt the samples of a record again and ask the model again; one line for each that differs.

    Of a search, the transformations that broke a sample are replayed. That none breaks the others can only be
    found by searching again.
    """
    where = f"{stage.key}, chunk {record.chunk}"
    everything = bench.plan.positions(record.chunk)
    if clean is None or len(clean.labels) != len(everything):
        yield f"{where}: the clean pass of the same samples is missing"
        return
    correct = np.zeros(bench.plan.samples, dtype=np.bool_)
    correct[everything] = np.asarray(clean.labels) == bench.data.y[bench.plan.ids][everything]
    positions = Corrupted(bench.plan, stages(bench.plan)).rows(stage, everything, correct).correct
    if len(record.labels) != len(positions):
        yield f"{where}: it does not hold one label per sample"
        return
    labels = np.asarray(record.labels, dtype=np.int64)
    if stage.kind == "corruption":
        x, y, ids = bench.batch(positions)
        z = distorted(bench.plan, stage, x, ids)
    else:
        grid, choices = transformed(bench.plan, stage), np.asarray(record.choices, dtype=np.int64)
        if len(choices) != len(positions) or (choices >= len(grid)).any():
            yield f"{where}: it names transformations that there are not"
            return
        kept = choices >= 0
        positions, labels = positions[kept], labels[kept]
        x, y, ids = bench.batch(positions)
        z = grid.apply(x, torch.from_numpy(choices[kept]).to(x.device)) if len(x) else x
    if len(z):
        logits = bench.answers(z, y, ids, aimed=False)
        yield from _compare(stage, logits, labels, ids.tolist(), slack)


def _compare(stage: Stage, logits: Tensor, labels: Positions, ids: list[int], slack: float) -> Iterator[str]:
    top, said = logits.amax(1).tolist(), logits.argmax(1).tolist()
    for row, (sample, label) in enumerate(zip(ids, labels.tolist(), strict=True)):
        answer = logits[row]
        if bool(answer.isnan().any()):
            # Any label but the true one stands for an answer that is no number.
            continue
        if not 0 <= label < len(answer) or top[row] - float(answer[label]) > slack:
            yield f"sample {sample}: {stage.key}: the model answers {said[row]}, the run says {label}"
