"""The most fragile samples: those that broke within the smallest budget, shown."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data import Dataset
from ..errors import InputError
from ..inputs import InputSpec
from ..stress.folder import Record, RunFolder
from ..stress.ledger import Ledger
from ..threats import Threat
from .parts import Change, Fragile, Picture

__all__ = ["most_fragile"]

_SHOWN = 12
_CHANGES = 6

Array = np.ndarray[Any, Any]


def most_fragile(ledger: Ledger, threat: Threat, folder: RunFolder, data: Dataset) -> list[Fragile]:
    """The samples broken within the smallest budgets, nearest first; without data where it is redacted."""
    plan = ledger.plan
    eps = ledger.eps[threat.norm]
    broken = np.flatnonzero(ledger.correct & (eps <= threat.eps))
    if not len(broken):
        return []
    # Ties at a budget are decided by distance, which only the evidence of the tied samples tells.
    limit = np.sort(eps[broken])[:_SHOWN][-1]
    shown = []
    cache: dict[str, dict[str, Array]] = {}
    for position in broken[eps[broken] <= limit].tolist():
        record = ledger.source[threat.norm][position]
        assert record is not None
        if record.evidence is None:
            raise InputError(f"{record.stage}, chunk {record.chunk} has no evidence")
        if record.evidence not in cache:
            cache[record.evidence] = _columns(folder, record)
        row = record.broken.index(position)
        distance = float(cache[record.evidence]["distance"][row])
        shown.append((float(eps[position]), distance, position, row, record))
    shown.sort(key=lambda item: item[:3])
    return [
        _entry(ledger, folder, data, record, position, row, at, distance, redact=plan.redact)
        for at, distance, position, row, record in shown[:_SHOWN]
    ]


def _columns(folder: RunFolder, record: Record) -> dict[str, Array]:
    """Everything in an evidence file but the inputs, which may be large."""
    with _opened(folder, record) as file:
        columns = {name: file.get_tensor(name) for name in ("distance", "label")}
        shape = tuple(file.get_slice("x").get_shape())
    rows = len(record.broken)
    expected = all(column.shape == (rows,) for column in columns.values())
    if not expected or shape[:1] != (rows,) or not np.isfinite(columns["distance"]).all():
        raise InputError(f"evidence {record.evidence} does not hold one row per broken sample")
    return columns


@contextlib.contextmanager
def _opened(folder: RunFolder, record: Record) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    path = folder.evidence_path(record)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"evidence {record.evidence} cannot be read: {str(error)[:100]}") from None


def _entry(
    ledger: Ledger,
    folder: RunFolder,
    data: Dataset,
    record: Record,
    position: int,
    row: int,
    eps: float,
    distance: float,
    *,
    redact: bool,
) -> Fragile:
    sample = ledger.plan.ids[position]
    with _opened(folder, record) as file:
        adversarial = file.get_slice("x")[row : row + 1][0]
        predicted = int(file.get_tensor("label")[row])
    original, spec = data.x[sample], ledger.plan.spec
    if adversarial.shape != original.shape:
        raise InputError(f"evidence {record.evidence} holds inputs of another shape")
    return Fragile(
        sample=sample,
        label=int(ledger.labels[position]),
        predicted=predicted,
        attack=record.stage.partition("/")[2],
        distance=round(distance, 6),
        eps=round(eps, 6),
        picture=None if redact or not spec.is_image else _picture(original, adversarial, spec),
        changes=[] if redact or spec.is_image else _changes(original, adversarial, spec),
    )


def _picture(original: Array, adversarial: Array, spec: InputSpec) -> Picture:
    difference = adversarial.astype(np.float64) - original
    peak = max(float(np.abs(difference).max()), 1e-12)
    low, high = (
        np.asarray(side).reshape(spec.shape) if isinstance(side, tuple) else side for side in spec.bounds
    )
    return Picture(
        original=_png((original - low) / (high - low)),
        adversarial=_png((adversarial - low) / (high - low)),
        difference=_png(0.5 + difference[:3] / (2 * peak)),
    )


def _png(channels: Array) -> str:
    from PIL import Image

    levels = (np.clip(channels, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(
        levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))
    )
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def _changes(original: Array, adversarial: Array, spec: InputSpec) -> list[Change]:
    """The features that moved the furthest, in units of the scale."""
    before, after = original.ravel().astype(np.float64), adversarial.ravel().astype(np.float64)
    moved = np.abs(after - before) / np.asarray(spec.scale)
    order = [int(index) for index in np.argsort(-moved, kind="stable")[:_CHANGES] if moved[index] > 0]
    return [
        Change(
            feature=spec.features[index] if spec.features else f"feature {index}",
            before=float(before[index]),
            after=float(after[index]),
        )
        for index in order
    ]
