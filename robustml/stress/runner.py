"""Carrying out a plan: stage by stage, chunk by chunk, each journalled before the next begins."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from ..memory import give_back
from .attacking import Bench, Limits
from .curve import known_points
from .folder import Record, RunFolder
from .ledger import Ledger
from .meter import BudgetSpent
from .plan import Stage
from .units import run_unit

__all__ = ["Observer", "Shard", "Silent", "execute"]


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: the chunks whose number leaves that remainder."""

    index: int = 1
    count: int = 1

    def holds(self, chunk: int) -> bool:
        return chunk % self.count == self.index - 1


class Observer(Protocol):
    """Something that shows progress."""

    def begin(self, units: int, done: int) -> None:
        """The run starts with so many (stage, chunk) units, of which some were finished earlier."""

    def stage(self, key: str, standing: int) -> None:
        """A stage starts with so many samples to look at."""

    def on_pass(self, samples: int) -> None:
        """So many samples went through the model."""

    def unit(self, record: Record | None) -> None:
        """A unit is finished; None if there was nothing to do."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """An observer that shows nothing."""

    def begin(self, units: int, done: int) -> None: ...

    def stage(self, key: str, standing: int) -> None: ...

    def on_pass(self, samples: int) -> None: ...

    def unit(self, record: Record | None) -> None: ...

    def note(self, text: str) -> None: ...


def execute(
    bench: Bench,
    folder: RunFolder,
    *,
    observer: Observer,
    shard: Shard | None = None,
    time_budget: float | None = None,
) -> None:
    """Do what the plan asks for and the journal does not yet hold.

    Args:
        bench: Plan, model (ready for attack) and data.
        folder: Where records and evidence go.
        observer: Told of the progress.
        shard: Do only these chunks.
        time_budget: Seconds after which no new unit is begun and the current attack is stopped.

    Raises:
        RunError: if the model or an attack raises, or the folder cannot be written.
    """
    plan, shard = bench.plan, shard or Shard()
    chunks = [chunk for chunk in range(plan.chunks) if shard.holds(chunk)]
    deadline = None if time_budget is None else time.monotonic() + time_budget
    ledger = Ledger(plan, bench.data.y[plan.ids], [])
    finished: dict[tuple[str, int], list[Record]] = {}
    for record in folder.records:
        finished.setdefault((record.stage, record.chunk), []).append(record)
    observer.begin(len(ledger.stages) * len(chunks), len(finished))
    spent = dict.fromkeys(chunks, 0.0)
    for stage in ledger.stages:
        if stage.skipped is None:
            observer.stage(stage.key, sum(ledger.to_see(stage, chunk) for chunk in chunks))
        for chunk in chunks:
            records = finished.get((stage.key, chunk), [])
            done = bool(records) and records[-1].status != "time"
            if not done and _late(stage, deadline):
                observer.note(f"the time budget is spent; {stage.key} and what follows stay incomplete")
                return
            if records:
                ledger.take(stage, chunk, records)
            if not done and ledger.to_see(stage, chunk):
                new = _run(bench, ledger, folder, stage, chunk, spent[chunk], deadline, observer)
                if new is not None:
                    ledger.take(stage, chunk, [new])
                    records = [*records, new]
            spent[chunk] += _cost(stage, records)
            observer.unit(records[-1] if records else None)


def _run(
    bench: Bench,
    ledger: Ledger,
    folder: RunFolder,
    stage: Stage,
    chunk: int,
    spent: float,
    deadline: float | None,
    observer: Observer,
) -> Record | None:
    plan = bench.plan
    limits = Limits(deadline=deadline, on_pass=observer.on_pass)
    if plan.max_passes is not None and stage.kind in {"attack", "curve"}:
        # The budget is per chunk, so that neither shards nor a resumed run change what it buys.
        left = plan.max_passes * len(plan.positions(chunk)) - spent
        if left <= 0:
            return None
        limits = Limits(max_passes=left, deadline=deadline, on_pass=observer.on_pass)
    try:
        known = known_points(ledger, folder, bench.data, stage, chunk)
        record, evidence = run_unit(bench, stage, chunk, ledger.rows(stage, chunk), limits, known)
    except BudgetSpent:
        return None
    record = folder.append(record, evidence)
    give_back()
    return record


def _late(stage: Stage, deadline: float | None) -> bool:
    # Without the clean pass there is nothing to report at all.
    return stage.kind != "clean" and deadline is not None and time.monotonic() >= deadline


def _cost(stage: Stage, records: list[Record]) -> float:
    if stage.kind not in {"attack", "curve"}:
        return 0.0
    return float(sum(record.forward + 2 * record.backward for record in records))
