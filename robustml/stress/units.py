"""The work on one chunk: the clean pass, an attack, or a diagnostic probe, and the record of it."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RobustmlError, RunError
from ..guarded import Guarded
from ..losses import is_wrong, margin
from ..registry import Access, find_attack
from .attacking import Bench, Limits, Outcome, Rows, run_attack
from .certifying import certify, recount
from .corrupting import CORRUPTING, corrupt, search
from .curve import Known, nearer
from .folder import Evidence, Record
from .lowered import Lowered, searched
from .meter import BudgetSpent
from .plan import Stage
from .probes import PROBES
from .suite import AttackEntry

__all__ = ["run_unit"]

_TIMED = 2


def run_unit(
    bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits, known: Known | None = None
) -> tuple[Record, Evidence | None]:
    """Carry out one stage on one chunk.

    Args:
        bench: Plan, model and data.
        stage: What to do.
        chunk: On which samples.
        rows: Those of them that it may work on.
        limits: What it may spend.
        known: Where the stage looks for the nearest adversarial points: those that are known so far.

    Raises:
        RunError: if the model or the attack raises.
    """
    begun = time.monotonic()
    bench.begin(f"{stage.key}/{chunk}")
    try:
        if stage.kind == "clean":
            record, evidence = _clean(bench, stage, chunk), None
        elif stage.kind in {"attack", "curve"}:
            record, evidence = _attack(bench, stage, chunk, rows.standing, limits, known)
        elif stage.kind in CORRUPTING:
            work = corrupt if stage.kind == "corruption" else search
            record, evidence = work(bench, stage, chunk, rows, limits), None
        elif stage.kind == "certificate":
            record, evidence = certify(bench, stage, chunk, rows, limits), None
        elif stage.kind == "contradiction":
            assert known is not None
            record, evidence = recount(bench, stage, chunk, rows, limits, known), None
        elif stage.kind == "oblivious":
            record, evidence = PROBES[stage.kind](bench, stage, chunk, rows, Limits(on_pass=limits.on_pass))
        else:
            subset = rows.first(bench.plan.suite.diagnostics.samples)
            # A probe cut short would judge the suite by half a measurement; its cost is small and bounded.
            free = Limits(on_pass=limits.on_pass)
            record, evidence = PROBES[stage.kind](bench, stage, chunk, subset, free)
    except (RobustmlError, BudgetSpent):
        raise
    except Exception as error:
        # User code or a foreign library can raise anything; the journal keeps what was finished before.
        raise RunError(f"{stage.key}, chunk {chunk}: {type(error).__name__}: {_one_line(error)}") from error
    return record.model_copy(update={"seconds": round(time.monotonic() - begun, 6)}), evidence


def _clean(bench: Bench, stage: Stage, chunk: int) -> Record:
    x, y, ids = bench.batch(bench.plan.positions(chunk))
    with torch.no_grad():
        logits = bench.model(x)
    if not bool(logits.isfinite().all()):
        sample = int(ids[int((~logits.isfinite()).any(1).nonzero()[0])])
        raise InputError(f"the model answers NaN or infinity for sample {sample}; it must return numbers")
    saturated = torch.softmax(logits.float(), 1).amax(1) == 1.0
    facts, flips = {"saturated": float(saturated.sum())}, []
    if bench.model.rejects:
        facts["rejected"] = float((logits.argmax(1) == bench.model.classes).sum())
    if bench.plan.randomness is not None:
        votes = bench.vote(x, y, ids, aimed=False)
        logits, flips = votes.logits, [round(float(value), 6) for value in votes.flips]
        facts["flips"] = float(votes.flips.sum())
    timings: dict[str, float] = {}
    if bench.guarded is not None:
        bare, timings = _beside(bench, bench.guarded, x)
        facts["bare_correct"] = float((~is_wrong(bare, y)).sum())
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(x),
        forward=len(x) * (1 if bench.plan.randomness is None else 1 + bench.price),
        timings=timings,
        facts=facts,
        labels=logits.argmax(1).tolist(),
        margins=[round(float(value), 6) for value in -margin(logits, y)],
        flips=flips,
    )


def _beside(bench: Bench, guarded: Guarded, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The answers of the model without its guards, and the least seconds that each of the two took."""
    timings = {"bare": math.inf, "guarded": math.inf}
    bare = x
    with torch.no_grad():
        for _ in range(_TIMED):
            for name, model in (("guarded", bench.model), ("bare", guarded.bare)):
                begun = time.perf_counter()
                bare = model(x)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                timings[name] = min(timings[name], time.perf_counter() - begun)
    return bare, {name: round(seconds, 9) for name, seconds in timings.items()}


def _attack(
    bench: Bench,
    stage: Stage,
    chunk: int,
    positions: np.ndarray[Any, Any],
    limits: Limits,
    known: Known | None,
) -> tuple[Record, Evidence]:
    assert stage.entry is not None and stage.threat is not None
    attack, options = find_attack(stage.entry.use), stage.entry.options
    if stage.nearest:
        options = {**options, "nearest": True}
    start = None if known is None else torch.from_numpy(known.x).to(bench.device)
    threat = stage.threat

    def lowered_or_not(rows: np.ndarray[Any, Any], rest: Limits, lowered: bool) -> Outcome:
        key, around = (stage.key, lambda meter, _: Lowered(meter)) if lowered else (f"{stage.key}/full", None)
        return run_attack(bench, attack, options, threat, key, rows, rest, around)

    if isinstance(stage.entry, AttackEntry) and stage.entry.precision == "bfloat16":
        outcome = searched(lowered_or_not, positions, limits)
    else:
        outcome = run_attack(bench, attack, options, threat, stage.key, positions, limits, start=start)
    evidence = outcome.evidence if known is None else nearer(outcome.evidence, known)
    record = Record(
        stage=stage.key,
        chunk=chunk,
        status=outcome.status,
        attempted=len(positions),
        broken=evidence.position.tolist(),
        rescued=outcome.rescued,
        unconfirmed=outcome.unconfirmed,
        forward=outcome.meter.forward,
        backward=outcome.meter.backward,
        queries=outcome.queries if known is None and attack.access < Access.GRADIENT else [],
        checks=outcome.checks,
        facts={"claims": float(outcome.claims), "on_grid": float(outcome.grid_survivors)},
    )
    return record, evidence


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
