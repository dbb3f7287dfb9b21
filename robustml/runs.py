"""Starting, resuming and merging runs: from a target to a finished folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .certificates import uncertified
from .data import Dataset
from .errors import InputError, brief
from .goals import choose_rows, parse_goals
from .guarded import Guarded
from .report.build import build_report
from .report.gate import check_gate
from .report.model import Report
from .stress.admission import admit, check_mode
from .stress.attacking import Bench
from .stress.folder import RunFolder
from .stress.folder import merge as merge_folders
from .stress.plan import Plan
from .stress.randomized import Randomness
from .stress.runner import Observer, Shard, Silent, execute
from .stress.suite import complete, load_suite
from .targets import Target
from .wrapping import environment, pick_device

__all__ = [
    "DEFAULT_BATCH",
    "check_settings",
    "make_plan",
    "merge_runs",
    "run_target",
    "save_report",
]

DEFAULT_BATCH = 256


def run_target(
    target: Target,
    *,
    out: Path,
    device: str = "auto",
    confidence: float = 0.95,
    max_passes: float | None = None,
    time_budget: float | None = None,
    shard: Shard | None = None,
    resume: bool = False,
    redact: bool = False,
    observer: Observer | None = None,
    command: str = "",
) -> tuple[Plan, RunFolder]:
    """Do the attacking of a stress test, all of it or one shard; `save_report` or `merge_runs` come after.

    Raises:
        InputError, RunError: as `stress_test`.
    """
    place = pick_device(device)
    check_settings(target, confidence=confidence, max_passes=max_passes, time_budget=time_budget, shard=shard)
    check_mode(target.model)
    with target.ready(place):
        admitted = admit(target.model, target.data, place)
        plan = make_plan(
            target,
            place,
            confidence=confidence,
            max_passes=max_passes,
            redact=redact,
            command=command,
            randomness=admitted.randomness,
        )
        folder = _resumed(out, plan) if resume else RunFolder.create(out, plan)
        bench = Bench(plan, target.model, target.data, place, target.twin)
        execute(bench, folder, observer=observer or Silent(), shard=shard, time_budget=time_budget)
    return plan, folder


def merge_runs(paths: Sequence[Path], out: Path, target: Target) -> Report:
    """Put the shards of a run together in a new folder and write its report.

    Raises:
        InputError: if the folders are not the shards of one run on this target.
        RunError: if the new folder cannot be written.
    """
    _, plan = RunFolder.open(paths[0])
    if plan.data_sha256 != target.data.sha256:
        raise InputError(f"{str(paths[0])!r} was run on other data than target {target.name!r} has")
    return save_report(plan, merge_folders(paths, out), target.data)


def save_report(plan: Plan, folder: RunFolder, data: Dataset) -> Report:
    """Build the report of a run and write it into the run's folder, as JSON and as HTML."""
    report = build_report(plan, folder, data)
    report.save(folder.path / "report.json")
    report.save(folder.path / "report.html")
    return report


def make_plan(
    target: Target,
    device: torch.device,
    *,
    confidence: float,
    max_passes: float | None,
    redact: bool,
    command: str,
    randomness: Randomness | None = None,
) -> Plan:
    """Fix everything that decides the figures of a run."""
    model, data = target.model, target.data
    goals = parse_goals(target.goals, target.class_names)
    ids = choose_rows(data.y, target.samples, target.select, target.seed, goals)
    if randomness is not None:
        given = {"draws": target.draws, "eot": target.eot}
        chosen = {name: value for name, value in given.items() if value is not None}
        randomness = randomness.model_copy(update=chosen)
    return Plan(
        target=target.name,
        model_name=target.model_name,
        model_sha256=model.fingerprint(),
        parameters=model.size,
        access=model.access.label,
        outputs=model.outputs,
        inputs=model.inputs.to_dict(),
        classes=model.classes,
        class_names=list(target.class_names),
        data_name=data.name,
        data_sha256=data.sha256,
        data_rows=len(data),
        requested=target.samples,
        select=target.select,
        ids=ids.tolist(),
        threats=[threat.name for threat in target.threats],
        suite=complete(load_suite(target.suite), model.access, {threat.norm for threat in target.threats}),
        seed=target.seed,
        chunk=target.batch_size or DEFAULT_BATCH,
        confidence=confidence,
        max_passes=max_passes,
        goals=list(goals.texts),
        guards=model.describe() if isinstance(model, Guarded) else [],
        certifies=uncertified(model) is None,
        rejects=model.rejects,
        randomness=randomness,
        twin_sha256=target.twin.fingerprint() if target.twin is not None else None,
        privacy=target.privacy,
        gate=target.gate,
        redact=redact,
        environment=environment(device),
        command=command,
    )


def check_settings(
    target: Target,
    *,
    confidence: float = 0.95,
    max_passes: float | None = None,
    time_budget: float | None = None,
    shard: Shard | None = None,
) -> None:
    """Refuse settings that no run could have.

    Raises:
        InputError: naming the setting.
    """
    shard = shard or Shard()
    if not target.threats:
        raise InputError("threats is empty; give at least one threat model, as in linf:8/255")
    names = [threat.name for threat in target.threats]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"threats names {sorted(twice)[0]} twice")
    if not (_is_number(confidence) and 0 < confidence < 1):
        raise InputError(f"confidence={brief(confidence)} is not a number between 0 and 1")
    for name, budget in (("max_passes", max_passes), ("time_budget", time_budget)):
        if budget is not None and not (_is_number(budget) and budget > 0):
            raise InputError(f"{name}={brief(budget)} is not a finite number above 0")
    batch = target.batch_size
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InputError(f"batch_size={batch!r} is not a whole number of at least 1")
    _check_draws("draws", target.draws, least=2)
    _check_draws("eot", target.eot, least=1)
    parse_goals(target.goals, target.class_names)
    seed = target.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed={brief(seed)} is not a whole number of 64 bits")
    if not 1 <= shard.index <= shard.count:
        raise InputError(f"shard {shard.index}/{shard.count} is not of the form 1/2, 2/2")
    check_gate(target.gate, names)


def _check_draws(name: str, value: Any, *, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and least <= value <= 10_000):
        raise InputError(f"{name}={brief(value)} is not a whole number from {least} to 10000")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _resumed(out: Path, plan: Plan) -> RunFolder:
    folder, before = RunFolder.open(out)
    for field in Plan.model_fields:
        # The command that is run again names the folder to resume, and is otherwise the same.
        if field != "command" and getattr(before, field) != getattr(plan, field):
            raise InputError(f"{str(out)!r} cannot be resumed: its {field} is not the same as now")
    return folder
