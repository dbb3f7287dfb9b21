"""The run folder: the plan, the journal of what is finished, and the evidence.

plan.json       everything that decides the figures
journal.jsonl   one record per finished (stage, chunk), appended and flushed before the next begins
evidence/       adversarial examples, one safetensors file per record that broke something
report.json     written at the end, from the three above and nothing else
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from ..errors import InputError, brief
from ..files import write_atomic, writing
from ..schema import Frozen, validated
from .plan import Plan

__all__ = ["Evidence", "Record", "RunFolder", "merge"]

Count = Annotated[int, Ge(0)]


class Record(Frozen):
    """What one stage found on one chunk."""

    stage: str
    chunk: Count
    status: Literal["complete", "passes", "time"] = "complete"
    """"passes" or "time": the budget of that kind ran out in the middle; what was found until then counts."""
    attempted: Count = 0
    broken: list[Count] = []
    """Positions in the plan of the samples with a confirmed adversarial example, ascending."""
    distances: list[float] = []
    """For each of `broken`, the size of its perturbation."""
    queries: list[Count] = []
    """For each of `broken`, the forward passes until its adversarial point was visited; or nothing."""
    digests: list[str] = []
    """For each of `broken`, the start of the SHA-256 over its rows of the evidence file."""
    rescued: Count = 0
    unconfirmed: Count = 0
    forward: Count = 0
    backward: Count = 0
    checks: Count = 0
    """Forward passes spent outside the attack to confirm what it returned."""
    seconds: float = 0.0
    timings: dict[str, float] = {}
    """Seconds of what is compared with each other; like `seconds`, never the same twice."""
    facts: dict[str, float] = {}
    labels: list[int] = []
    """Predicted label of each sample of the chunk: when clean, or of those looked at when corrupted."""
    margins: list[float] = []
    """The label's lead over the best other class (negative when misclassified) in the clean pass, and at a
    random point of each probed sample's ball before the first attack."""
    flips: list[float] = []
    """Clean pass of a randomized model: the share of each sample's draws that differ from most of them."""
    choices: list[Annotated[int, Ge(-1)]] = []
    """Search for the worst transformation only: the place of the one that broke each sample, -1 for none."""
    radii: list[Annotated[float, Ge(0)]] = []
    """Certificates only: the certified L2 radius of each of `labels`, 0 where the label is -1 (abstained)."""
    evidence: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Evidence:
    """Adversarial examples: one row per broken sample.

    Attributes:
        position: Position in the plan, int64 (k,).
        x: The adversarial inputs (k, *shape), in input units.
        label: What the model says of them, int64 (k,).
        margin: Best wrong logit minus the true label's (k,), as evaluated outside the attack.
        distance: Size of the perturbation in the threat's norm, float64 (k,).
    """

    position: np.ndarray[Any, Any]
    x: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    margin: np.ndarray[Any, Any]
    distance: np.ndarray[Any, Any]

    def digests(self) -> list[str]:
        """One short hash per row, so that a damaged file can be traced to the samples it concerns."""
        columns = [np.ascontiguousarray(value) for value in vars(self).values()]
        return [
            hashlib.sha256(b"".join(column[row].tobytes() for column in columns)).hexdigest()[:16]
            for row in range(len(self.position))
        ]


class RunFolder:
    """A folder that holds one stress test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._end = 0  # where the last complete record of the journal ends

    @classmethod
    def create(cls, path: Path, plan: Plan) -> RunFolder:
        """Start a run in a new or empty folder.

        Raises:
            InputError: if the folder already holds something.
            RunError: if it cannot be written.
        """
        if _holds_something(path):
            raise InputError(
                f"out={str(path)!r} already exists and is not empty; choose another or resume it"
            )
        folder = cls(path)
        with writing(path):
            (path / "evidence").mkdir(parents=True, exist_ok=True)
        write_atomic(path / "plan.json", plan.model_dump_json(by_alias=True, indent=1) + "\n")
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple[RunFolder, Plan]:
        """Open the folder of a run, finished or not.

        Raises:
            InputError: if it is not a run folder or a file in it is damaged.
        """
        data = _read_json(path / "plan.json", f"{str(path)!r} is not a run folder")
        plan = validated(Plan, data, where=str(path / "plan.json"))
        if sorted(set(plan.ids)) != plan.ids or plan.ids[-1] >= plan.data_rows or plan.ids[0] < 0:
            raise InputError(
                f"{path / 'plan.json'}: ids are not distinct rows of the data in ascending order"
            )
        folder = cls(path)
        folder.records = folder._read_journal()
        return folder, plan

    def _read_journal(self) -> list[Record]:
        journal = self.path / "journal.jsonl"
        if not journal.exists():
            return []
        try:
            lines = journal.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"{journal} cannot be read: {error.strerror}") from None
        # A killed run may leave a last line without its end; that unit was not finished and is done again.
        complete = lines[:-1]
        self._end = sum(len(line) + 1 for line in complete)
        records = []
        for number, line in enumerate(complete, 1):
            try:
                data = json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{journal}: line {number} is damaged") from None
            if not isinstance(data, dict):
                raise InputError(f"{journal}: line {number} is not a record")
            records.append(validated(Record, data, where=f"{journal} line {number}"))
        return records

    def append(self, record: Record, evidence: Evidence | None = None) -> Record:
        """Store the evidence, then the record that names it; afterwards the unit counts as finished."""
        if evidence is not None and len(evidence.position):
            from safetensors.numpy import save

            # Named by what it holds and not by when it was found, so that shards merge to the same names.
            again = sum(r.stage == record.stage and r.chunk == record.chunk for r in self.records)
            name = (
                f"evidence/{_slug(record.stage)}.{record.chunk:05d}{f'.{again}' if again else ''}.safetensors"
            )
            columns = {key: np.ascontiguousarray(value) for key, value in vars(evidence).items()}
            # One key only: safetensors writes several in an order that changes from call to call.
            content = save(columns, metadata={"unit": f"{record.stage} {record.chunk}"})
            write_atomic(self.path / name, content)
            record = record.model_copy(
                update={
                    "evidence": name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "digests": evidence.digests(),
                    "distances": evidence.distance.tolist(),
                }
            )
        line = record.model_dump_json(exclude_defaults=True).encode() + b"\n"
        journal = self.path / "journal.jsonl"
        with writing(journal), journal.open("r+b" if journal.exists() else "wb") as file:
            file.seek(self._end)
            file.truncate()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(line)
        self.records.append(record)
        return record

    def evidence_path(self, record: Record) -> Path:
        """Where the adversarial examples of a record are.

        Raises:
            InputError: if the record names a file outside the evidence folder.
        """
        path = self.path / str(record.evidence)
        if path.parent != self.path / "evidence":
            raise InputError(f"{record.evidence!r} is not a file of the evidence folder")
        return path

    def read_evidence(self, record: Record) -> Evidence:
        """Load the adversarial examples of a record.

        Raises:
            InputError: if the file is missing, damaged or not what the record says.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self.evidence_path(record)
        try:
            columns = load(path.read_bytes())
            evidence = Evidence(**columns)
            rows = {len(column) for column in vars(evidence).values()}
        except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
            raise InputError(f"evidence {record.evidence} cannot be read: {str(error)[:100]}") from None
        if rows != {len(record.broken)}:
            raise InputError(f"evidence {record.evidence} does not hold one row per broken sample")
        return evidence


def merge(paths: Iterable[Path], out: Path) -> RunFolder:
    """Put the shards of one run together in a new folder.

    Raises:
        InputError: if the folders are not shards of the same plan, or overlap.
    """
    opened = [RunFolder.open(path) for path in paths]
    if not opened:
        raise InputError("there is nothing to merge; name the folders of the shards")
    plans = [plan for _, plan in opened]
    for (folder, _), plan in zip(opened, plans, strict=True):
        if plan != plans[0]:
            raise InputError(
                f"{str(folder.path)!r} is not a shard of the same run as {str(opened[0][0].path)!r}"
            )
    seen: set[tuple[str, int]] = set()
    for folder, _ in opened:
        units = {(record.stage, record.chunk) for record in folder.records}
        if seen & units:
            raise InputError(f"{str(folder.path)!r} holds chunks that another of the folders holds, too")
        seen |= units
    merged = RunFolder.create(out, plans[0])
    for folder, _ in opened:
        for record in folder.records:
            evidence = folder.read_evidence(record) if record.evidence else None
            merged.append(record.model_copy(update={"evidence": None, "sha256": None}), evidence)
    return merged


def _holds_something(path: Path) -> bool:
    try:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"out={brief(str(path))} cannot be used: {reason}") from None


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{otherwise}: {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{otherwise}: {path.name} is not JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{otherwise}: {path.name} does not hold an object")
    return data


def _slug(stage: str) -> str:
    return "".join(character if character.isalnum() or character in "-." else "_" for character in stage)
